"""One job as others see it: what was ordered, where it is, and who waits for its clip."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import errors
from .kling import KlingRequest
from .media.video import ClipInfo

if TYPE_CHECKING:
    import torch


class Phase(str, Enum):
    """Where a job is. Its names are the job's states in the pack's contract."""

    PREPARING = "preparing"
    SUBMITTING = "submitting"
    IN_QUEUE = "in_queue"
    IN_PROGRESS = "in_progress"
    DOWNLOADING = "downloading"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Order:
    """What is asked for.

    ``start_image`` is ``[H, W, C]``, float 0 to 1. ``name_clip`` gives a clip of (width, height) px
    its final path: an empty file that it has created, so that no other job gets the same name.
    ``folder`` is where the download grows, on the same disk as the final path.
    """

    request: KlingRequest
    start_image: "torch.Tensor"
    folder: Path
    name_clip: Callable[[int, int], Path]


@dataclass(frozen=True)
class Clip:
    """A finished job: the file, and what is to be said about it."""

    path: Path
    request_id: str
    info: ClipInfo
    cost_usd: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """A snapshot of a job. ``since`` is the clock's reading when the job was started."""

    phase: Phase
    since: float
    request_id: str | None = None
    queue_position: int | None = None
    bytes_done: int = 0
    note: str = ""

    def text(self, now: float) -> str:
        """One line for the node: state, queue position, seconds."""
        line = {
            Phase.PREPARING: "Preparing the picture",
            Phase.SUBMITTING: "Sending the job to RunComfy",
            Phase.IN_QUEUE: "In queue at RunComfy",
            Phase.IN_PROGRESS: "Kling is rendering",
            Phase.DOWNLOADING: "Downloading the clip",
        }.get(self.phase, self.phase.value.capitalize())
        if self.phase == Phase.IN_QUEUE and self.queue_position is not None:
            line += f", position {self.queue_position}"
        if self.phase == Phase.DOWNLOADING and self.bytes_done:
            line += f", {self.bytes_done / 1e6:.1f} MB"
        line += f" · {max(0, int(now - self.since))} s"
        return f"{line}\n{self.note}" if self.note else line


class Job:
    """A job on its way. Safe to read from any thread."""

    def __init__(self, order: Order, clock: Callable[[], float]) -> None:
        self.order = order
        self.stop_requested = threading.Event()
        self.wake = threading.Event()
        self._clock = clock
        self._lock = threading.Lock()
        self._progress = Progress(Phase.PREPARING, clock())
        self._waiters: list[Future[Clip]] = []
        self._outcome: Clip | errors.RunComfyError | None = None

    @property
    def progress(self) -> Progress:
        """The newest snapshot."""
        return self._progress

    @property
    def ended(self) -> bool:
        """True once nothing more will happen."""
        return self._outcome is not None

    def text(self) -> str:
        """The newest snapshot, for the node."""
        return self._progress.text(self._clock())

    def waiter(self) -> "Future[Clip]":
        """A future for one waiter; cancelling it leaves the job and other waiters alone."""
        future: Future[Clip] = Future()
        with self._lock:
            outcome = self._outcome
            if outcome is None:
                self._waiters.append(future)
        if outcome is not None:
            _settle(future, outcome)
        return future

    def update(self, **changes: Any) -> None:
        """Change the snapshot. For the runner."""
        with self._lock:
            self._progress = replace(self._progress, **changes)

    def settle(self, outcome: Clip | errors.RunComfyError) -> None:
        """End the job for all waiters. For the runner."""
        with self._lock:
            self._outcome = outcome
            waiters, self._waiters = self._waiters, []
        for future in waiters:
            _settle(future, outcome)


def _settle(future: "Future[Clip]", outcome: Clip | errors.RunComfyError) -> None:
    with suppress(InvalidStateError):  # its waiter has given up
        if isinstance(outcome, Clip):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
