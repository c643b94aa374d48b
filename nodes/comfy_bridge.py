"""The only file that touches ComfyUI's internals.

Everything ComfyUI can do for a job goes through here: its folders, its Stop flag, its progress
texts. What is above knows only the public node API, what is below knows no ComfyUI at all.
"""

import asyncio
import contextvars
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import folder_paths
from comfy import model_management
from comfy.cli_args import args
from comfy.utils import ProgressBar
from comfy_execution.utils import get_executing_context
from server import PromptServer

from .core import errors, settings
from .core.job import Clip, Connection, Job, Order
from .core.jobs import JobRunner
from .core.ledger import Ledger, sqlite_url
from .core.transport import Transport
from .core.uploaders.inline import InlineUploader
from .rehearsal import RehearsalServer

LOOK_S = 0.2  # how often a waiting node looks at Stop and at its job
STOP_S = 6.0  # how long a stopped node waits to learn what became of its job
HISTORY_S = 60.0  # how long after a node is cancelled its prompt may take to end
LEDGER_NAME = "ledger.db"

log = logging.getLogger("runcomfy")

Tick = Callable[[int, int], None]
Decoded = TypeVar("Decoded")


class _Shared:
    """What all nodes of this process share, made when the first of them needs it."""

    lock = threading.Lock()
    decoding = threading.Lock()
    rehearsal: RehearsalServer | None = None
    runners: dict[str, JobRunner] = {}
    handed_out: set[Path] = set()


def system_folder() -> Path:
    """The pack's own folder, which ComfyUI does not serve: ``user/__runcomfy_kling``."""
    return Path(folder_paths.get_system_user_directory("runcomfy_kling"))


def load_settings() -> settings.Settings:
    """Settings as of now; raises ConfigError."""
    return settings.load(system_folder(), os.environ)


def account_fingerprint() -> list[str]:
    """Where jobs go as of now, and which clips were deleted since; tells no secret.

    ComfyUI's own cache would hand out a deleted clip; asked again, the node fetches it for $0.
    """
    now = load_settings()
    missing = [str(path) for path in sorted(_Shared.handed_out) if not path.exists()]
    if now.rehearsal:
        return ["rehearsal", *missing]
    return [now.api_base_url, Transport(now.api_base_url, now.token or "").account, *missing]


