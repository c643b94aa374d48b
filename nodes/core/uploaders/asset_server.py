"""Serves assets over HTTP: on ComfyUI's own server, or on a listener that serves nothing else."""

import asyncio
import socket
import threading
from concurrent.futures import Future

from aiohttp import hdrs, web

from ..errors import ConfigError
from .assets import PATH, Assets

HOST = "127.0.0.1"
START_S = 30.0
_HEADERS = {
    hdrs.CACHE_CONTROL: "no-store",  # a proxy's copy would outlive the file
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}


async def serve(assets: Assets, request: web.Request) -> web.StreamResponse:
    """Answer GET and HEAD of ``PATH/<token>``, whole or a range; 404 for all else."""
    found = assets.find(request.match_info["token"])
    if found is None:
        return web.Response(status=404, text="Not found", headers=_HEADERS)
    path, content_type = found
    return web.FileResponse(path, headers={**_HEADERS, hdrs.CONTENT_TYPE: content_type})


class AssetListener:
    """A server on loopback for a tunnel or a proxy to point at. Port 0 takes a free one.

    Its daemon thread holds up no end of the process.

    Raises:
        ConfigError: The port is taken.
    """

    def __init__(self, assets: Assets, port: int = 0) -> None:
        try:
            listener = socket.create_server((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"RUNCOMFY_ASSET_PORT is {port}, but nothing can listen there "
                f"({error.strerror or error}). Does another ComfyUI? Choose another port. "
                "Nothing was charged."
            ) from None
        self.port = int(listener.getsockname()[1])
        self._end: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        ready: Future[None] = Future()

        async def run() -> None:
            async def answer(request: web.Request) -> web.StreamResponse:
                return await serve(assets, request)

            app = web.Application()
            app.router.add_get(f"{PATH}/{{token}}", answer)  # HEAD comes with it
            runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            end = asyncio.Event()
            self._end = (asyncio.get_running_loop(), end)
            try:
                await web.SockSite(runner, listener).start()
                ready.set_result(None)
                await end.wait()
            finally:
                await runner.cleanup()

        self._thread = threading.Thread(
            target=lambda: asyncio.run(run()), name="runcomfy-assets", daemon=True
        )
        self._thread.start()
        ready.result(START_S)

    @property
    def origin(self) -> str:
        """Where it listens, on this machine."""
        return f"http://{HOST}:{self.port}"

    def close(self) -> None:
        """Stop listening."""
        if self._end is not None:
            loop, end = self._end
            loop.call_soon_threadsafe(end.set)
            self._thread.join(START_S)
            self._end = None
