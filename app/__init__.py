"""The browser side: FastAPI and Gradio over run folders. Imports no torch."""

import os

# Read when gradio is first imported: the page reports nothing to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
