"""The real studio for benchmarks: the app in its own process, and a headless browser on its page."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@contextmanager
def app(runs: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], float]]:
    """The studio's address, its process, and the seconds until it answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    command = [sys.executable, "-m", "app", "--runs", str(runs), "--port", str(port), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=10).read()
                break
            except OSError:
                if process.poll() is not None or time.perf_counter() - started > 60:
                    raise
                time.sleep(0.02)
        yield address, process, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


@contextmanager
def browser_page(address: str) -> Iterator[Page]:
    """A page of headless Chromium at the address."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1400, height=1000))
        page.goto(address)
        yield page
        browser.close()


def start_run(page: Page, name: str, preset: str = "rate", **settings: str) -> float:
    """Choose a preset, fill the form, press Start, and open the board; returns when Start was pressed."""
    if preset != "rate":
        page.locator(f"input[name=studio-preset][value={preset}]").check()
        page.wait_for_function(f"() => document.querySelector('#new-run-name input, #new-run-name textarea').value.startsWith('{preset}')")
    page.get_by_label("Name of the run").fill(name)
    if advanced := {k: v for k, v in settings.items() if page.locator(f"#set-{k}").count()}:
        page.get_by_text("Advanced settings").click()
        for key, value in advanced.items():
            page.locator(f"#set-{key} input, #set-{key} textarea").first.fill(value)
    if "prompts" in settings:
        page.locator("#new-run-prompts textarea").fill(settings["prompts"])
    pressed = time.perf_counter()
    page.locator("#start-run").click()
    page.get_by_role("tab", name="Rate").click()
    return pressed


def memory_mb(pid: int) -> float:
    """Resident memory of a process, in MB (1e6 bytes)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
