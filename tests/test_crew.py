"""Several processes as one worker: they do what one does, wait for people outside collectives, and end together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from app.launch import Launcher, worker_command
from ddpo.checkpoint import load_state
from ddpo.config import ConfigError
from ddpo.crew import Crew, CrewError, Dismissed
from ddpo.loss import Health
from ddpo.policy import StableDiffusionPolicy
from ddpo.records import RESULT, Status
from ddpo.store import RunStore
from ddpo.worker import load_policy
from tests.models import save_tiny_model
from tests.toys_ddpo import PROJECT, THREADS, finish, forks, outcome, rate_rounds, tiny_config, toy_config, toy_trainer, work

# --- messages


def crews(size: int) -> list[Crew]:
    """A crew whose processes are threads."""
    store = dist.HashStore()
    return [Crew(rank, size, store) for rank in range(size)]


def test_a_task_is_done_by_all_and_answered_in_order() -> None:
    leader, *others = crews(3)
    for crew in (leader, *others):
        crew.tasks = {"share": lambda of, crew=crew: [crew.rank, crew.share(of)]}
    threads = [threading.Thread(target=crew.follow, args=(lambda: None,)) for crew in others]
    for thread in threads:
        thread.start()
    leader.begin()
    for _ in range(3):
        assert leader.together("share", of=[0, 1, 2, 3]) == [[0, [0, 3]], [1, [1]], [2, [2]]]
    leader.dismiss()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_one_alone_needs_nobody() -> None:
    crew = Crew()
    crew.tasks = {"double": lambda of: 2 * of}
    crew.gate()
    assert crew.together("double", of=4) == [8] and crew.share([1, 2]) == [1, 2]
    crew.dismiss()


def test_nobody_passes_the_gate_before_all_are_there_and_nobody_after_the_end() -> None:
    leader, other = crews(2)
    passed: list[str] = []

    def wait() -> None:
        other.gate()
        passed.append("first")
        try:
            other.gate()
        except Dismissed:
            passed.append("dismissed")

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    assert passed == []
    leader.gate()
    leader.dismiss()
    thread.join(10)
    assert passed == ["first", "dismissed"]
    leader, other = crews(2)
    thread = threading.Thread(target=lambda: (leader.gate(), passed.append("leader")))
    thread.start()
    time.sleep(0.2)
    assert passed[-1] == "dismissed"
    other.gate()
    thread.join(10)
    assert passed[-1] == "leader"


def test_tasks_with_gates_keep_in_step() -> None:
    """As an update has them: each process passes as many gates, and the answers are found under the task's number."""
    leader, other = crews(2)
    for crew in (leader, other):

        def work(steps: int, crew: Crew = crew) -> int:
            for _ in range(steps):
                crew.gate()
            return crew.rank + steps

        crew.tasks = {"work": work}
    thread = threading.Thread(target=other.follow, args=(lambda: None,))
    thread.start()
    leader.begin()
    assert [leader.together("work", steps=n) for n in (3, 0, 2)] == [[3, 4], [0, 1], [2, 3]]
    leader.dismiss()
    thread.join(10)
    assert not thread.is_alive()


def test_lost_step_is_an_error_and_no_silence() -> None:
    leader, other = crews(2)
    leader.begin()
    with pytest.raises(RuntimeError, match="waits for a gate and hears"):
        other.gate()


@pytest.mark.parametrize("when", ["beginning", "working"])
def test_the_leader_learns_what_another_failed_of(when: str) -> None:
    leader, other = crews(2)

    def fails() -> None:
        raise ConfigError("no such model")

    leader.tasks, other.tasks = {"work": lambda: 1}, {"work": fails}
    failed: list[Exception] = []

    def follow() -> None:
        try:
            other.follow(fails if when == "beginning" else lambda: None)
        except ConfigError as error:
            failed.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    leader.begin()
    with pytest.raises(CrewError, match=r"process 1: ConfigError\('no such model'\)"):
        leader.together("work")
    leader.dismiss()
    thread.join(10)
    assert len(failed) == 1


