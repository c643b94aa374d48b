"""Uploading for a node: on a thread of its own, with Stop, and remembered while addresses live."""

import asyncio
import threading
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from . import comfy_bridge
from .core import errors
from .core.kling import is_loopback_url
from .core.settings import Settings
from .core.upload_images import Addresses, upload_images
from .core.upload_settings import AUTO

if TYPE_CHECKING:
    import torch

LOOK_S = 0.2  # how often to look at Stop
_given: set[str] = set()


async def run_upload(node_id: str, images: "torch.Tensor", host: str) -> tuple[str, ...]:
    """Upload pictures; their addresses, in order.

    Stop ends the waiting; the picture under way is the last that is uploaded.

    Args:
        node_id: The node that shows the progress.
        images: ``[N, H, W, C]``, float 0 to 1.
        host: A host's name, or ``auto`` for what the settings say.

    Raises:
        RunComfyError: Why there is no address, in words for the user.
    """
    now = comfy_bridge.load_settings()
    stopped = threading.Event()
    done: Future[Addresses] = Future()

    def upload() -> None:
        try:
            done.set_result(_upload(node_id, now, images, host, stopped))
        except BaseException as error:  # noqa: BLE001 - the waiter raises it
            done.set_exception(error)

    threading.Thread(target=upload, name="runcomfy-upload", daemon=True).start()
    try:
        addresses = await _unless_stopped(asyncio.wrap_future(done))
    except errors.RunComfyError as error:
        comfy_bridge.show(node_id, str(error))
        raise
    finally:
        stopped.set()
    _given.update(addresses.urls)
    comfy_bridge.show(node_id, addresses.text)
    return addresses.urls


def fingerprint() -> list[str]:
    """The settings of uploads as of now, and which addresses have ended since they were given.

    ComfyUI's own cache would hand out an address that has ended.
    """
    now = comfy_bridge.load_settings()
    uploads = comfy_bridge.uploads(now.ledger_url)
    return [repr(now.uploads), *(url for url in sorted(_given) if not uploads.is_good(url))]


async def _unless_stopped(waiter: "asyncio.Future[Addresses]") -> Addresses:
    while not (await asyncio.wait({waiter}, timeout=LOOK_S))[0]:
        if comfy_bridge.interrupted():
            raise comfy_bridge.interruption()
    return waiter.result()


def _upload(
    node_id: str, now: Settings, images: "torch.Tensor", host: str, stopped: threading.Event
) -> Addresses:
    wanted = now.uploads if host == AUTO else replace(now.uploads, host=host)
    local_api = now.rehearsal or is_loopback_url(now.api_base_url)
    return upload_images(
        comfy_bridge.uploads(now.ledger_url),
        comfy_bridge.hosts().choose_address(wanted, local_api=local_api),
        images,
        show=partial(comfy_bridge.show, node_id),
        is_wanted=lambda: not stopped.is_set(),
    )