def graph_metadata(prompt: object, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """``prompt`` and ``workflow`` for a clip's metadata; nothing where ComfyUI saves none.

    A copy as of now: the executor goes on writing into the prompt, not only JSON.
    """
    if args.disable_metadata:
        return {}
    graph = {"prompt": prompt, "workflow": (extra or {}).get("workflow")}
    copied = json.loads(json.dumps(graph, default=str), parse_constant=lambda _: None)
    return {key: value for key, value in copied.items() if value is not None}


async def run_job(node_id: str, order: Order) -> Clip:
    """Run one paid job and wait for its clip, with progress on the node.

    Stop is seen within ``LOOK_S`` and ends the waiting with ComfyUI's own interrupt. A job that can
    no longer be called off goes on in the background and its clip is saved all the same.

    Args:
        node_id: The node that shows the progress.
        order: What is asked for.

    Raises:
        RunComfyError: Why there is no clip, in words for the user.
    """
    # the job starts before the first await: a sampler may hold the loop from there on
    runner, connection = _connect()
    job = runner.start(order, connection)
    waiter = asyncio.wrap_future(job.waiter())
    try:
        clip = await _wait(node_id, runner, job, waiter)
    except asyncio.CancelledError:
        # Stop, seen by another node first, or a failed neighbour: only the first ends the job
        show(node_id, "Ended by another node. The job goes on at RunComfy, its clip is saved.")
        if model_management.processing_interrupted():
            _stop_unawaited(node_id, runner, job)
        else:
            _stop_if_history_says_so(node_id, runner, job)
        raise
    except errors.RunComfyError as error:
        show(node_id, str(error))
        raise
    finally:
        waiter.cancel()
    _Shared.handed_out.add(clip.path)
    await asyncio.to_thread(runner.collected, clip)
    show(node_id, _summary(clip, job))
    return clip


async def _wait(node_id: str, runner: JobRunner, job: Job, waiter: "asyncio.Future[Clip]") -> Clip:
    shown = ""
    while not (await asyncio.wait({waiter}, timeout=LOOK_S))[0]:
        if model_management.processing_interrupted():
            await _stop(node_id, runner, job)
            raise model_management.InterruptProcessingException()
        text = job.text()
        if text != shown:
            show(node_id, text)
            shown = text
    return waiter.result()


def _stop_unawaited(node_id: str, runner: JobRunner, job: Job) -> None:
    """Stop a job whose node is gone already; the text still comes to the node."""
    runner.stop(job).add_done_callback(lambda said: show(node_id, said.result()))


def _stop_if_history_says_so(node_id: str, runner: JobRunner, job: Job) -> None:
    """Stop the job if its prompt turns out to have been interrupted: a sampler may take the flag.

    That is written down only when the prompt has ended, after this node is gone.
    """
    context = get_executing_context()
    queue = PromptServer.instance.prompt_queue
    if context is None or queue is None:
        return

    def look() -> None:
        end = time.monotonic() + HISTORY_S
        while time.monotonic() < end:
            entry = queue.get_history(prompt_id=context.prompt_id).get(context.prompt_id)
            if entry is not None:
                messages = (entry.get("status") or {}).get("messages") or []
                if any(name == "execution_interrupted" for name, _ in messages):
                    _stop_unawaited(node_id, runner, job)
                return
            time.sleep(LOOK_S)

    threading.Thread(target=look, name="runcomfy-history", daemon=True).start()


def collect_unfinished() -> None:
    """Go on with jobs that an earlier process left at RunComfy, in the background."""

    def collect() -> None:
        try:
            now = load_settings()
            default = not now.ledger_url
            if now.rehearsal or not now.token or (default and not _ledger_path().exists()):
                return
            runner, connection = _connect()
            jobs = runner.resume(connection)
        except errors.RunComfyError as error:
            log.warning("unfinished jobs were not picked up: %s", error)
            return
        if jobs:
            log.info("picked up %d unfinished job(s), their clips will be saved", len(jobs))

    threading.Thread(target=collect, name="runcomfy-pick-up", daemon=True).start()


def show(node_id: str, text: str) -> None:
    """Put a text on the node. From any thread: ComfyUI hands it to its own loop."""
    PromptServer.instance.send_progress_text(text, node_id)


def place_in_output(path: Path) -> tuple[str, str] | None:
    """``(filename, subfolder)`` of a file, as ComfyUI's previews want them.

    None for a file elsewhere, such as one from before the output folder was changed.
    """
    try:
        folder = path.parent.relative_to(folder_paths.get_output_directory())
    except ValueError:
        return None
    return path.name, folder.as_posix() if folder.parts else ""


def is_output_wired(slot: int) -> bool:
    """Whether the node that runs, or is asked for its fingerprint, has that output wired.

    ComfyUI tells a node only of its inputs; the running prompt knows. True where it cannot be told,
    as inside of loops.
    """
    context, queue = get_executing_context(), PromptServer.instance.prompt_queue
    if context is None or queue is None:
        return True
    for _, prompt_id, prompt, *_ in queue.get_current_queue_volatile()[0]:
        if prompt_id == context.prompt_id and context.node_id in prompt:
            link = [context.node_id, slot]
            inputs = (value for node in prompt.values() for value in node["inputs"].values())
            return any(list(value) == link for value in inputs if isinstance(value, list | tuple))
    return True


async def decode(work: Callable[[Tick], Decoded]) -> Decoded:
    """Run work that takes all cores and much memory in a thread, one at a time in this process.

    Args:
        work: Given a ``tick(done, total)`` to call often: it moves the node's bar, and ends the
            work by ComfyUI's own interrupt when the user pressed Stop or a neighbour failed.
    """
    future: Future[Decoded] = Future()
    ended = threading.Event()
    bar = ProgressBar(1)

    def tick(done: int, total: int) -> None:
        if ended.is_set() or model_management.processing_interrupted():
            raise model_management.InterruptProcessingException()
        bar.update_absolute(done, total)

    def run() -> None:
        try:
            if future.set_running_or_notify_cancel():
                future.set_result(context.run(work, tick))
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)
        finally:
            _Shared.decoding.release()

    while not _Shared.decoding.acquire(blocking=False):
        await asyncio.sleep(LOOK_S)
        if model_management.processing_interrupted():
            raise model_management.InterruptProcessingException()
    context = contextvars.copy_context()
    threading.Thread(target=run, name="runcomfy-decode", daemon=True).start()
    try:
        return await asyncio.wrap_future(future)
    finally:
        ended.set()


