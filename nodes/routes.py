"""Routes of the pack on ComfyUI's own server, all below ``/runcomfy-kling/``."""

from aiohttp import web

from . import comfy_bridge
from .core.uploaders import asset_server
from .core.uploaders.assets import PATH


def register() -> None:
    """Add the routes. Once, and before the server starts: a route that is there twice stops it."""

    @comfy_bridge.server_routes().get(f"{PATH}/{{token}}")
    async def asset(request: web.Request) -> web.StreamResponse:
        return await asset_server.serve(comfy_bridge.hosts().assets, request)
