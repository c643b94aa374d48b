"""`make comfy` and what it starts: checked when it is up, and gone when whoever started it is.

ComfyUI is a few lines here that answer two routes: what counts is the processes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import clean_environment

ROOT = Path(__file__).resolve().parents[1]
NODE = "RunComfyKlingImageToVideo"
ENGINE = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        nodes = json.loads(os.environ["NODES"])
        asked = self.path.rpartition("/")[2]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({asked: {}} if asked in nodes else {}).encode())

print("IMPORT FAILED: nodes_glsl.py", flush=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
try:
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()
except KeyboardInterrupt:
    print("Stopped server", flush=True)
"""
SERVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import demo, serve
serve.BASE = demo.BASE = Path(sys.argv[2])
sys.exit(serve.main())
"""
AS_MAKE = "import subprocess, sys; subprocess.run(sys.argv[1:])"
Start = Callable[..., "Serving"]


class Serving:
    """`make comfy`'s program with that ComfyUI, started by `command` where there is one."""

    def __init__(
        self, folder: Path, nodes: tuple[str, ...], *command: str, stdin: int, **settings: str
    ) -> None:
        engine = folder / "engine"
        engine.mkdir()
        (engine / "main.py").write_text(ENGINE)
        self.is_free = importlib.import_module("pack.dev.comfyui").is_free
        self.port: int = importlib.import_module("pack.dev.comfyui").free_port()
        environment = clean_environment(
            COMFYUI_DIR=str(engine), PORT=str(self.port), NODES=json.dumps(nodes), **settings
        )
        if not settings:
            environment.pop("MAKELEVEL", None)
        self._said = folder / "said.txt"  # no pipe: what is left over would keep it open
        self.process = subprocess.Popen(
            [*command, sys.executable, "-c", SERVE, str(ROOT / "dev"), str(folder / "base")],
            env=environment,
            stdin=stdin,
            stdout=self._said.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # a shell that runs these tests in its background has them ignore Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_until_up(self) -> None:
        """Return when it says where it is."""
        deadline = time.monotonic() + 30
        while "Ctrl-C stops it" not in self.said():
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        assert not self.is_free(self.port)

    def said(self) -> str:
        """All that it and ComfyUI have printed."""
        return self._said.read_text()

    def has_left(self, within_s: float = 15.0) -> bool:
        """Whether ComfyUI ends by itself."""
        deadline = time.monotonic() + within_s
        while not self.is_free(self.port) and time.monotonic() < deadline:
            time.sleep(0.1)
        return bool(self.is_free(self.port))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one `Serving`, and ends it after the test."""
    started: list[Serving] = []

    def start_one(
        *command: str,
        nodes: tuple[str, ...] = (NODE,),
        stdin: int = subprocess.DEVNULL,
        **settings: str,
    ) -> Serving:
        serving = Serving(tmp_path, nodes, *command, stdin=stdin, **settings)
        started.append(serving)
        return serving

    yield start_one
    for serving in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(serving.process.pid, signal.SIGKILL)
        serving.process.wait()
        assert serving.has_left()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"])
def test_comfyui_ends_with_what_started_it(start: Start, how: str) -> None:
    """`kill`, a closed terminal, Ctrl-C, and the way that cannot be handled."""
    serving = start()
    serving.wait_until_up()
    serving.process.send_signal(getattr(signal, how))
    code = serving.process.wait(timeout=60)
    assert serving.has_left()
    assert code == (-signal.SIGKILL if how == "SIGKILL" else 0)
    assert "Stopped server" in serving.said()
    assert "Traceback" not in serving.said()


def test_comfyui_ends_when_make_is_killed(start: Start) -> None:
    serving = start(sys.executable, "-c", AS_MAKE, MAKELEVEL="1")
    serving.wait_until_up()
    serving.process.kill()
    assert serving.has_left()


def test_comfyui_ends_when_the_terminal_is_closed(start: Start) -> None:
    """Without a signal: where `make` leads the terminal's session, it alone is sent one."""
    terminal, ours = os.openpty()
    serving = start(stdin=ours)
    os.close(ours)
    serving.wait_until_up()
    os.close(terminal)
    assert serving.has_left()


def test_a_pack_that_did_not_load_is_told_at_once(start: Start) -> None:
    serving = start(nodes=("LoadImage",))
    assert serving.process.wait(timeout=60) == 1
    assert "ComfyUI could not import this pack" in serving.said()
    assert "Traceback" not in serving.said()


def test_another_module_that_did_not_load_is_not_ours(start: Start) -> None:
    serving = start()
    serving.wait_until_up()


def test_nohup_is_honoured() -> None:
    """A signal that the caller has ignored stays ignored."""
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); import ending;"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); ending.end_in_order();"
        "os.kill(os.getpid(), signal.SIGHUP); print('still here')"
    )
    command = [sys.executable, "-c", script, str(ROOT / "dev")]
    done: Any = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)
    assert done.stdout == "still here\n"
