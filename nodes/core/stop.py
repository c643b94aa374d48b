"""Calling a job off, and saying truthfully what became of it and of its price.

Only a job that RunComfy still has in its queue can be cancelled. What is rendering is charged, and
goes on: its clip is collected all the same.
"""

import logging
import threading
from collections.abc import Callable

from . import errors
from .client import CancelOutcome, RunComfyClient, State
from .job import Clip, Job
from .states import AT_RUNCOMFY, JobState

log = logging.getLogger("runcomfy")

CANCEL_ATTEMPTS = 10  # of cancels that brought no answer: asking again is free
CANCEL_PAUSE_S = 1.0
LOOK_S = 0.05
NOT_SENT = "Stopped before the job was sent. Nothing is charged."
COLLECTING = "Its clip will be saved to the output folder when it is ready."


def call_off(
    job: Job, *, clock: Callable[[], float], wait: Callable[[threading.Event, float], object]
) -> str:
    """Cancel the job as far as that is possible; blocks while it is being sent.

    Args:
        job: Its ``stop_requested`` is set already.
        clock: Monotonic seconds.
        wait: Sleeps on an event for at most so many seconds.

    Returns:
        The sentence for the user.
    """
    while not job.ended and job.progress.state not in AT_RUNCOMFY:
        wait(threading.Event(), LOOK_S)
    if job.ended:
        return _ended_text(job)
    if job.progress.state == JobState.DOWNLOADING:
        return (
            f"Stopped. The clip was already made ({job.price_text}) and is being saved; if that "
            "fails, queue again to fetch it."
        )
    client = RunComfyClient(job.connection.transport, clock=clock)
    outcome = _cancel(client, str(job.progress.request_id), wait)
    (job.follows or job).wake.set()
    if outcome == CancelOutcome.CANCELLED:
        return "Stopped. The job was still queued at RunComfy and is cancelled: no charge."
    if outcome == CancelOutcome.NOT_CANCELLABLE:
        return (
            "Stopped. Kling was already rendering: that cannot be cancelled and is charged, "
            f"{job.price_text}. {COLLECTING}"
        )
    return (
        "Stopped, but RunComfy did not say whether the job is cancelled; it may be charged, "
        f"{job.price_text}. {COLLECTING}"
    )


def _cancel(
    client: RunComfyClient, request_id: str, wait: Callable[[threading.Event, float], object]
) -> CancelOutcome:
    for attempt in range(CANCEL_ATTEMPTS):
        if attempt:
            wait(threading.Event(), CANCEL_PAUSE_S)
        try:
            outcome = client.cancel(request_id)
            if outcome == CancelOutcome.NOT_CANCELLABLE:
                # an earlier cancel, of here or elsewhere, may have had the job before this one
                state = client.result(request_id).state
                return CancelOutcome.CANCELLED if state == State.CANCELLED else outcome
            return outcome
        except errors.NetworkError as error:
            log.warning("cancel brought no answer: %s", error)
        except errors.RunComfyError as error:
            log.warning("cancel was refused: %s", error)
            break
    return CancelOutcome.UNCLEAR


def _ended_text(job: Job) -> str:
    """What to say when a job is stopped that had just ended by itself."""
    outcome = job.outcome
    if isinstance(outcome, Clip):
        price = "$0" if outcome.reused else job.price_text
        return f"Stopped. The clip was already there ({price}): {outcome.path}"
    if isinstance(outcome, errors.SubmitUnknown):
        return f"Stopped. The job may have reached RunComfy and may be charged, {job.price_text}."
    if isinstance(outcome, errors.JobCancelled):
        return str(outcome)
    if job.progress.request_id is None:
        return NOT_SENT
    return f"Stopped. The job had already ended: {outcome}"
