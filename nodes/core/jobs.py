"""One paid job, from a picture to the file on disk, on threads of its own.

``JobRunner.start`` returns at once. The job then runs on a daemon thread that knows no graph and no
event loop: a sampler cannot stall it, a failing neighbour or a Stop cannot kill it, and it never
holds up the end of the process. Whoever waits does so on a ``Future`` of its own.

The order of one run: check and encode the picture, make it reachable, submit once, watch, download,
verify, give it its name. Nothing is sent before all checks have passed.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import errors
from .client import CancelOutcome, JobStatus, RunComfyClient, State
from .download import download
from .job import Clip, Job, Order, Phase
from .media import images, video
from .transport import Transport
from .uploaders.base import Uploader

log = logging.getLogger("runcomfy")

SUBMIT_ATTEMPTS = 4  # only of submits that surely did not arrive, or were refused for the rate
DURATION_TOLERANCE_S = 0.5


class JobRunner:
    """Runs jobs of one account. Owns ``transport`` from the first job on.

    Args:
        transport: The API's origin and token.
        uploader: Makes pictures reachable.
        poll_s: First pause between polls.
        timeout_s: How long to wait for a job's end at RunComfy.
        clock: Monotonic seconds.
        wait: Sleeps on an event for at most so many seconds.
    """

    def __init__(
        self,
        transport: Transport,
        uploader: Uploader,
        *,
        poll_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._transport = transport
        self._client = RunComfyClient(transport, clock=clock)
        self._uploader = uploader
        self._poll_s = poll_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._wait = wait

    def start(self, order: Order) -> Job:
        """Start a job on a daemon thread of its own."""
        job = Job(order, self._clock)
        threading.Thread(target=self._run, args=(job,), name="runcomfy-job", daemon=True).start()
        return job

    def stop(self, job: Job) -> "Future[str]":
        """Call a job off as far as that is possible; what is not goes on and is collected.

        Returns:
            A future with the sentence that says what became of the job and of its price. It may
            take ``CANCEL_S`` seconds, longer while the submit is still under way.
        """
        said: Future[str] = Future()
        job.stop_requested.set()
        job.wake.set()
        threading.Thread(
            target=self._call_off, args=(job, said), name="runcomfy-stop", daemon=True
        ).start()
        return said

    def _call_off(self, job: Job, said: "Future[str]") -> None:
        while not job.ended and job.progress.phase in (Phase.PREPARING, Phase.SUBMITTING):
            self._wait(threading.Event(), 0.05)
        phase = job.progress.phase
        price = f"about ${job.order.request.price_usd():.2f}"
        if phase in (Phase.IN_QUEUE, Phase.IN_PROGRESS):
            said.set_result(self._cancel(job, price))
        elif phase in (Phase.DOWNLOADING, Phase.COMPLETED):
            said.set_result(f"Stopped. The clip was already made ({price}) and is being saved.")
        elif phase == Phase.UNKNOWN:
            said.set_result(
                f"Stopped. The job may have reached RunComfy and may be charged, {price}."
            )
        else:
            said.set_result("Stopped before the job was sent. Nothing is charged.")

    def _cancel(self, job: Job, price: str) -> str:
        collecting = "Its clip will be saved to the output folder when it is ready."
        try:
            outcome = self._client.cancel(str(job.progress.request_id))
        except errors.RunComfyError as error:
            outcome = CancelOutcome.UNCLEAR
            log.warning("cancel brought no clear answer: %s", error)
        job.wake.set()
        if outcome == CancelOutcome.CANCELLED:
            return "Stopped. The job was still queued at RunComfy and is cancelled: no charge."
        if outcome == CancelOutcome.NOT_CANCELLABLE:
            return (
                "Stopped. Kling was already rendering: that cannot be cancelled and is charged, "
                f"{price}. {collecting}"
            )
        return (
            "Stopped, but RunComfy did not say whether the job is cancelled; it may be charged, "
            f"{price}. {collecting}"
        )

    def _run(self, job: Job) -> None:
        outcome: Clip | errors.RunComfyError
        try:
            outcome = self._make(job)
        except errors.RunComfyError as error:
            outcome = error
        except BaseException as error:  # a thread that dies silently would strand its waiters
            log.exception("a job ended unexpectedly")
            what = f"Unexpected {type(error).__name__}: {error}"
            outcome = errors.RunComfyError(what, request_id=job.progress.request_id)
        job.update(phase=_last_phase(job, outcome), note="")
        job.settle(outcome)
        self._transport.close()
        if isinstance(outcome, Clip):
            log.info("clip saved: %s (request %s)", outcome.path, outcome.request_id)
        else:
            log.warning("job ended without a clip: %s", outcome)

    def _make(self, job: Job) -> Clip:
        order = job.order
        picture = images.encode(order.start_image, max_bytes=self._uploader.max_bytes)
        url = self._uploader.upload(picture.data, picture.content_type)
        payload = order.request.payload(url)
        request_id = self._submit(job, payload)
        log.info("job sent: request %s", request_id)
        job.update(phase=Phase.IN_QUEUE, request_id=request_id)
        status = self._watch(job, request_id)
        job.update(phase=Phase.DOWNLOADING, queue_position=None, note="")
        part = order.folder / f".runcomfy-{re.sub(r'[^A-Za-z0-9_-]', '_', request_id)}.part"
        info = self._fetch(job, status, part)
        path = order.name_clip(info.width, info.height)
        part.replace(path)
        notes = list(picture.notes)
        if abs(info.duration_s - order.request.duration_s) > DURATION_TOLERANCE_S:
            notes.append(
                f"The clip lasts {info.duration_s:.1f} s; "
                f"{order.request.duration_s} s were asked for."
            )
        return Clip(path, request_id, info, self._cost(status), tuple(notes))

    def _submit(self, job: Job, payload: dict[str, Any]) -> str:
        for attempt in range(1, SUBMIT_ATTEMPTS + 1):
            if job.stop_requested.is_set():
                raise errors.JobCancelled("Stopped before the job was sent; nothing is charged.")
            job.update(phase=Phase.SUBMITTING)
            try:
                return self._client.submit(job.order.request.model_id, payload)
            except (errors.NeverLeft, errors.RateLimitError) as error:
                if attempt == SUBMIT_ATTEMPTS:
                    raise
                job.update(note=str(error))
                self._pause(job, max(error.retry_after_s or 0.0, 2.0**attempt))
        raise AssertionError("unreachable")

    def _watch(self, job: Job, request_id: str) -> JobStatus:
        phases = {State.IN_PROGRESS: Phase.IN_PROGRESS, State.COMPLETED: Phase.IN_PROGRESS}
        status = JobStatus(request_id, State.UNKNOWN)
        for status in self._client.watch(
            request_id,
            lambda seconds: self._pause(job, seconds),
            poll_s=self._poll_s,
            timeout_s=self._timeout_s,
        ):
            job.update(
                phase=phases.get(status.state, job.progress.phase),
                queue_position=status.queue_position,
                note=status.note,
            )
        if status.state == State.FAILED:
            said = status.error or "RunComfy gives no reason"
            raise errors.JobFailed(f"Kling could not make the clip: {said}", request_id=request_id)
        if status.state == State.CANCELLED:
            raise errors.JobCancelled(
                "The job was cancelled while queued; nothing is charged.", request_id=request_id
            )
        return status

    def _fetch(self, job: Job, status: JobStatus, part: Path) -> video.ClipInfo:
        """Download and verify; a link that is dead or brings no clip is asked for once more."""
        try:
            return self._download(job, status.video_urls[0], part)
        except (errors.ApiError, errors.MediaError) as error:
            log.warning("asking for the clip's address again: %s", error)
            again = self._client.result(status.request_id)
            return self._download(job, (again.video_urls or status.video_urls)[0], part)

    def _download(self, job: Job, url: str, part: Path) -> video.ClipInfo:
        download(
            self._transport,
            url,
            part,
            wait=lambda seconds: self._pause(job, seconds),
            on_bytes=lambda done: job.update(bytes_done=done),
        )
        return video.inspect(part)

    def _cost(self, status: JobStatus) -> float | None:
        """The real cost, which RunComfy may know only some time after the end."""
        if status.cost_usd is not None:
            return status.cost_usd
        with suppress(errors.NetworkError, errors.ApiError):
            return self._client.result(status.request_id).cost_usd
        return None

    def _pause(self, job: Job, seconds: float) -> None:
        self._wait(job.wake, seconds)
        job.wake.clear()


def _last_phase(job: Job, outcome: Clip | errors.RunComfyError) -> Phase:
    """A job that still goes on at RunComfy keeps its phase: it can be collected."""
    if isinstance(outcome, Clip):
        return Phase.COMPLETED
    if isinstance(outcome, errors.SubmitUnknown):
        return Phase.UNKNOWN
    if isinstance(outcome, errors.JobCancelled):
        return Phase.CANCELLED
    going_on = job.progress.request_id and not isinstance(outcome, errors.JobFailed)
    return job.progress.phase if going_on else Phase.FAILED
