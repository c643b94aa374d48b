"""RunComfy's calls: submit, status, result, cancel, price; and watching a job to its end.

``/result`` is the authority: a failed job can read "completed" on ``/status``. ``/status`` is asked
only while a job is queued, for its position. Addresses are built here from the request id; those
in the answers are not followed, since the token would go with them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any
from urllib.parse import quote

from . import answers, errors
from .backoff import Backoff
from .transport import Transport

CANCEL_S = 5.0
PRICE_S = 5.0  # there is the price table, too
NEW_REQUEST_GRACE_S = 30.0  # a request may not be readable in the first moments after its submit
MISSING_S = 20.0  # a 404 may be a gateway's; for so long it is RunComfy's word
MAX_ODD_ANSWERS = 20  # unknown states, or "completed" without a clip, in a row


class State(str, Enum):
    """A job's state at RunComfy, in this pack's one spelling."""

    IN_QUEUE = "in_queue"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


ENDED = (State.COMPLETED, State.FAILED, State.CANCELLED)
# /status and /result spell success differently; the others were seen in RunComfy's own clients
_SPELLINGS = {
    "in_queue": State.IN_QUEUE,
    "pending": State.IN_QUEUE,
    "waiting": State.IN_QUEUE,
    "in_progress": State.IN_PROGRESS,
    "starting": State.IN_PROGRESS,
    "processing": State.IN_PROGRESS,
    "completed": State.COMPLETED,
    "succeeded": State.COMPLETED,
    "success": State.COMPLETED,
    "failed": State.FAILED,
    "error": State.FAILED,
    "cancelled": State.CANCELLED,
    "canceled": State.CANCELLED,
}


class CancelOutcome(str, Enum):
    """What RunComfy says of a cancel: only queued jobs can be cancelled."""

    CANCELLED = "cancelled"
    NOT_CANCELLABLE = "not_cancellable"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class JobStatus:
    """One answer about a job.

    ``said`` is RunComfy's own word for the state, ``note`` why the newest poll brought nothing.
    ``cost_usd`` is what the job cost, where RunComfy says so.
    """

    request_id: str
    state: State
    said: str = ""
    queue_position: int | None = None
    video_urls: tuple[str, ...] = ()
    error: str = ""
    cost_usd: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Price:
    """A catalog price: USD per ``unit`` (``second``), possibly the silent rate only."""

    base_usd: float
    unit: str
    note: str


class RunComfyClient:
    """The Model API, one method a call. Errors are those of ``Transport``."""

    def __init__(
        self, transport: Transport, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport = transport
        self._clock = clock

    def submit(
        self,
        model_id: str,
        payload: Mapping[str, Any],
        *,
        give_up: Callable[[], bool] = lambda: False,
    ) -> str:
        """Start one paid job and return its request id. Sent exactly once; see ``post_job``."""
        return self._transport.post_job(f"/v1/models/{model_id}", payload, give_up=give_up)

    def status(self, request_id: str) -> JobStatus:
        """The state, with the queue position while queued."""
        return self._job_status(request_id, self._transport.get(_path(request_id, "status")).body)

    def result(self, request_id: str, *, timeout_s: float | None = None) -> JobStatus:
        """The state, and once it has ended the clip's address, the reason, and the cost."""
        answer = self._transport.get(
            _path(request_id, "result"), {"include_cost": "true"}, timeout_s=timeout_s
        )
        return self._job_status(request_id, answer.body)

    def cancel(self, request_id: str) -> CancelOutcome:
        """Ask for a cancel; answers within ``CANCEL_S`` seconds or raises NetworkError."""
        body = self._transport.post(_path(request_id, "cancel"), timeout_s=CANCEL_S / 2).body
        # the documented sample pairs status "completed" with outcome "cancelled"
        outcome = body.get("outcome")
        if outcome in ("cancelled", "canceled"):
            return CancelOutcome.CANCELLED
        if outcome == "not_cancellable":
            return CancelOutcome.NOT_CANCELLABLE
        return CancelOutcome.UNCLEAR

    def price(self, model_id: str) -> Price | None:
        """The catalog's base price, or None where the catalog names none."""
        body = self._transport.get(f"/v1/models/{model_id}", timeout_s=PRICE_S).body
        base = _number(body.get("base_price_usd"))
        if base is None:
            return None
        note = self._transport.clean(body.get("pricing_note") or "")
        return Price(base, self._transport.clean(body.get("price_unit") or "")[:20], note)

    def watch(
        self,
        request_id: str,
        wait: Callable[[float], None],
        *,
        poll_s: float,
        timeout_s: float,
        grace_s: float = NEW_REQUEST_GRACE_S,
        backoff: Backoff | None = None,
    ) -> Iterator[JobStatus]:
        """Yield the job's status at each poll, the last one ended.

        A poll that brings no answer yields the last status with a ``note`` and is repeated.

        Args:
            request_id: The job.
            wait: Sleeps for the given seconds; may raise to end the watching.
            poll_s: First pause between polls.
            timeout_s: How long to wait for the end, queue included.
            grace_s: How long an unknown request is taken for a very new one.
            backoff: Kept together with the other jobs of the account.

        Raises:
            ApiError: RunComfy refuses to tell (wrong token, unknown request).
            JobTimeout: Not ended in ``timeout_s``, or in a state that makes no sense; the job
                stays collectable.
        """
        started = running_since = self._clock()
        backoff = backoff or Backoff(self._clock)
        last = JobStatus(request_id, State.IN_QUEUE)
        polls = odd = 0
        missing_since: float | None = None
        while True:
            pause = 0.0
            try:
                status = self._poll(last, polls)
            except errors.NetworkError as error:
                last = replace(last, note=str(error))
                pause = error.retry_after_s or 0.0
                if isinstance(error, errors.SlowDown):
                    backoff.hold(max(pause, poll_s))
            except errors.NotFoundError as error:
                missing_since = missing_since or self._clock()
                waited, missing_s = self._clock() - started, self._clock() - missing_since
                if waited >= grace_s and missing_s >= MISSING_S:
                    raise
                last = replace(last, note=str(error))
            else:
                missing_since = None
                if status.state in ENDED and (status.video_urls or status.state != State.COMPLETED):
                    yield status
                    return
                odd = odd + 1 if status.state in (State.UNKNOWN, State.COMPLETED) else 0
                if odd > MAX_ODD_ANSWERS:
                    raise _odd_end(status)
                if last.state == State.IN_QUEUE != status.state:
                    running_since = self._clock()
                last = status
            yield last
            now = self._clock()
            if now - started >= timeout_s:
                raise errors.JobTimeout(
                    f"The clip was not ready after {now - started:.0f} s. The job goes on at "
                    "RunComfy and stays collectable by its request id.",
                    request_id=request_id,
                )
            queued = last.state == State.IN_QUEUE
            rhythm = pause_s(poll_s, now - (started if queued else running_since), queued)
            wait(max(pause, rhythm, backoff.question_s()))
            while held_s := backoff.question_s():  # meanwhile another job may have been told so
                wait(held_s)
            polls += 1

    def _job_status(self, request_id: str, body: Mapping[str, Any]) -> JobStatus:
        said = str(body.get("status") or "")
        position = body.get("queue_position")
        return JobStatus(
            request_id=request_id,
            state=_SPELLINGS.get(said.lower(), State.UNKNOWN),
            said=self._transport.clean(said)[:80],
            queue_position=position if isinstance(position, int) else None,
            video_urls=tuple(_video_urls(body.get("output"))),
            error=self._transport.clean(answers.words(body)),
            cost_usd=_number(body.get("cost")),
        )

    def _poll(self, last: JobStatus, polls: int) -> JobStatus:
        if last.state == State.IN_QUEUE and polls % 5 != 4:  # now and then ask the authority
            status = self.status(last.request_id)
            if status.state == State.IN_QUEUE:
                return status
        status = self.result(last.request_id)
        if status.state == State.IN_QUEUE:  # /result does not tell the position
            return replace(status, queue_position=last.queue_position)
        return status


