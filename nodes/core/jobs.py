"""Paid jobs on threads of their own: each request is sent once, whoever asks for it how often.

``JobRunner.start`` returns at once. The job then runs on a daemon thread that knows no graph and no
event loop: a sampler cannot stall it, a failing neighbour or a Stop cannot kill it, and it never
holds up the end of the process. Whoever waits does so on a ``Future`` of its own.

The order of one run: check the pictures, name the request, look in the ledger (attach, or go on),
encode, upload, claim, send, write down the request id, collect. Nothing is sent before all checks
have passed, and nothing that the ledger has not taken.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from . import errors, stop
from .client import NEW_REQUEST_GRACE_S, RunComfyClient
from .collect import Collector, Places
from .identity import Identity, identify
from .job import Clip, Connection, Job, Order
from .kling import IMAGE_MAX_BYTES, is_loopback_url
from .ledger import Ledger, NewJob, Row
from .media import images
from .states import NOT_BINDING, JobState
from .transport import Transport

log = logging.getLogger("runcomfy")

SUBMIT_ATTEMPTS = 4  # only of submits that surely did not arrive, or were refused for the rate
FLUSH_ATTEMPTS = 5
LOOK_S = 1.0  # how often to look whether another process has sent the job
NEW_TAKE = "Change the seed for a new take."
JOINED = "Joined, $0 more: this very request was already under way."
COLLECTED = "Collected, $0 more: this very request was sent before."
FETCHED = "Fetched again, $0: the clip of this very request was no longer on the disk."
REUSED = "Reused, $0: this very request was made before."


class JobRunner:
    """Runs the jobs of one ledger, in one process.

    Args:
        ledger: Where jobs are written before they are sent.
        places: Where clips go.
        clock: Monotonic seconds.
        wait: Sleeps on an event for at most so many seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        places: Places,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._ledger = ledger
        self._places = places
        self._clock = clock
        self._wait = wait
        self._started = clock()
        self._collector = Collector(ledger, places, clock=clock, pause=self._pause)
        self._live: dict[int, Job] = {}
        self._lock = threading.Lock()

    def start(self, order: Order, connection: Connection) -> Job:
        """Start a job on a daemon thread of its own."""
        job = Job(order.request.price_usd(), connection, self._clock)
        return self._begin(job, lambda: self._make(job, order))

    def resume(self, connection: Connection) -> list[Job]:
        """Go on with every job of this account that RunComfy has and nobody watches.

        Nothing is sent. The clips get the names that their graphs asked for.
        """
        transport, resumed = connection.transport, []
        # in this process the pack may have been loaded before: its modules are gone, not its jobs
        watched = {thread.name for thread in threading.enumerate()}
        for row in self._ledger.take_over(transport.origin, transport.account):
            if _thread_name(row.request_id) in watched:
                continue
            job = Job(row.price_usd, connection, self._clock)
            with self._lock:
                if self._live.setdefault(row.id, job) is not job:
                    continue
            resumed.append(self._begin(job, partial(self._attach, job, row)))
        return resumed

    def _begin(self, job: Job, make: Callable[[], Clip]) -> Job:
        threading.Thread(
            target=self._run, args=(job, make), name=_thread_name(), daemon=True
        ).start()
        return job

    def stop(self, job: Job) -> "Future[str]":
        """Call a job off as far as that is possible; what is not goes on and is collected.

        Returns:
            A future with the sentence that says what became of the job and of its price; the same
            one when the job is stopped again. It may take ``CANCEL_S`` seconds, longer while the
            submit is still under way.
        """
        said: Future[str] = Future()
        with self._lock:
            if job.stopping is not None:
                return job.stopping
            job.stopping = said
        for one in (job, job.follows):
            if one is not None:
                one.stop_requested.set()
                one.wake.set()

        def call_off() -> None:
            said.set_result(stop.call_off(job, clock=self._clock, wait=self._wait))

        threading.Thread(target=call_off, name="runcomfy-stop", daemon=True).start()
        return said

    def collected(self, clip: Clip) -> None:
        """Note that a graph has the clip; a ledger that cannot be written now costs only a hint."""
        try:
            self._ledger.collected(clip.row_id)
        except errors.LedgerError as error:
            log.warning("%s", error)

    def _run(self, job: Job, make: Callable[[], Clip]) -> None:
        outcome: Clip | errors.RunComfyError
        try:
            outcome = make()
        except errors.RunComfyError as error:
            outcome = error
        except BaseException as error:  # a thread that dies silently would strand its waiters
            log.exception("a job ended unexpectedly")
            outcome = errors.RunComfyError(f"Unexpected {type(error).__name__}: {error}")
        if isinstance(outcome, errors.RunComfyError) and not outcome.request_id:
            outcome.request_id = job.progress.request_id
        job.update(state=_last_state(job, outcome), note="")
        if job.unwritten:  # nobody waits for a ledger that is in trouble
            job.settle(outcome)
            self._flush(job)
        with self._lock:
            self._live = {row_id: live for row_id, live in self._live.items() if live is not job}
        if not job.ended:
            job.settle(outcome)
        job.connection.transport.close()
        if isinstance(outcome, Clip):
            log.info("clip: %s (request %s)", outcome.path, outcome.request_id)
        else:
            log.warning("job ended without a clip: %s", outcome)

    def _flush(self, job: Job) -> None:
        """A last try to write what the ledger could not take: lost here, it is lost."""
        with self._lock:
            row_id = next((row_id for row_id, live in self._live.items() if live is job), None)
        for attempt in range(FLUSH_ATTEMPTS if job.unwritten and row_id is not None else 0):
            if attempt:
                self._wait(threading.Event(), LOOK_S)
            with suppress(errors.LedgerError):
                self._collector.flush(job, int(row_id or 0))
                return

    def _make(self, job: Job, order: Order) -> Clip:
        transport = job.connection.transport
        url = "" if order.start_image is not None else order.start_image_url
        if is_loopback_url(url) and not is_loopback_url(transport.origin):
            raise errors.InputError(
                f"start_image_url is {url!r}, an address of this machine, which RunComfy cannot "
                "reach. Wire Load Image to start_image instead."
            )
        self._places.folder(order.prefix)  # a prefix that cannot be used is refused before a charge
        start = (
            images.check(order.start_image, "start_image")
            if order.start_image is not None
            else None
        )
        end = images.check(order.end_image, "end_image") if order.end_image is not None else None
        identity = identify(
            order.request,
            origin=transport.origin,
            seed=order.seed,
            start_image=start.fingerprint() if start else order.start_image_url,
            end_image=end.fingerprint() if end else None,
        )
        row = self._ledger.find(identity.full)
        if row is not None:
            return self._attach(job, row, order.prefix)
        notes = order.request.warnings()
        payload = order.request.payload(
            self._url(job, start, notes) if start else order.start_image_url,
            end_image_url=self._url(job, end, notes) if end else None,
        )
        if job.stop_requested.is_set():
            raise errors.JobCancelled(stop.NOT_SENT)
        near = self._ledger.find_near(identity.near, identity.full)
        if near is not None and near.request_id and near.id not in self._live:
            notes.append(
                f"Request {near.request_id} differs from this one in its pixels only and was never "
                "collected. Did the picture change by itself? Its clip can still be collected."
            )
        row, is_ours = self._claim(job, order, identity, payload)
        if not is_ours:
            return self._attach(job, row, order.prefix)
        request_id = self._send(job, row, order.request.model_id, payload)
        clip = self._collector.collect(job, row, request_id, is_new=True)
        return replace(clip, notes=(*notes, *clip.notes))

    def _url(self, job: Job, picture: images.Picture, notes: list[str]) -> str:
        uploader = job.connection.uploader
        max_bytes = min(uploader.max_bytes, IMAGE_MAX_BYTES)
        encoded = images.encode(picture, max_bytes=max_bytes)
        notes.extend(encoded.notes)
        return uploader.upload(encoded.data, encoded.content_type)

    def _claim(
        self, job: Job, order: Order, identity: Identity, payload: dict[str, Any]
    ) -> tuple[Row, bool]:
        transport = job.connection.transport
        new = NewJob(
            identity=identity.full,
            near_identity=identity.near,
            origin=transport.origin,
            account=transport.account,
            model_id=order.request.model_id,
            payload=identity.payload,
            price_usd=job.price_usd,
            prefix=order.prefix,
            duration_s=order.request.duration_s,
            prompt=order.prompt,
            workflow=order.workflow,
        )
        with self._lock:  # so that nobody here finds the row without its live job
            row, is_ours = self._ledger.claim(new, post_limit_s=Transport.post_limit_s(payload))
            if is_ours:
                self._live[row.id] = job
        return row, is_ours

    def _send(self, job: Job, row: Row, model_id: str, payload: dict[str, Any]) -> str:
        """Send the claimed job; what comes of it is written when this returns or raises."""
        client = RunComfyClient(job.connection.transport, clock=self._clock)
        job.update(state=JobState.SUBMITTING)
        try:
            request_id = self._submit(job, row, client, model_id, payload)
        except errors.SubmitUnknown as error:
            # the row without its request id would be found as unknown all the same
            values = {"request_id": error.request_id} if error.request_id else {}
            self._collector.record(job, row, JobState.UNKNOWN, error=str(error), **values)
            raise
        except errors.JobCancelled:
            self._collector.record(job, row, JobState.CANCELLED)
            raise
        except (errors.NeverLeft, errors.ApiError, errors.LedgerError) as error:
            self._collector.record(job, row, JobState.FAILED, error=str(error))
            raise
        job.update(request_id=request_id)
        threading.current_thread().name = _thread_name(request_id)
        self._collector.record(job, row, JobState.IN_QUEUE, request_id=request_id)
        log.info("job sent: request %s", request_id)
        return request_id

    def _submit(
        self, job: Job, row: Row, client: RunComfyClient, model_id: str, payload: dict[str, Any]
    ) -> str:
        attempt = 0
        while True:
            attempt += 1
            if job.stop_requested.is_set():
                raise errors.JobCancelled(stop.NOT_SENT)
            try:
                return client.submit(model_id, payload, give_up=job.stop_requested.is_set)
            except (errors.NeverLeft, errors.RateLimitError) as error:
                if attempt == SUBMIT_ATTEMPTS:
                    raise
                pause_s = max(error.retry_after_s or 0.0, 2.0**attempt)
                self._ledger.renew(row.id, post_limit_s=pause_s + Transport.post_limit_s(payload))
                job.update(note=str(error))
                self._pause(job, pause_s)

    def _attach(self, job: Job, row: Row, prefix: str | None = None) -> Clip:
        """Join a request that was made before; nothing in here sends anything."""
        while True:
            with self._lock:
                if row.state not in (JobState.SUBMITTING, *NOT_BINDING):
                    self._live.setdefault(row.id, job)
                live = self._live.get(row.id, job)
            if live is not job:
                job.follows = live
                return _again(live.waiter().result(), JOINED)
            if row.state != JobState.SUBMITTING:
                threading.current_thread().name = _thread_name(row.request_id)
                break
            if job.stop_requested.is_set():
                raise errors.JobCancelled(
                    "Stopped here. Another ComfyUI is sending this very request; it may be charged."
                )
            job.update(note="Another ComfyUI is sending this very request")
            self._pause(job, LOOK_S)
            row = self._ledger.get(row.id)
        return self._collect_again(job, replace(row, prefix=prefix or row.prefix))

    def _collect_again(self, job: Job, row: Row) -> Clip:
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
            self._collector.record(job, row, JobState.COMPLETED)
            return _again(clip, REUSED)
        how = FETCHED if row.path else COLLECTED
        if row.state == JobState.COMPLETED:
            self._ledger.reopen(row.id)
            row = replace(row, state=JobState.DOWNLOADING)
        elif row.state in (JobState.UNKNOWN, JobState.EXPIRED):  # asking again is free
            self._ledger.advance(row.id, JobState.IN_QUEUE)
            row = replace(row, state=JobState.IN_QUEUE)
        job.update(state=row.state, request_id=row.request_id)
        is_new = self._clock() - self._started < NEW_REQUEST_GRACE_S
        try:
            clip = self._collector.collect(job, row, str(row.request_id), is_new=is_new)
        except (errors.AuthError, errors.ResultExpired):
            if row.account == job.connection.transport.account:
                raise
            raise errors.InputError(
                "This very request was already sent with another RunComfy account. Collect it with "
                "that account's token, or change the seed to pay for it with this one.",
                request_id=row.request_id,
            ) from None
        return _again(clip, how)

    def _pause(self, job: Job, seconds: float) -> None:
        self._wait(job.wake, seconds)
        job.wake.clear()


