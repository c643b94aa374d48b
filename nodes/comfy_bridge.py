"""The only file that touches ComfyUI's internals.

Everything ComfyUI can do for a job goes through here: its folders, its Stop flag, its progress
texts. What is above knows only the public node API, what is below knows no ComfyUI at all.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import folder_paths
from comfy import model_management
from server import PromptServer

from .core import errors, settings
from .core.job import Clip, Job, Order
from .core.jobs import JobRunner
from .core.kling import KlingRequest
from .core.transport import Transport
from .core.uploaders.inline import InlineUploader
from .rehearsal import RehearsalServer

LOOK_S = 0.2  # how often a waiting node looks at Stop and at its job
STOP_S = 6.0  # how long a stopped node waits to learn what became of its job

log = logging.getLogger("runcomfy")
_rehearsal: RehearsalServer | None = None
_rehearsal_lock = threading.Lock()


def system_folder() -> Path:
    """The pack's own folder, which ComfyUI does not serve: ``user/__runcomfy_kling``."""
    return Path(folder_paths.get_system_user_directory("runcomfy_kling"))


def load_settings() -> settings.Settings:
    """Settings as of now; raises ConfigError."""
    return settings.load(system_folder(), os.environ)


async def run_job(node_id: str, request: KlingRequest, start_image: "object", prefix: str) -> Clip:
    """Run one paid job and wait for its clip, with progress on the node.

    Stop is seen within ``LOOK_S`` and ends the waiting with ComfyUI's own interrupt. A job that can
    no longer be called off goes on in the background and its clip is saved all the same.

    Args:
        node_id: The node that shows the progress.
        request: The checked values.
        start_image: The IMAGE tensor ``[H, W, C]``.
        prefix: ComfyUI's ``filename_prefix`` for the clip.

    Raises:
        RunComfyError: Why there is no clip, in words for the user.
    """
    name_clip, folder = _clip_names(prefix)
    runner, rehearsed = await asyncio.to_thread(_runner)
    order = Order(request, start_image, folder, name_clip)
    job = runner.start(order)
    waiter = asyncio.wrap_future(job.waiter())
    shown = ""
    try:
        while not (await asyncio.wait({waiter}, timeout=LOOK_S))[0]:
            if model_management.processing_interrupted():
                await _stop(node_id, runner, job)
                raise model_management.InterruptProcessingException()
            text = job.text()
            if text != shown:
                show(node_id, text)
                shown = text
        clip = waiter.result()
    finally:
        waiter.cancel()
    show(node_id, _summary(clip, request, rehearsed))
    return clip


def show(node_id: str, text: str) -> None:
    """Put a text on the node. Only for the coroutine that runs the node."""
    PromptServer.instance.send_progress_text(text, node_id)


def relative_to_output(path: Path) -> tuple[str, str]:
    """``(filename, subfolder)`` of a saved file, as ComfyUI's previews want them."""
    folder = path.parent.relative_to(folder_paths.get_output_directory())
    return path.name, folder.as_posix() if folder.parts else ""


async def _stop(node_id: str, runner: JobRunner, job: Job) -> None:
    show(node_id, "Stopping …")
    said = asyncio.wrap_future(runner.stop(job))
    done, _ = await asyncio.wait({said}, timeout=STOP_S)
    text = (
        said.result()
        if done
        else "Stopped, but RunComfy has not answered yet. If it takes the job, the job is called "
        "off where that is possible; else it is charged and its clip is saved to the output folder."
    )
    log.warning("%s", text)
    show(node_id, text)


def _runner() -> tuple[JobRunner, bool]:
    """A runner by the settings as of now, and whether it only rehearses. Blocks a little."""
    now = load_settings()
    if now.rehearsal:
        server = _rehearsal_server()
        origin, token = server.origin, server.token
    else:
        origin, token = now.api_base_url, now.require_token()
    runner = JobRunner(
        Transport(origin, token), InlineUploader(), poll_s=now.poll_s, timeout_s=now.timeout_s
    )
    return runner, now.rehearsal


def _rehearsal_server() -> RehearsalServer:
    """The stand-in API inside this process, started when it is first needed."""
    global _rehearsal
    with _rehearsal_lock:
        if _rehearsal is None:
            folder = system_folder() / "rehearsal"
            folder.mkdir(parents=True, exist_ok=True)
            _rehearsal = RehearsalServer(folder).start()
            log.info("rehearsal: jobs go to a local stand-in at %s, free", _rehearsal.origin)
        return _rehearsal


def _clip_names(prefix: str) -> tuple[Callable[[int, int], Path], Path]:
    """How to name a clip by ComfyUI's prefix rules, and the folder it will be in.

    The prefix is checked here, before anything is sent. The name is taken when the clip is there,
    by creating the file, so that parallel jobs never get the same one.
    """
    output = folder_paths.get_output_directory()
    try:
        folder = folder_paths.get_save_image_path(prefix, output)[0]
    except Exception as error:
        raise errors.InputError(
            f"filename_prefix {prefix!r} leaves ComfyUI's output folder. Use a path inside it, "
            "such as video/runcomfy-kling."
        ) from error

    def name_clip(width: int, height: int) -> Path:
        while True:
            place, name, counter, _, _ = folder_paths.get_save_image_path(
                prefix, output, width, height
            )
            path = Path(place) / f"{name}_{counter:05}_.mp4"
            try:
                path.open("xb").close()
            except FileExistsError:
                continue
            return path

    return name_clip, Path(folder)


def _summary(clip: Clip, request: KlingRequest, rehearsed: bool) -> str:
    filename, subfolder = relative_to_output(clip.path)
    if rehearsed:
        cost = "rehearsal, nothing charged"
    elif clip.cost_usd is not None:
        cost = f"cost ${clip.cost_usd:.2f}"
    else:
        cost = f"about ${request.price_usd():.2f}"
    place = f"{subfolder}/{filename}" if subfolder else filename
    lines = [
        f"Saved {place}",
        f"{clip.info.duration_s:.1f} s, {clip.info.width} × {clip.info.height}, {cost}",
        *clip.notes,
    ]
    return "\n".join(lines)