def pause_s(poll_s: float, elapsed_s: float, queued: bool) -> float:
    """Seconds until the next poll: close while a short job may end, wider after.

    With the default of 3 s a job that runs for 3 minutes takes about 40 polls, and its end is seen
    within 5 s.
    """
    if queued:
        return min(max(poll_s, elapsed_s / 6), 5 * poll_s)
    if elapsed_s < 5 * poll_s:
        return poll_s
    return poll_s * (5 / 3 if elapsed_s < 100 * poll_s else 10 / 3)


def _video_urls(output: object) -> list[str]:
    """Every video address in ``output``: a string, a list, or an object of either."""
    if isinstance(output, str):
        return [output] if output else []
    if isinstance(output, list):
        return [url for item in output for url in _video_urls(item)]
    if isinstance(output, dict):
        return [u for key in ("video", "videos", "url") for u in _video_urls(output.get(key))]
    return []


def _odd_end(status: JobStatus) -> errors.JobTimeout:
    if status.state == State.COMPLETED:
        what = "RunComfy reports the job as completed, but names no clip"
    else:
        what = f"RunComfy reports a state that this version does not know: {status.said!r}"
    return errors.JobTimeout(
        f"{what}. The job may have been charged; look for it on RunComfy's Generations page. "
        "It stays collectable by its request id.",
        request_id=status.request_id,
    )


def _path(request_id: str, call: str) -> str:
    return f"/v1/requests/{quote(request_id, safe='')}/{call}"


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
