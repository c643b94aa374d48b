"""A request that was made before: joined, collected, fetched again or reused, and never paid twice.

Nothing in here sends a job.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import errors
from .client import NEW_REQUEST_GRACE_S
from .collect import Collector
from .job import Clip, Job, thread_name
from .ledger import Ledger
from .live import Live
from .places import Places
from .rows import NewJob, Row
from .states import NOT_BINDING, JobState

LOOK_S = 1.0  # how often to look whether another process has sent the job


@dataclass(frozen=True)
class Said:
    """What to say of a clip, by how it came; ``is_free`` where the run might have paid for it."""

    joined: str
    collected: str
    fetched: str
    reused: str
    is_free: bool


NEW_TAKE = "Change the seed for a new take."
SAME_REQUEST = Said(
    joined="Joined, $0 more: this very request was already under way.",
    collected="Collected, $0 more: this very request was sent before.",
    fetched="Fetched again, $0: the clip of this very request was no longer on the disk.",
    reused="Reused, $0: this very request was made before.",
    is_free=True,
)
BY_ID = Said(
    joined="",
    collected="",
    fetched="Fetched again: its file was no longer on the disk.",
    reused="It was saved before; this is that file.",
    is_free=False,
)


class StoppedBefore(errors.JobCancelled):
    """The job that was joined had been called off before this one was asked for."""


class Attacher:
    """Finds the clips of rows that are in the ledger already."""

    def __init__(
        self,
        ledger: Ledger,
        live: Live,
        collector: Collector,
        places: Places,
        *,
        clock: Callable[[], float],
        pause: Callable[[Job, float], None],
    ) -> None:
        self._ledger = ledger
        self._live = live
        self._collector = collector
        self._places = places
        self._clock = clock
        self._pause = pause
        self._started = clock()

    def attach(
        self, job: Job, row: Row, prefix: str | None = None, said: Said = SAME_REQUEST
    ) -> Clip:
        """The clip of a row, whatever state it is in.

        Args:
            job: Shows the progress.
            row: As it was found.
            prefix: For a clip that has no file yet; None keeps the row's own.
            said: The words for how the clip came.

        Raises:
            RunComfyError: There is no clip (now).
        """
        while True:
            # where there is a live job of this row here, that one knows more than the row
            enters = row.state not in (JobState.SUBMITTING, *NOT_BINDING)
            live = self._live.enter(row.id, job) if enters else self._live.get(row.id)
            if live is not None and live is not job:
                clip = self._join(job, live)
                if clip is not None:
                    return _tell(clip, said.joined, said)
                self._pause(job, LOOK_S)
                row = self._ledger.get(row.id)
                continue
            if row.state != JobState.SUBMITTING:
                threading.current_thread().name = thread_name(row.request_id)
                break
            if job.stop_requested.is_set():
                raise errors.JobCancelled(
                    "Stopped here. Another ComfyUI is sending this very request; it may be charged."
                )
            job.update(note="Another ComfyUI is sending this very request")
            self._pause(job, LOOK_S)
            row = self._ledger.get(row.id)
        row = self._ledger.get(row.id)  # the job that was here may have ended since it was read
        return self._collect(job, replace(row, prefix=prefix or row.prefix), said)

    def _join(self, job: Job, live: Job) -> Clip | None:
        """The clip of a live job; None where that gave up waiting before this one has to."""
        stopped_before = live.stopped is not None and live.stopped <= job.started
        job.follows = live
        try:
            return live.waiter().result()
        except errors.JobTimeout:
            job.follows = None
            return None
        except errors.JobCancelled as error:
            if not stopped_before or job.stop_requested.is_set():
                raise
            job.follows = None
            raise StoppedBefore(str(error)) from None

    def by_id(
        self,
        job: Job,
        request_id: str,
        prefix: str,
        *,
        prompt: Mapping[str, Any] | None,
        workflow: Mapping[str, Any] | None,
    ) -> Clip:
        """The clip of RunComfy's id, which may have been sent from anywhere.

        Args:
            job: Shows the progress.
            request_id: RunComfy's id.
            prefix: For a clip that has no file yet.
            prompt: The graph that collects, for the metadata of a job that was sent elsewhere.
            workflow: Likewise.

        Raises:
            RunComfyError: There is no clip (now).
        """
        self._places.folder(prefix)
        transport = job.connection.transport
        row = self._ledger.find_request(transport.origin, request_id)
        if row is None:
            name = hashlib.sha256(f"{transport.origin} {request_id}".encode()).hexdigest()
            new = NewJob(
                identity=name,
                near_identity=name,
                origin=transport.origin,
                account=transport.account,
                model_id="",
                payload={},
                price_usd=0.0,
                prefix=prefix,
                duration_s=0.0,
                prompt=prompt,
                workflow=workflow,
            )
            row = self._ledger.adopt(new, request_id)
        if row.state in NOT_BINDING:
            raise _ended_before(row)
        job.price_usd = row.price_usd
        try:
            return self.attach(job, row, prefix, BY_ID)
        except errors.ResultExpired:
            if row.model_id or row.path:
                raise
            raise errors.JobFailed(
                f"RunComfy knows no request {request_id}: it is mistyped, of another account, or "
                "too old."
            ) from None

    def _collect(self, job: Job, row: Row, said: Said) -> Clip:
        if row.state in NOT_BINDING:
            raise errors.JobFailed(
                "The very same request, made at the same time, came to nothing: "
                f"{row.error or row.state.value}. Queue again.",
                request_id=row.request_id,
            )
        if row.request_id is None:
            raise _sent_before(row)
        clip = self._collector.from_disk(row)
        if clip is not None:
            if row.state in (JobState.IN_QUEUE, JobState.IN_PROGRESS):  # it was lost for a while
                self._collector.record(job, row, JobState.DOWNLOADING)
            self._collector.record(job, row, JobState.COMPLETED)
            return _tell(clip, said.reused, said)
        if not job.is_awaited and row.account != job.connection.transport.account:
            raise _of_another_account(row)  # nobody would wait to hear it
        how = said.fetched if row.path else said.collected
        if row.state == JobState.COMPLETED:
            self._ledger.reopen(row.id)
            row = replace(row, state=JobState.DOWNLOADING)
        elif row.state in (JobState.UNKNOWN, JobState.EXPIRED):  # asking again is free
            self._ledger.advance(row.id, JobState.IN_QUEUE)
            row = replace(row, state=JobState.IN_QUEUE)
        job.update(state=row.state, request_id=row.request_id)
        # what was sent elsewhere is no new request
        is_new = row.model_id != "" and self._clock() - self._started < NEW_REQUEST_GRACE_S
        try:
            clip = self._collector.collect(job, row, str(row.request_id), is_new=is_new)
        except (errors.AuthError, errors.ResultExpired):
            if row.account == job.connection.transport.account or not said.is_free:
                raise
            raise _of_another_account(row) from None
        return _tell(clip, how, said)


def _sent_before(row: Row) -> errors.SubmitUnknown:
    return errors.SubmitUnknown(
        "This very request was sent before, but no clear answer came back. It may be running and "
        "may be charged, so it is not sent again by itself. Look for it on RunComfy's Generations "
        "page; to pay for a new take, change the seed.",
        request_id=row.request_id,
    )


def _of_another_account(row: Row) -> errors.InputError:
    return errors.InputError(
        "This very request was already sent with another RunComfy account. Collect it with that "
        "account's token, or change the seed to pay for it with this one.",
        request_id=row.request_id,
    )


def _ended_before(row: Row) -> errors.RunComfyError:
    """What to say of a job that has ended without a clip."""
    if row.state == JobState.CANCELLED:
        return errors.JobCancelled(
            "This job was cancelled while it was queued. Nothing was charged, there is no clip.",
            request_id=row.request_id,
        )
    return errors.JobFailed(
        f"Kling could not make this clip: {row.error or 'RunComfy gave no reason'}",
        request_id=row.request_id,
    )


def _tell(clip: Clip, how: str, said: Said) -> Clip:
    """The clip with a note of how it came, and what it once cost where it is free now."""
    if said.is_free:
        cost = "" if clip.cost_usd is None else f" It cost ${clip.cost_usd:.2f} then."
        how = f"{how}{cost} {NEW_TAKE}"
    return replace(clip, reused=said.is_free, notes=(*filter(None, [how]), *clip.notes))