def _thread_name(request_id: str | None = None) -> str:
    """The name of a job's thread, by which the pack, when loaded anew, sees what is watched."""
    return f"runcomfy-job {request_id}" if request_id else "runcomfy-job"


def _sent_before(row: Row) -> errors.SubmitUnknown:
    return errors.SubmitUnknown(
        "This very request was sent before, but no clear answer came back. It may be running and "
        "may be charged, so it is not sent again by itself. Look for it on RunComfy's Generations "
        "page; to pay for a new take, change the seed.",
        request_id=row.request_id,
    )


def _again(clip: Clip, how: str) -> Clip:
    """A clip that nothing was sent for now, with a note of how it came and what it once cost."""
    cost = "" if clip.cost_usd is None else f" It cost ${clip.cost_usd:.2f} then."
    return replace(clip, reused=True, notes=(f"{how}{cost} {NEW_TAKE}", *clip.notes))


def _last_state(job: Job, outcome: Clip | errors.RunComfyError) -> JobState:
    """A job that still goes on at RunComfy keeps its state: it can be collected."""
    if isinstance(outcome, Clip):
        return JobState.COMPLETED
    if isinstance(outcome, errors.SubmitUnknown):
        return JobState.UNKNOWN
    if isinstance(outcome, errors.JobCancelled):
        return JobState.CANCELLED
    if isinstance(outcome, errors.ResultExpired):
        return JobState.EXPIRED
    going_on = job.progress.request_id and not isinstance(outcome, errors.JobFailed)
    return job.progress.state if going_on else JobState.FAILED