@pytest.mark.parametrize("fails", [True, False])
def test_the_leader_listens_while_it_waits_in_a_sum(fails: bool) -> None:
    """A sum that another process never enters, since it has failed, ends by that one's reason; one that breaks by itself, by its own."""
    leader, other = crews(2)
    entered, never, began = threading.Event(), threading.Event(), time.monotonic()

    def collective() -> None:
        entered.set()
        if not fails:
            raise RuntimeError("Connection closed by peer")
        never.wait(60)

    def work() -> None:
        entered.wait(10)
        raise torch.OutOfMemoryError("CUDA out of memory")

    other.tasks = {"work": work if fails else lambda: 1}
    leader.tasks = {"work": lambda: leader.listening(collective)}

    def follow() -> None:
        with contextlib.suppress(torch.OutOfMemoryError):
            other.follow(lambda: None)

    thread = threading.Thread(target=follow)
    thread.start()
    leader.begin()
    with pytest.raises(CrewError if fails else RuntimeError, match="process 1: .*out of memory" if fails else "closed by peer"):
        leader.together("work")
    assert time.monotonic() - began < 30
    leader.dismiss()
    thread.join(10)
    never.set()
    assert not thread.is_alive()


def test_messages_are_forgotten_once_heard() -> None:
    """A run of a hundred thousand rounds does not fill the store."""
    leader, other = crews(2)
    leader.tasks = other.tasks = {"work": lambda: "x" * 1000}
    thread = threading.Thread(target=other.follow, args=(lambda: None,))
    thread.start()
    leader.begin()
    for _ in range(5):
        leader.together("work")
    assert leader._store is not None and leader._store.num_keys() <= 1
    leader.dismiss()
    thread.join(10)


def test_health_of_several_is_that_of_one() -> None:
    parts, whole = [Health(16, 0.1) for _ in range(2)], Health(16, 0.1)
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        loss, log_ratio, advantage = torch.randn(3, 5, generator=generator)
        for each in (part, whole):
            each.add(loss, log_ratio, advantage, log_ratio**2, torch.arange(5) % 3)
            each.add_kl_base(log_ratio.abs())
    assert Health.merged(parts).metrics() == pytest.approx(whole.metrics())


@pytest.mark.parametrize(("items", "parts"), [(32, {1: 1, 2: 2, 3: 3}), (192, {1: 3, 2: 4, 3: 3}), (65, {1: 2, 2: 2, 3: 3}), (2, {1: 1, 2: 2, 3: 2})])
def test_every_process_has_its_share_of_an_optimiser_step(tmp_path: Path, items: int, parts: dict[int, int]) -> None:
    """By as many processes, the items are in so many parts of 64 at most, nearly equal ones: all items, in their order, however few they are."""
    engine = toy_trainer(tmp_path / "run", toy_config(update_microbatch=64)).engine
    wanted = torch.arange(2 * items).reshape(items, 2)
    for size, number in parts.items():
        engine.crew = Crew(size=size)
        found = [part.items for part in engine.split(wanted)]
        sizes = [len(part) for part in found]
        assert len(found) == number and max(sizes) <= 64 and max(sizes) - min(sizes) <= 1 and torch.equal(torch.cat(found), wanted)


def test_a_device_of_one_s_own_is_refused_for_several() -> None:
    with pytest.raises(ConfigError, match=r"device is cuda:1.*2 processes.*device auto"):
        load_policy(tiny_config(Path("unused"), device="cuda:1"), Crew(0, 2, dist.HashStore()))


@pytest.mark.parametrize("variable, name", [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_a_launcher_that_would_split_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, name: str) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=f"asks for {name}.*--multi_gpu"):
        Crew.assemble()
    monkeypatch.setenv(variable, "false")
    assert Crew.assemble().size == 1


# --- processes


@contextlib.contextmanager
def launched(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Two workers as the README starts them, on the CPU; whatever is left of them afterwards is killed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--num_processes=2", "--mixed_precision=no"]
    command += ["--dynamo_backend=no", "--main_process_port=0", "-m", "ddpo", "resume", str(folder)]
    with open(folder / "worker.log", "ab") as log:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, env=os.environ | THREADS | {"CUDA_VISIBLE_DEVICES": ""})
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        process.wait()


def result(folder: Path, process: subprocess.Popen[bytes]) -> int:
    """Wait for the end; its exit code."""
    try:
        return process.wait(120)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"no end: {log_of(folder)}") from None


