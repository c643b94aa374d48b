"""One job as others see it: what was ordered, where it is, and who waits for its clip."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import errors
from .backoff import Backoff
from .elements import Element, unmentioned
from .kling import KlingRequest
from .media.video import ClipInfo
from .prices import Prices
from .states import JobState
from .transport import Transport
from .uploaders.base import Uploader

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Order:
    """What is asked for. Pictures are ``[H, W, C]``, float 0 to 1.

    Either ``start_image`` or ``start_image_url`` is given. ``prompt`` and ``workflow`` are the
    graph in ComfyUI's two forms, to be kept in the clip's metadata.
    """

    request: KlingRequest
    prefix: str
    seed: int = 0
    start_image: "torch.Tensor | None" = None
    start_image_url: str = ""
    end_image: "torch.Tensor | None" = None
    elements: tuple[Element, ...] = ()
    prompt: Mapping[str, Any] | None = None
    workflow: Mapping[str, Any] | None = None

    @property
    def notes(self) -> list[str]:
        """What should be known of it, as sentences for the user."""
        return [
            *self.request.warnings(),
            *(
                f"Element {n}: {note}"
                for n, one in enumerate(self.elements, 1)
                for note in one.notes
            ),
            *unmentioned(self.request.texts, len(self.elements)),
        ]


@dataclass(frozen=True)
class Connection:
    """Whose account jobs go to, and how: fixed for the life of a job.

    ``max_concurrent`` is how many jobs may be in flight at once, ``budget_usd`` what may be spent
    in a day (UTC), None for no limit. ``prices`` None means the dated table alone.
    """

    transport: Transport
    uploader: Uploader
    poll_s: float
    timeout_s: float
    is_rehearsal: bool = False
    max_concurrent: int = 8
    budget_usd: float | None = None
    prices: Prices | None = None
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(frozen=True)
class Clip:
    """A finished job: the file, and what is to be said about it.

    ``row_id`` is its number in the ledger, ``reused`` says that nothing was sent for it, ``notes``
    are sentences for the user.
    """

    row_id: int
    path: Path
    request_id: str
    info: ClipInfo
    cost_usd: float | None
    reused: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """A snapshot of a job. ``since`` is the clock's reading when the job was started.

    ``in_line`` is its number among those that wait for a place, 0 if it does not.
    """

    state: JobState
    since: float
    in_line: int = 0
    request_id: str | None = None
    queue_position: int | None = None
    bytes_done: int = 0
    note: str = ""

    def text(self, now: float) -> str:
        """One line for the node: state, queue position, seconds; the note below it."""
        line = {
            JobState.PREPARING: "Preparing the picture",
            JobState.SUBMITTING: "Sending the job to RunComfy",
            JobState.IN_QUEUE: "In queue at RunComfy",
            JobState.IN_PROGRESS: "Kling is rendering",
            JobState.DOWNLOADING: "Downloading the clip",
        }.get(self.state, self.state.value.capitalize())
        if self.state == JobState.PREPARING and self.in_line:
            line = f"Waiting its turn, number {self.in_line} in line"
        if self.state == JobState.IN_QUEUE and self.queue_position is not None:
            line += f", position {self.queue_position}"
        if self.state == JobState.DOWNLOADING and self.bytes_done:
            line += f", {self.bytes_done / 1e6:.1f} MB"
        line += f" · {max(0, int(now - self.since))} s"
        return f"{line}\n{self.note}" if self.note else line


class Job:
    """A job on its way. Safe to read from any thread.

    ``price_usd`` is the estimate; ``is_new`` whether this run pays it, None while nobody knows;
    ``is_awaited`` whether a node waits for the clip. ``notes`` are sentences that come with it.
    ``follows`` is the live job of the very same request, where there was one. ``unwritten`` holds
    states that the ledger could not take yet.
    """

    def __init__(
        self,
        price_usd: float,
        connection: Connection,
        clock: Callable[[], float],
        *,
        is_awaited: bool = True,
    ) -> None:
        self.price_usd = price_usd
        self.is_new: bool | None = None
        self.is_awaited = is_awaited
        self.notes: list[str] = []
        self.connection = connection
        self.follows: Job | None = None
        self.unwritten: list[tuple[JobState, dict[str, Any]]] = []
        self.stop_requested = threading.Event()
        self.wake = threading.Event()
        self.started = clock()
        self.stopped: float | None = None
        self.cancelling = threading.Lock()
        self.is_cancelled = False
        self._clock = clock
        self._lock = threading.Lock()
        self._progress = Progress(JobState.PREPARING, clock())
        self._waiters: list[Future[Clip]] = []
        self._outcome: Clip | errors.RunComfyError | None = None

    @property
    def progress(self) -> Progress:
        """The newest snapshot: of the job that this one follows, where it follows one."""
        return self.follows.progress if self.follows else self._progress

    @property
    def ended(self) -> bool:
        """True once nothing more will happen."""
        return self._outcome is not None

    @property
    def outcome(self) -> Clip | errors.RunComfyError | None:
        """What the job came to; None before its end."""
        return self._outcome

    @property
    def price_text(self) -> str:
        """What the job costs, as part of a sentence."""
        return (
            "$0 in a rehearsal" if self.connection.is_rehearsal else f"about ${self.price_usd:.2f}"
        )

    def text(self) -> str:
        """The newest snapshot, for the node."""
        return self.progress.text(self._clock())

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


def thread_name(request_id: str | None = None) -> str:
    """The name of a job's thread, by which the pack, when loaded anew, sees what is watched."""
    return f"runcomfy-job {request_id}" if request_id else "runcomfy-job"


def _settle(future: "Future[Clip]", outcome: Clip | errors.RunComfyError) -> None:
    with suppress(InvalidStateError):  # its waiter has given up
        if isinstance(outcome, Clip):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
