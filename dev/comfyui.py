"""A real ComfyUI server with this pack in it, as a child process on loopback.

The demo, the tests and `make comfy` all start it here. Everything it writes goes below its base
directory, never into the engine; `custom_nodes/runcomfy-kling` there is a link to this repository.
Leaving the `with` block ends the process, by its id, and so does the end of this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import URLError

ROOT = Path(__file__).resolve().parents[1]
PACK_NAME = "runcomfy-kling"
NODE = "RunComfyKlingImageToVideo"
LOOPBACK = "127.0.0.1"


class ServerFailed(Exception):
    """ComfyUI did not start, or started without the pack; the text ends with its log."""


class ComfyUI:
    """`with ComfyUI(engine, base) as server:` a running server at `server.origin`.

    engine: a ComfyUI checkout, only read.
    base: the base directory, made where missing; input, output, user and custom_nodes live in it.
    environment: the child's whole environment; default this process's own.
    port: 0 takes a free one.
    log: name in base of the file for all it prints; None leaves the output where it is.
    options: further command line options of ComfyUI.
    """

    def __init__(
        self,
        engine: Path,
        base: Path,
        *,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
        log: Path | str | None = "comfyui.log",
        options: tuple[str, ...] = (),
        python: str = sys.executable,
    ) -> None:
        self.engine = engine
        self.base = base
        self.port = port or free_port()
        self.origin = f"http://{LOOPBACK}:{self.port}"
        self.log = base / log if log is not None else None
        self._environment = dict(os.environ if environment is None else environment)
        self._options = options
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyUI:
        prepare_base(self.base)
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; it is not ready yet. Raises ServerFailed for a taken port."""
        if not is_free(self.port):  # else another server there would be taken for this one
            raise ServerFailed(f"Port {self.port} is taken. Choose another, such as PORT=8189.")
        command = (
            *(self._python, str(ROOT / "dev" / "comfyui_main.py"), str(os.getpid())),
            *(str(self.engine), "--cpu", "--base-directory", str(self.base)),
            *("--database-url", "sqlite:///:memory:"),
            *("--listen", LOOPBACK, "--port", str(self.port), "--disable-auto-launch"),
            *self._options,
        )
        environment = {**self._environment, "PYTHONUNBUFFERED": "1"}
        # A group of its own: Ctrl-C in a terminal reaches us alone, and we end the child in order.
        with contextlib.ExitStack() as files:
            output = files.enter_context(self.log.open("wb")) if self.log else None
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )

    def wait_until_ready(self, timeout_s: float = 180.0) -> None:
        """Return when the server answers with the pack loaded; raise ServerFailed otherwise."""
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self.exit_code() is not None:
                raise ServerFailed(f"ComfyUI ended with exit code {self.exit_code()}.{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"ComfyUI did not answer within {timeout_s:.0f} s.{self.tail()}")
            time.sleep(0.2)
        # Asked, not read from the log: any other module may be missing there, and is not ours.
        if NODE not in self.get_json(f"/object_info/{NODE}"):
            raise ServerFailed(f"ComfyUI could not import this pack.\n\n{self.import_error()}")

    def stop(self, grace_s: float = 10.0) -> None:
        """End the process: as Ctrl-C would, then firmly, then by force."""
        process = self._process
        if process is None:
            return
        for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if process.poll() is not None:
                break
            process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
        process.wait()
        self._process = None

    def exit_code(self) -> int | None:
        """None while the process runs."""
        return self._process.poll() if self._process else None

    def wait(self) -> int:
        """Block until the process ends by itself; its exit code."""
        return self._process.wait() if self._process else 0

    def open(self, path: str, timeout_s: float = 30.0) -> HTTPResponse:
        """The answer to `GET path`, to be closed; raises URLError where there is none."""
        # No proxy from the environment stands between us and loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        answer: HTTPResponse = opener.open(self.origin + path, timeout=timeout_s)
        return answer

    def get_json(self, path: str, timeout_s: float = 30.0) -> Any:
        """The JSON answer to `GET path`; raises URLError where there is none."""
        with self.open(path, timeout_s) as answer:
            return json.load(answer)

    def read_log(self) -> str:
        """All the server has printed so far; empty where its output goes elsewhere."""
        if self.log is None or not self.log.is_file():
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tail(self, lines: int = 40) -> str:
        """The end of the log, to be put after a sentence."""
        text = self.read_log().strip()
        if not text:
            return ""
        return f" The end of {self.log}:\n\n" + "\n".join(text.splitlines()[-lines:])

    def import_error(self) -> str:
        """What ComfyUI printed of the pack's own import, as far as it went to the log."""
        if self.log is None:
            return "Its own messages, above, say why."
        ours = [line for line in self.read_log().splitlines() if PACK_NAME in line]
        return "\n".join([f"The lines about it in {self.log}:", *ours])

    def _answers(self) -> bool:
        try:
            self.get_json("/system_stats", timeout_s=5)
        except (URLError, OSError):
            return False
        return True


def prepare_base(base: Path) -> None:
    """Make the base directory: the pack linked in, and the first-start dialog answered."""
    for name in ("custom_nodes", "input", "output", "user/default"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_NAME
    if not link.is_symlink() or link.resolve() != ROOT:
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT, target_is_directory=True)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.write_text('{"Comfy.TutorialCompleted": true}')


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