def assembled(folder: Path) -> list[int | None]:
    """Two workers without the launcher, which costs half a minute of imports: forked, with the variables that it would set; their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        surroundings = dict(
            WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]), CUDA_VISIBLE_DEVICES=""
        )
    pair = [forks().Process(target=work, args=(folder, surroundings | dict(RANK=rank, LOCAL_RANK=rank))) for rank in "01"]
    for each in pair:
        each.start()
    for each in pair:
        each.join(120)
        each.kill()
        each.join()
    return [each.exitcode for each in pair]


def log_of(folder: Path) -> str:
    return (folder / "worker.log").read_text(encoding="utf-8", errors="replace")[-3000:]


def until(folder: Path, process: subprocess.Popen[bytes], condition: Callable[[Status], bool], patience: float = 90.0) -> None:
    store, deadline = RunStore(folder), time.monotonic() + patience
    try:
        while not condition(store.status()):
            assert process.poll() is None and time.monotonic() < deadline, (store.status(), log_of(folder))
            time.sleep(0.02)
    finally:
        store.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "changes",
    [
        dict(learning_rate=1e-3, update_microbatch=64),
        dict(training="full", learning_rate=1e-4),
        dict(images_per_round=16, images_per_update=16, microbatch=8, update_microbatch=8, learning_rate=1e-3),
    ],
    ids=["lora", "full", "reuse-forward"],
)
def test_two_processes_do_what_one_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Two updates of one round of the tiny Stable Diffusion: weights, moments and averages as of one process but for the order of float32 sums
    (AdamW's first steps divide by the gradient's own size, which magnifies it), the same images, prompts, seeds, marks and metrics. (In later
    rounds a pixel that rounds otherwise may change a score.) Each process keeps about half of the moments, and one alone can go on from both."""
    config = tiny_config(save_tiny_model(tmp_path / "model"), ema_decay=0.9, rounds=1, **changes)
    for name in ("one", "two"):
        RunStore.create(tmp_path / name, config).close()
    assert finish(tmp_path / "one") == 0
    assert assembled(tmp_path / "two") == [0, 0], log_of(tmp_path / "two")
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    assert two["marks"] == one["marks"] and two["images"] == one["images"] and two["scores"] == one["scores"]
    places = [tmp_path / name / "checkpoints" / "0001" for name in ("one", "two")]
    states, second = [load_file(place / "state.safetensors") for place in places], load_file(places[1] / "moments-1.safetensors")
    sizes = [sum(value.numel() for key, value in part.items() if key.startswith("exp_avg")) for part in (states[1], second)]
    assert not states[1].keys() & second.keys() and max(sizes) < 0.6 * sum(sizes)
    states[1] |= second
    assert states[0].keys() == states[1].keys()
    policy = StableDiffusionPolicy.load(config)
    optimiser = torch.optim.AdamW(policy.parameters().values())
    assert load_state(places[1], policy.parameters(), optimiser) == 1
    for name, parameter in policy.parameters().items():
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimiser.state[parameter][key], states[1][f"{key}/{name}"])
    for key, value in states[0].items():
        atol = 3e-4 * float(value.abs().max()) + 1e-15 if key.startswith("exp_avg") else 2e-5
        torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=atol, msg=key)
    for name in ("kl_update", "grad_norm", "loss", "updates", "ratio_std", "held_out_reward"):
        assert dict(two["metrics"][name]) == pytest.approx(dict(one["metrics"][name]), rel=1e-3, abs=1e-5), name


@pytest.mark.timeout(400)
def test_two_processes_measure_the_round_that_is_rolled_back_to(tmp_path: Path) -> None:
    """The first decides; both load that round's weights at the end."""
    config = tiny_config(save_tiny_model(tmp_path / "model"), rounds=2)
    store = RunStore.create(tmp_path / "run", config)
    store.choose(RESULT, "1")
    with launched(tmp_path / "run") as process:
        assert result(tmp_path / "run", process) == 0, log_of(tmp_path / "run")
    assert [number for number, _ in store.metrics()["held_out_reward"]] == [0, 1] and max(store.checkpoints()) == 2
    store.close()


