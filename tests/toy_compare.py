"""A process that makes pictures without a model: ``python -m tests.toy_compare``. What it draws follows from what it is asked for.

Environment variables make it odd: TOY_COMPARE=broken answers that nothing can be made, TOY_COMPARE=slow takes its time; TOY_COMPARE_LOG is a file to
which it writes what it was asked for, one question a line.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from tests.toys import picture


def drawn(question: dict[str, Any], item: dict[str, Any]) -> int:
    """The picture's seed in the toy world."""
    state = [question["round"], question["lora"], question["strength"]] if question["round"] or question["lora"] else []
    return zlib.crc32(json.dumps([state, item["prompt"], item["seed"]]).encode())


def main() -> int:
    manner, log = os.environ.get("TOY_COMPARE", ""), os.environ.get("TOY_COMPARE_LOG")
    for line in sys.stdin:
        question = json.loads(line)
        if log:
            with open(log, "a") as file:
                file.write(line)
        for item in question["items"] if manner != "broken" else ():
            time.sleep(0.4 if manner == "slow" else 0.005)
            file = Path(item["file"])
            picture(drawn(question, item)).save(file.with_suffix(".part"), format="PNG")
            file.with_suffix(".part").replace(file)
        print(json.dumps(dict(error="The toy is broken.") if manner == "broken" else dict(made=len(question["items"]))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
