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
from aiohttp import web
from comfy import model_management
from comfy.cli_args import args
from comfy.utils import ProgressBar
from comfy_execution.utils import get_executing_context
from server import PromptServer

from .core import errors, settings
from .core.backoff import Backoff
from .core.job import Clip, Connection
from .core.jobs import JobRunner
from .core.kling import is_loopback_url
from .core.ledger import Ledger, sqlite_url
from .core.prices import Prices
from .core.transport import Transport
from .core.uploaders.choose import Hosts
from .core.uploads import Uploads
from .rehearsal import RehearsalServer

LOOK_S = 0.2
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
    hosts: Hosts | None = None
    runners: dict[str, JobRunner] = {}
    prices = Prices()
    backoffs: dict[str, Backoff] = {}
    handed_out: set[Path] = set()


def system_folder() -> Path:
    """The pack's own folder, which ComfyUI does not serve: ``user/__runcomfy_kling``."""
    return Path(folder_paths.get_system_user_directory("runcomfy_kling"))


def temp_folder() -> Path:
    """ComfyUI's temporary folder, emptied at its start."""
    return Path(folder_paths.get_temp_directory())


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


def interrupted() -> bool:
    """Whether Stop was pressed; looking does not take the flag from other nodes."""
    return bool(model_management.processing_interrupted())


def interruption() -> BaseException:
    """What a node raises that was stopped."""
    return model_management.InterruptProcessingException()


def when_prompt_ended(*, stopped: Callable[[], object], otherwise: Callable[[], object]) -> None:
    """Call ``stopped`` if this prompt turns out to have been interrupted, else ``otherwise``.

    Another node may have taken the flag. What happened is written down only when the prompt has
    ended, after its nodes are gone.
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
                ended = {name for name, _ in messages}
                (stopped if "execution_interrupted" in ended else otherwise)()
                return
            time.sleep(LOOK_S)

    threading.Thread(target=look, name="runcomfy-history", daemon=True).start()


def hand_out(clip: Clip) -> None:
    """Remember that ComfyUI's cache may hold this clip."""
    _Shared.handed_out.add(clip.path)


def collect_unfinished() -> None:
    """Go on with jobs that an earlier process left at RunComfy, in the background."""

    def collect() -> None:
        try:
            now = load_settings()
            default = not now.ledger_url
            if now.rehearsal or not now.token or (default and not _ledger_path().exists()):
                return
            runner, connection = connect()
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


def connect() -> tuple[JobRunner, Connection]:
    """Runner and connection by the settings as of now."""
    now = load_settings()
    if now.rehearsal:
        server = _rehearsal_server()
        origin, token = server.origin, server.token
    else:
        origin, token = now.api_base_url, now.require_token()
    connection = Connection(
        Transport(origin, token),
        hosts().choose(now.uploads, local_api=is_loopback_url(origin)),
        poll_s=now.poll_s,
        timeout_s=now.timeout_s,
        is_rehearsal=now.rehearsal,
        max_concurrent=now.max_concurrent_jobs,
        budget_usd=None if now.rehearsal else now.daily_budget_usd,
        prices=_Shared.prices,
        backoff=_backoff(origin),
    )
    return _runner(now.ledger_url), connection


def _backoff(origin: str) -> Backoff:
    with _Shared.lock:
        return _Shared.backoffs.setdefault(origin, Backoff())


def _runner(ledger_url: str | None) -> JobRunner:
    """The one runner of a ledger in this process."""
    key = ledger_url or str(_ledger_path())
    with _Shared.lock:
        if key not in _Shared.runners:
            ledger = Ledger(ledger_url or sqlite_url(_ledger_path()))
            _Shared.runners[key] = JobRunner(ledger, OutputPlaces())
        return _Shared.runners[key]


def hosts() -> Hosts:
    """The one set of hosts of this process."""
    with _Shared.lock:
        if _Shared.hosts is None:
            _Shared.hosts = Hosts(system_folder() / "assets")
        return _Shared.hosts


def uploads(ledger_url: str | None) -> Uploads:
    """The one memory of uploads of a ledger in this process."""
    return _runner(ledger_url).uploads


def server_routes() -> web.RouteTableDef:
    """Where routes on ComfyUI's own server are registered, before it starts."""
    return PromptServer.instance.routes


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