@pytest.mark.timeout(400)
def test_people_are_waited_for_and_stop_ends_every_process(tmp_path: Path) -> None:
    """A run that people rate, by two processes: it waits, is stopped while it waits, resumes, takes the ratings and finishes."""
    folder = tmp_path / "run"
    RunStore.create(folder, tiny_config(save_tiny_model(tmp_path / "model"), reward="human", rounds=2, held_out_images=0)).close()
    store = RunStore(folder)
    with launched(folder) as process:
        until(folder, process, lambda status: status.state == "awaiting")
        store.add_request("stop")
        assert result(folder, process) == 0, log_of(folder)
    assert store.status().state == "stopped"
    stop = threading.Event()
    acknowledged: list[tuple[str, int]] = []
    person = threading.Thread(target=rate_rounds, args=(folder, lambda image: (-1.0) ** (image.stat().st_size % 2), acknowledged, stop))
    with launched(folder) as process:
        person.start()
        try:
            assert result(folder, process) == 0, log_of(folder)
        finally:
            stop.set()
            person.join()
    assert store.status().state == "finished" and len(acknowledged) == 16
    assert [row.next_mark for row in store.rounds()] == [None, None]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that two processes made, and that nobody disturbed."""
    place = tmp_path_factory.mktemp("crew")
    RunStore.create(place / "straight", tiny_config(save_tiny_model(place / "model"), rounds=6, held_out_images=0, steps=4)).close()
    assert assembled(place / "straight") == [0, 0], log_of(place / "straight")
    return place / "straight"


@pytest.mark.timeout(500)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_it_resumes(tmp_path: Path, straight: Path, rank: int) -> None:
    """Kill -9 of either process in the second round: the launcher ends the other, nobody holds the run, and the same command goes on. The result is
    that of an undisturbed run, bit for bit."""
    folder = tmp_path / "killed"
    RunStore.create(folder, RunStore(straight).config).close()
    with launched(folder) as process:
        until(folder, process, lambda status: status.round >= 2)
        workers = [each for each in psutil.Process(process.pid).children(recursive=True) if each.environ().get("RANK") == str(rank)]
        workers[0].send_signal(signal.SIGKILL)
        assert result(folder, process) != 0
    store = RunStore(folder)
    assert store.status().state in ("interrupted", "failed") and store.status().pid is None
    assert len(store.rounds()) < 6
    with launched(folder) as process:
        assert result(folder, process) == 0, log_of(folder)
    assert outcome(folder) == outcome(straight)


def test_a_process_without_a_part_in_a_step_makes_it_too_in_half_precision(tmp_path: Path) -> None:
    """In fp16, whose loss is scaled, the one part of each step is one process's; the other has nothing to scale."""
    folder = tmp_path / "run"
    changes = dict(precision="fp16", rounds=1, images_per_round=2, images_per_prompt=2, images_per_update=2, update_microbatch=16, held_out_images=0)
    RunStore.create(folder, tiny_config(save_tiny_model(tmp_path / "model"), reuse_forward=False, trained_fraction=1.0, **changes)).close()
    assert assembled(folder) == [0, 0], log_of(folder)
    store = RunStore(folder)
    assert store.status().state == "finished" and dict(store.metrics()["updates"]) == {1: 1.0}, log_of(folder)


LOADING = """
def fails(config, crew):
    if crew.rank:
        raise MemoryError("no room")
    return load(config, crew)
load, worker.load_policy = worker.load_policy, fails
"""
STEPPING = """
import torch
from torch.optim import AdamW
def fails(self, *arguments, **more):
    if os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return step(self, *arguments, **more)
step, AdamW.step = AdamW.step, fails
"""


@pytest.mark.parametrize("change", [LOADING, STEPPING], ids=["loading", "within-a-step"])
def test_a_process_that_fails_ends_the_run_with_its_reason(tmp_path: Path, change: str) -> None:
    """The second process cannot load the model, or make its part of an optimiser's step, whose end the first one waits for: the run says so in plain
    words, and both end."""
    folder = tmp_path / "run"
    RunStore.create(folder, tiny_config(save_tiny_model(tmp_path / "model"), held_out_images=0)).close()
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, sys\nfrom pathlib import Path\nimport ddpo.worker as worker\n{change}\nworker.leave(worker.run(Path(sys.argv[1])))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(folder)]
    with open(folder / "worker.log", "ab") as log:
        environment = os.environ | THREADS | {"PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}
        assert subprocess.run(command, cwd=PROJECT, stdout=log, stderr=log, env=environment, timeout=120).returncode != 0
    store = RunStore(folder)
    assert store.status().state == "failed"
    assert "process 1: The memory is full." in store.status().message, log_of(folder)


def test_the_studio_s_launcher_starts_several_processes(tmp_path: Path) -> None:
    """`python -m app --processes 2`: both make the run, under one lock, and it ends as any other."""
    save_tiny_model(tmp_path / "model")
    store = RunStore.create(tmp_path / "run", tiny_config(tmp_path / "model", rounds=1, held_out_images=0))
    launcher = Launcher(worker_command(2))
    launcher.start(store.folder)
    deadline = time.monotonic() + 180
    while store.status().state != "finished" or launcher.starting(store.folder):
        assert time.monotonic() < deadline, store.log_tail(40)
        time.sleep(0.1)
    assert any("one of 2" in event.message for event in store.events()) and store.rounds()[0].next_mark is None
    store.close()
