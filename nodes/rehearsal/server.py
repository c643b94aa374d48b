"""The rehearsal server as one object: a thread of its own that listens on loopback.

The thread is a daemon and holds its own asyncio loop, so it lives equally well in a test, in a
program and inside ComfyUI; after stop() no thread, socket or file handle is left.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .faults import Fault, Plan, seconds
from .journal import Journal, Request, Submission

if TYPE_CHECKING:
    from aiohttp import web

    from .jobs import JobStore

HOST = "127.0.0.1"
START_S = 30
# Open polls are short; a download that nobody reads must not hold up the end.
SHUTDOWN_S = 1.0


class RehearsalServer:
    """RunComfy's Model API on this machine.

    Clips are written to `folder`. `queue_s` and `run_s` are how long a job stays queued and runs
    (seconds), unless a plan says otherwise. Port 0 takes any free one.
    """

    origin: str = ""

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        token: str | None = None,
        queue_s: float = 1.0,
        run_s: float = 4.0,
    ) -> None:
        self.token = secrets.token_urlsafe(24) if token is None else token
        self._folder = Path(folder)
        self._port = port
        self._queue_s, self._run_s = seconds("queue_s", queue_s), seconds("run_s", run_s)
        self._journal = Journal()
        self._jobs: JobStore | None = None
        self._thread: threading.Thread | None = None
        self._end: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def submissions(self) -> list[Submission]:
        """Every job that was accepted, in order, the one of a lost reply included."""
        return self._journal.submissions

    @property
    def requests(self) -> list[Request]:
        """Every request that was seen, in order."""
        return self._journal.requests

    def plan(
        self, *faults: Fault, queue_s: float | None = None, run_s: float | None = None
    ) -> None:
        """Set faults and pace of the next accepted job; a second call is for the one after."""
        self._journal.plans.append(Plan(faults, queue_s, run_s))

    def forget(self, request_id: str) -> None:
        """Know a job no more, as after the time for which results are kept."""
        if self._jobs is not None:
            self._jobs.forget(request_id)

    def start(self) -> RehearsalServer:
        """Listen, and return when requests are answered. Raises OSError for a taken port."""
        if self._thread is not None:
            return self
        # Here and not at the top: importing the package costs ComfyUI's start nothing.
        from .api import Api
        from .jobs import JobStore

        jobs = self._jobs = JobStore(self._folder, queue_s=self._queue_s, run_s=self._run_s)
        listener = socket.create_server((HOST, self._port))
        self.origin = f"http://{HOST}:{listener.getsockname()[1]}"
        app = Api(jobs, self._journal, origin=self.origin, token=self.token).application()
        ready: Future[None] = Future()

        def run() -> None:
            jobs.start()
            try:
                asyncio.run(self._serve(app, listener, ready))
            except BaseException as error:
                if not ready.done():
                    ready.set_exception(error)
                raise
            finally:
                listener.close()
                jobs.stop()

        self._thread = threading.Thread(target=run, name="rehearsal-api", daemon=True)
        self._thread.start()
        try:
            ready.result(START_S)
        except BaseException:
            self._thread = self._end = None
            raise
        return self

    def stop(self) -> None:
        """End the server and its jobs; clips stay in the folder. Harmless when not running."""
        if self._thread is None:
            return
        if self._end is not None:
            loop, end = self._end
            loop.call_soon_threadsafe(end.set)
        self._thread.join()
        self._thread = self._end = None

    def __enter__(self) -> RehearsalServer:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def _serve(
        self, app: web.Application, listener: socket.socket, ready: Future[None]
    ) -> None:
        from aiohttp import web

        end = asyncio.Event()
        self._end = (asyncio.get_running_loop(), end)
        runner = web.AppRunner(
            app, handle_signals=False, access_log=None, shutdown_timeout=SHUTDOWN_S
        )
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            ready.set_result(None)
            await end.wait()
        finally:
            await runner.cleanup()
