"""A quick tunnel: ``cloudflared`` gives the asset listener a public https name while it is needed.

The program belongs to the user; this starts it under a keeper, reads the name from what it prints,
and ends it. It points at the asset listener alone: nothing else of the machine is behind the name.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import ConfigError, UploadError
from . import keeper

PROGRAM = "cloudflared"
START_S = 45.0
END_S = keeper.END_S + 5.0
_ORIGIN = re.compile(r"https://[a-z0-9-]+\.trycloudflare\.com\b")
# tokens and keys are none of its business, and TUNNEL_... would make it another tunnel
_KEPT_BACK = re.compile(r"RUNCOMFY|TOKEN|SECRET|KEY|PASSWORD|^TUNNEL_", re.IGNORECASE).search
_CONNECTED = "Registered tunnel connection"


class QuickTunnel:
    """One tunnel to one port of this machine, opened and closed as often as needed.

    Args:
        port: Where the asset listener is.
        folder: Where an empty configuration is put; the user's own would take the requests.
        program: The program's name or path.
        clock: Monotonic seconds.
    """

    looks = 6

    def __init__(
        self,
        port: int,
        folder: Path,
        *,
        program: str = PROGRAM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port = port
        self._folder = folder
        self._program = program
        self._clock = clock
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._origin = ""

    @property
    def is_open(self) -> bool:
        """Whether the program runs."""
        return self._process is not None and self._process.poll() is None

    def open(self) -> str:
        """The tunnel's origin; starts the program where it does not run.

        Raises:
            ConfigError: The program is not installed.
            UploadError: It gave no name in ``START_S`` seconds, or ended.
        """
        with self._lock:
            if not self.is_open:
                self._origin = self._start()
            return self._origin

    def close(self) -> None:
        """End the program; harmless where it does not run."""
        with self._lock:
            self._stop()

    def _start(self) -> str:
        path = shutil.which(self._program)
        if path is None:
            raise ConfigError(
                "RUNCOMFY_PUBLIC_ADDRESS is cloudflared, but that program is not installed or not "
                "on the PATH. Install cloudflared from Cloudflare, or set an https address. "
                "Nothing was charged."
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "cloudflared.yml"
        config.write_text("", encoding="utf-8")
        environ = {name: value for name, value in os.environ.items() if not _KEPT_BACK(name)}
        command = [
            sys.executable,
            "-I",
            keeper.__file__,
            path,
            "tunnel",
            "--config",
            str(config),
            "--no-autoupdate",
        ]
        command += ["--url", f"http://127.0.0.1:{self._port}"]
        self._process = subprocess.Popen(  # noqa: S603 - the user named the program, by a setting
            command,
            env=environ,
            stdin=subprocess.PIPE,  # it ends when this is closed, also by the end of this process
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        reader = _Reader(self._process)
        deadline = self._clock() + START_S
        while not reader.done.wait(0.1) and self._clock() < deadline:
            pass
        if reader.origin and self.is_open:
            return reader.origin
        code = self._process.poll()
        self._stop()
        why = f"it ended with code {code}" if code is not None else f"no name in {START_S:.0f} s"
        said = f": {reader.last}" if reader.last else ""
        raise UploadError(
            f"cloudflared opened no tunnel ({why}){said}. Nothing was charged. Try again, or set "
            "RUNCOMFY_PUBLIC_ADDRESS to an address of your own."
        )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Reader:
    """Reads what the program prints, to its end: a full pipe would stop it.

    ``done`` is set once the tunnel stands or the program has ended.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.origin = ""
        self.last = ""
        self.done = threading.Event()
        self._process = process
        threading.Thread(target=self._read, name="runcomfy-tunnel", daemon=True).start()

    def _read(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - a pipe was asked for
        for line in self._process.stderr:
            found = _ORIGIN.search(line)
            if found:
                self.origin = found[0]
            if not self.done.is_set():
                self.last = line.strip()[:300]
            if self.origin and _CONNECTED in line:
                self.done.set()
        self._process.wait()
        self.done.set()