class OutputPlaces:
    """ComfyUI's output folder and its rules for ``filename_prefix``."""

    def folder(self, prefix: str) -> Path:
        """The folder of the clips, created if need be; raises InputError if out of bounds."""
        folder, name, _ = self._parts(prefix, 9999, 9999)
        probe = folder / f"{name}_00000_.tmp"  # of a clip's name in length and characters
        try:
            probe.touch()
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise errors.InputError(
                f"filename_prefix {prefix!r} cannot be a file's name here: "
                f"{error.strerror or error}. Choose another one."
            ) from None
        return folder

    def candidate(self, prefix: str, width: int, height: int) -> Path:
        """The next free name for a clip of this size in pixels. Nothing is created."""
        folder, name, counter = self._parts(prefix, width, height)
        return folder / f"{name}_{counter:05}_.mp4"

    def _parts(self, prefix: str, width: int, height: int) -> tuple[Path, str, int]:
        output = folder_paths.get_output_directory()
        prefix = os.path.normpath(prefix.strip())  # "clips/" has no name, and no count of its own
        if prefix == os.curdir:
            raise errors.InputError("filename_prefix is empty. Set it to such as video/clip.")
        try:
            folder, name, counter, _, _ = folder_paths.get_save_image_path(
                prefix, output, width, height
            )
        except OSError as error:
            raise errors.InputError(
                f"The folder of filename_prefix {prefix!r} cannot be used: {error}. Choose another "
                "one, or mend that."
            ) from None
        except Exception:  # noqa: BLE001 - ComfyUI raises it bare
            raise errors.InputError(
                f"filename_prefix {prefix!r} leaves ComfyUI's output folder. Use a path inside it, "
                "such as video/runcomfy-kling."
            ) from None
        return Path(folder), name, counter


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


def _connect() -> tuple[JobRunner, Connection]:
    """Runner and connection by the settings as of now."""
    now = load_settings()
    if now.rehearsal:
        server = _rehearsal_server()
        origin, token = server.origin, server.token
    else:
        origin, token = now.api_base_url, now.require_token()
    connection = Connection(
        Transport(origin, token),
        InlineUploader(),
        poll_s=now.poll_s,
        timeout_s=now.timeout_s,
        is_rehearsal=now.rehearsal,
    )
    return _runner(now.ledger_url), connection


def _runner(ledger_url: str | None) -> JobRunner:
    """The one runner of a ledger in this process."""
    key = ledger_url or str(_ledger_path())
    with _Shared.lock:
        if key not in _Shared.runners:
            ledger = Ledger(ledger_url or sqlite_url(_ledger_path()))
            _Shared.runners[key] = JobRunner(ledger, OutputPlaces())
        return _Shared.runners[key]


def _ledger_path() -> Path:
    return system_folder() / LEDGER_NAME


def _rehearsal_server() -> RehearsalServer:
    """The stand-in API inside this process, started when it is first needed."""
    with _Shared.lock:
        if _Shared.rehearsal is None:
            folder = system_folder() / "rehearsal"
            shutil.rmtree(folder, ignore_errors=True)  # nothing of an earlier process is served
            folder.mkdir(parents=True)
            _Shared.rehearsal = RehearsalServer(folder).start()
            log.info("rehearsal: jobs go to a local stand-in, free: %s", _Shared.rehearsal.origin)
        return _Shared.rehearsal


def _summary(clip: Clip, job: Job) -> str:
    if clip.reused:
        cost = "$0"
    elif job.connection.is_rehearsal:
        cost = "rehearsal, nothing charged"
    elif clip.cost_usd is not None:
        cost = f"cost ${clip.cost_usd:.2f}"
    else:
        cost = job.price_text
    filename, subfolder = place_in_output(clip.path) or (str(clip.path), "")
    lines = [
        f"Saved {subfolder}/{filename}" if subfolder else f"Saved {filename}",
        f"{clip.info.duration_s:.1f} s, {clip.info.width} × {clip.info.height}, {cost}",
        *clip.notes,
    ]
    return "\n".join(lines)
