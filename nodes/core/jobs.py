"""Paid jobs on threads of their own: each request is sent once, whoever asks for it how often.

``JobRunner.start`` returns at once. The jobs then run on daemon threads that know no graph and no
event loop: a sampler cannot stall them, a failing neighbour or a Stop cannot kill them, and they
never hold up the end of the process. Whoever waits does so on a ``Future`` of its own.

The order of one run: check all pictures, name all requests, look in the ledger, price what is new
and hold it against the budget; then for each job: attach, or wait for a place, encode, upload,
claim, send, write down the request id, collect. Nothing is sent before all checks have passed, and
nothing that the ledger has not taken.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from . import errors, stop
from .again import Attacher, StoppedBefore
from .collect import Collector
from .draft import Draft, draft_all
from .job import Clip, Connection, Job, Order, thread_name
from .ledger import Ledger
from .live import Live
from .places import Places
from .prices import estimate_usd
from .rows import Row
from .send import Sender, check_room
from .slots import Slots
from .states import ENDED, JobState
from .uploads import Uploads

log = logging.getLogger("runcomfy")

FLUSH_PAUSE_S = 30.0
LOOK_S = 1.0  # how often a job in line looks, beside being woken


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
        self.uploads = Uploads(ledger)
        self._places = places
        self._clock = clock
        self._wait = wait
        self._slots = Slots()
        self._live = Live()
        self._collector = Collector(ledger, places, clock=clock, pause=self._pause)
        parts = (ledger, self._live, self._collector)
        self._sender = Sender(*parts, self.uploads, clock=clock, pause=self._pause)
        self._attacher = Attacher(*parts, places, clock=clock, pause=self._pause)

    def start(self, order: Order, connection: Connection) -> Job:
        """Start one job."""
        return self.start_all([order], connection)[0]

    def start_all(
        self, orders: Sequence[Order], connection: Connection, *, is_awaited: bool = True
    ) -> list[Job]:
        """Start the jobs of one run, which are checked and priced together.

        Args:
            orders: What is asked for; one job each, in this order.
            connection: Where they go.
            is_awaited: Whether a node waits for the clips. Only such jobs wait until fewer than
                ``max_concurrent`` of them are in flight.
        """
        jobs = [
            Job(order.request.price_usd(), connection, self._clock, is_awaited=is_awaited)
            for order in orders
        ]
        box = [list(orders)]  # emptied by the thread
        _thread("runcomfy-run", lambda: self._start(jobs, box.pop(), connection))
        return jobs

    def resume(self, connection: Connection) -> list[Job]:
        """Go on with every job of this account that RunComfy has and nobody watches.

        Nothing is sent. The clips get the names that their graphs asked for.
        """
        transport, resumed = connection.transport, []
        # in this process the pack may have been loaded before: its modules are gone, not its jobs
        watched = {thread.name for thread in threading.enumerate()}
        for row in self._ledger.take_over(transport.origin, transport.account):
            if thread_name(row.request_id) in watched:
                continue
            job = Job(row.price_usd, connection, self._clock)
            if self._live.enter(row.id, job) is job:
                self._begin(job, partial(self._attacher.attach, job, row))
                resumed.append(job)
        return resumed

    def collect(
        self,
        request_id: str,
        connection: Connection,
        *,
        prefix: str,
        prompt: Mapping[str, Any] | None = None,
        workflow: Mapping[str, Any] | None = None,
    ) -> Job:
        """Collect a job by RunComfy's id, wherever it was sent from. Nothing is sent.

        Args:
            request_id: RunComfy's id.
            connection: Whose account it is of.
            prefix: Name of a clip that has no file yet.
            prompt: The graph that collects, for the metadata of a job that was sent elsewhere.
            workflow: Likewise.
        """
        job = Job(0.0, connection, self._clock)
        job.update(state=JobState.IN_QUEUE, request_id=request_id)
        graph = {"prompt": prompt, "workflow": workflow}
        self._begin(job, partial(self._attacher.by_id, job, request_id, prefix, **graph))
        return job

    def stop(self, job: Job) -> "Future[str]":
        """Call a job off as far as that is possible; what is not goes on and is collected.

        Returns:
            A future with the sentence that says what became of the job and of its price. It may
            take ``CANCEL_S`` seconds, longer while the submit is still under way.
        """
        for one in (job, job.follows):
            if one is not None:
                one.stopped = one.stopped or self._clock()
                one.stop_requested.set()
                one.wake.set()
        said: Future[str] = Future()
        _thread(
            "runcomfy-stop",
            lambda: said.set_result(stop.call_off(job, clock=self._clock, wait=self._wait)),
        )
        return said

    def collected(self, clip: Clip) -> None:
        """Note that a graph has the clip; a ledger that cannot be written now costs only a hint."""
        try:
            self._ledger.collected(clip.row_id)
        except errors.LedgerError as error:
            log.warning("%s", error)

    def _begin(self, job: Job, make: Callable[[], Clip]) -> None:
        _thread(thread_name(), lambda: self._run(job, make))

    def _start(self, jobs: list[Job], orders: list[Order], connection: Connection) -> None:
        try:
            origin = connection.transport.origin
            drafts = draft_all(
                orders,
                origin=origin,
                check_prefix=self._places.folder,
                stands_for=self.uploads.stands_for,
            )
            self._admit(jobs, drafts, connection)
        except BaseException as error:  # noqa: BLE001 - as in _run
            for job in jobs:
                self._end(job, _as_outcome(error))
            return
        orders.clear()
        for job, draft in zip(jobs, drafts, strict=True):
            if job.is_awaited and job.is_new:
                self._slots.line_up(job)
            try:
                self._begin(job, partial(self._make, job, [draft]))
            except RuntimeError as error:  # no more threads: nobody stays in line
                self._end(job, _as_outcome(error))
        drafts.clear()

    def _admit(self, jobs: list[Job], drafts: list[Draft], connection: Connection) -> None:
        """Price what is new and hold it against the budget, before the first of them is sent."""
        own = {draft.identity.full for draft in drafts}
        for job, draft in zip(jobs, drafts, strict=True):
            row = self._ledger.find(draft.identity.full)
            job.is_new = row is None
            if row is not None:
                job.price_usd = row.price_usd
                continue
            check_room(connection.uploader, draft.order)
            if draft.order.start_image is None:
                self.uploads.check_alive(draft.order.start_image_url, "start_image_url")
            job.price_usd = self._estimate_usd(draft, connection)
            near = self._ledger.find_near(draft.identity.near, draft.identity.full)
            if near is None or near.identity in own or self._live.get(near.id) is not None:
                continue
            if near.request_id:
                job.notes.append(
                    f"Request {near.request_id} differs from this one in its pixels only and was "
                    "never collected. Did the picture change by itself? Its clip can still be "
                    "collected."
                )
        total_usd = sum(job.price_usd for job in jobs if job.is_new)
        if connection.budget_usd is not None and total_usd:
            self._ledger.check_budget(connection.transport.origin, total_usd, connection.budget_usd)

    def _estimate_usd(self, draft: Draft, connection: Connection) -> float:
        request, base = draft.order.request, None
        if connection.prices is not None:
            try:
                base = connection.prices.base(connection.transport, request.model_id)
            except errors.RunComfyError as error:
                if connection.budget_usd is not None:
                    raise errors.BudgetExceeded(
                        f"RunComfy does not tell what {request.model} costs now ({error}), and "
                        "RUNCOMFY_DAILY_BUDGET_USD is set, so nothing was sent. Try again later, "
                        "or unset the budget."
                    ) from None
                log.info("estimate by the price table alone: %s", error)
        paid_usd = self._ledger.paid_usd(
            connection.transport.origin,
            request.model_id,
            request.duration_s,
            request.generate_audio,
        )
        return estimate_usd(request, base, paid_usd)

    def _make(self, job: Job, box: list[Draft]) -> Clip:
        row, request_id = self._send(job, box[0])
        prefix = box[0].order.prefix
        if request_id is None:
            live = self._live.get(row.id)
            if live is None or live.stopped is None:
                box.clear()  # as below: only what was stopped may have to be sent
            try:
                return self._attacher.attach(job, row, prefix)
            except StoppedBefore:  # it was cancelled for an earlier prompt, not for this one
                if not box:
                    raise
                row, request_id = self._send(job, box[0])
        if request_id is None:
            return self._attacher.attach(job, row, prefix)
        box.clear()  # pictures are not kept until clips arrive
        clip = self._collector.collect(job, row, request_id, is_new=True)
        if not job.is_awaited:  # it is where it was to go
            self.collected(clip)
        return replace(clip, notes=(*job.notes, *clip.notes))

    def _send(self, job: Job, draft: Draft) -> tuple[Row, str | None]:
        """The row of a draft, and its request id if it was sent now."""
        row = self._ledger.find(draft.identity.full)
        if row is None:
            self._wait_in_line(job)
            row = self._ledger.find(draft.identity.full)  # another may have sent it meanwhile
        if row is None:
            row, request_id = self._sender.send(job, draft)
            if request_id is not None:
                return row, request_id
        job.is_new, job.price_usd = False, row.price_usd
        self._slots.leave(job)
        return row, None

    def _wait_in_line(self, job: Job) -> None:
        if job.is_awaited:  # also what seemed to be paid before, and is not
            self._slots.line_up(job)
        while place := self._slots.enter(job, job.connection.max_concurrent):
            if job.stop_requested.is_set():
                raise errors.JobCancelled(stop.NOT_SENT)
            job.update(in_line=place)
            self._pause(job, LOOK_S)
        job.update(in_line=0)

    def _run(self, job: Job, make: Callable[[], Clip]) -> None:
        outcome: Clip | errors.RunComfyError
        try:
            outcome = make()
        # a thread that dies silently would strand its waiters
        except BaseException as error:  # noqa: BLE001
            outcome = _as_outcome(error)
        self._end(job, outcome)

    def _end(self, job: Job, outcome: Clip | errors.RunComfyError) -> None:
        self._slots.leave(job)
        if isinstance(outcome, errors.RunComfyError) and not outcome.request_id:
            outcome.request_id = job.progress.request_id
        job.update(state=_last_state(job, outcome), note="", in_line=0)
        if job.unwritten:  # nobody waits for a ledger that is in trouble
            job.settle(outcome)
            self._flush(job)
        self._live.leave(job)
        if not job.ended:
            job.settle(outcome)
        if job.progress.state in ENDED:  # what still goes on may still fetch its pictures
            self.uploads.release(job)
        if isinstance(outcome, Clip) and outcome.cost_usd is None:
            self._collector.late_cost(job, outcome)
        job.connection.transport.close()
        if isinstance(outcome, Clip):
            log.info("clip: %s (request %s)", outcome.path, outcome.request_id)
        else:
            log.warning("job ended without a clip: %s", outcome)

    def _flush(self, job: Job) -> None:
        """Write what the ledger could not take, for as long as the process lives."""
        row_id, pause_s = self._live.row_id(job), LOOK_S
        while job.unwritten and row_id is not None:
            with suppress(errors.LedgerError):
                self._collector.flush(job, row_id)
                return
            self._wait(threading.Event(), pause_s)
            pause_s = min(2 * pause_s, FLUSH_PAUSE_S)

    def _pause(self, job: Job, seconds: float) -> None:
        self._wait(job.wake, seconds)
        job.wake.clear()


def _thread(name: str, target: Callable[[], object]) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()


def _as_outcome(error: BaseException) -> errors.RunComfyError:
    if isinstance(error, errors.RunComfyError):
        return error
    log.error("a job ended unexpectedly", exc_info=error)
    return errors.RunComfyError(f"Unexpected {type(error).__name__}: {error}")


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
