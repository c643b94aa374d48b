"""A node waits for its jobs: progress on the node, Stop, and what is said at the end.

The jobs themselves run in the background (``core.jobs``); a node that goes away loses nothing.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from . import comfy_bridge
from .core import errors
from .core.draft import clip_number
from .core.job import Clip, Job, Order
from .core.jobs import JobRunner
from .core.states import JobState

LOOK_S = 0.2  # how often a waiting node looks at Stop and at its jobs
SENT_LOOK_S = 0.05
STOP_S = 6.0  # how long a stopped node waits to learn what became of its jobs
NO_ANSWER = (
    "Stopped, but RunComfy has not answered yet. If it takes the job, the job is called off where "
    "that is possible; else it is charged and its clip is saved to the output folder."
)
LOST_IN_A_BATCH = (
    "Where the answer was lost, run that picture alone with another seed: a new seed here would "
    "pay for all of them again."
)
NOT_SENT = (JobState.PREPARING, JobState.SUBMITTING)

log = logging.getLogger("runcomfy")


async def run_jobs(node_id: str, orders: Sequence[Order]) -> list[Clip]:
    """Run paid jobs and wait for their clips, with progress on the node.

    Stop is seen within ``LOOK_S`` and ends the waiting with ComfyUI's own interrupt. A job that can
    no longer be called off goes on in the background and its clip is saved all the same.

    Args:
        node_id: The node that shows the progress.
        orders: What is asked for, one job each.

    Returns:
        The clips, in the order of the orders.

    Raises:
        RunComfyError: Why there are no clips, or not all, in words for the user.
    """
    _check_count(orders)
    # the jobs start before the first await: a sampler may hold the loop from there on
    runner, connection = comfy_bridge.connect()
    jobs = runner.start_all(orders, connection)
    failed = ("are missing", "saved", "Queue again: only what is missing is sent.")
    return await _clips(node_id, runner, jobs, lambda: _call_off(runner, jobs), failed)


async def submit_jobs(node_id: str, orders: Sequence[Order]) -> list[str]:
    """Send paid jobs and return their request ids as soon as RunComfy has given them.

    The clips are collected in the background. Raises RunComfyError where a job was not sent.
    """
    _check_count(orders)
    runner, connection = comfy_bridge.connect()
    jobs = runner.start_all(orders, connection, is_awaited=False)
    await _watch(
        node_id, jobs, lambda: _call_off(runner, jobs), is_over=_is_sent, look_s=SENT_LOOK_S
    )
    try:
        _raise_faults(
            [job.outcome if _is_unsent(job) else None for job in jobs],
            "were not sent",
            "sent, their ids are below",
            "Queue again: only what is missing is sent.",
        )
    except errors.RunComfyError as error:
        sent = {n: _request_id(job) for n, job in enumerate(jobs, 1) if not _is_unsent(job)}
        ids = [f"Clip {n}: sent, request {request_id}" for n, request_id in sent.items()]
        said = "\n".join([str(error), *ids])
        comfy_bridge.show(node_id, said)
        raise (errors.RunComfyError(said) if ids else error) from None
    ids = [str(_request_id(job)) for job in jobs]
    sent = [job for job in jobs if job.is_new]
    said = [f"Sent {_count(sent)}, {_price_text(sent)}."] if sent else []
    if len(sent) < len(jobs):
        said.append(f"{_count(jobs[len(sent) :])} paid before, $0.")
    said.append("Clips are saved when they are ready.")
    comfy_bridge.show(node_id, "\n".join([" ".join(said), *ids]))
    return ids


async def collect_jobs(
    node_id: str, request_ids: Sequence[tuple[str, str]], *, graph: Mapping[str, Any]
) -> list[Clip]:
    """Wait for the clips of jobs that were sent before, by RunComfy's ids. Costs nothing.

    ``request_ids`` are ids, each with the prefix of its clip.

    Stop ends the waiting only: the jobs go on. Raises RunComfyError as ``run_jobs``.
    """
    runner, connection = comfy_bridge.connect()
    jobs = [
        runner.collect(request_id, connection, prefix=prefix, **graph)
        for request_id, prefix in request_ids
    ]
    return await _clips(
        node_id,
        runner,
        jobs,
        lambda: "Stopped waiting. The jobs go on; their clips are saved when they are ready.",
        ("could not be collected", "saved", ""),
    )


async def _clips(
    node_id: str,
    runner: JobRunner,
    jobs: list[Job],
    stop: Callable[[], str],
    failed: tuple[str, str, str],
) -> list[Clip]:
    await _watch(node_id, jobs, stop, is_over=lambda job: job.ended, look_s=LOOK_S)
    clips = [job.outcome for job in jobs if isinstance(job.outcome, Clip)]
    # also where others failed: the next queue has these, and must not point at them as lost
    await asyncio.to_thread(lambda: [runner.collected(clip) for clip in clips])
    try:
        _raise_faults([job.outcome for job in jobs], *failed)
    except errors.RunComfyError as error:
        comfy_bridge.show(node_id, str(error))
        raise
    for clip in clips:
        comfy_bridge.hand_out(clip)
    comfy_bridge.show(node_id, _summary(jobs, clips))
    return clips


async def _watch(
    node_id: str,
    jobs: list[Job],
    stop: Callable[[], str],
    *,
    is_over: Callable[[Job], bool],
    look_s: float,
) -> None:
    """Show the jobs until all are over. ``stop`` does what Stop asks for, and says what it did."""
    waiters = [asyncio.wrap_future(job.waiter()) for job in jobs]
    shown = ""
    stopping = False

    def stop_and_tell() -> None:
        said = stop()
        log.warning("%s", said)
        comfy_bridge.show(node_id, said)

    def tell_failures() -> None:
        def tell(ended: "Future[Clip]") -> None:
            if (error := ended.exception()) is not None:
                comfy_bridge.show(node_id, str(error))

        for job in jobs:
            job.waiter().add_done_callback(tell)
            if job.progress.in_line:  # nobody could stop it any more
                job.stop_requested.set()
                job.wake.set()

    try:
        while not all(is_over(job) for job in jobs):
            if comfy_bridge.interrupted():
                stopping = True
                comfy_bridge.show(node_id, "Stopping …")
                told, end = _in_background(stop_and_tell), time.monotonic() + STOP_S
                while not told.done() and time.monotonic() < end:  # it may outlive this loop
                    await asyncio.sleep(SENT_LOOK_S)
                if not told.done():
                    comfy_bridge.show(node_id, NO_ANSWER)
                raise comfy_bridge.interruption()
            text = _text(jobs)
            if text != shown:
                comfy_bridge.show(node_id, text)
                shown = text
            await asyncio.wait(waiters, timeout=look_s)
    except asyncio.CancelledError:
        if stopping:  # which goes on in the background
            raise
        # Stop, seen by another node first, or a failed neighbour: only the first ends the jobs
        comfy_bridge.show(
            node_id,
            "Ended by another node. What was sent goes on at RunComfy. What is in line ends.",
        )
        if comfy_bridge.interrupted():
            _in_background(stop_and_tell)
        else:
            comfy_bridge.when_prompt_ended(
                stopped=lambda: _in_background(stop_and_tell), otherwise=tell_failures
            )
        raise
    finally:
        for waiter in waiters:
            if not waiter.cancel() and not waiter.cancelled():
                waiter.exception()  # looked at, so that asyncio does not complain


def _call_off(runner: JobRunner, jobs: Sequence[Job]) -> str:
    """Stop all jobs and say what became of each; blocks until RunComfy has answered."""
    asked = [runner.stop(job) for job in jobs]
    said: dict[str, list[int]] = {}
    for number, future in enumerate(asked, 1):
        said.setdefault(future.result(), []).append(number)
    if len(said) == 1:
        return next(iter(said))
    return "\n".join(f"{_numbers(numbers)}: {text}" for text, numbers in said.items())


def _check_count(orders: Sequence[Order]) -> None:
    most = comfy_bridge.load_settings().max_jobs_per_run
    if len(orders) > most:
        total_usd = sum(order.request.price_usd() for order in orders)
        raise errors.InputError(
            f"{len(orders)} clips in one run would cost about ${total_usd:.2f}; the limit is "
            f"{most}. Are these the frames of a video? Then pick some with Get Image from Batch. "
            f"To make them all, set RUNCOMFY_MAX_JOBS_PER_RUN to {len(orders)}."
        )


def _raise_faults(
    outcomes: Sequence[Clip | errors.RunComfyError | None], what: str, kept: str, retry: str
) -> None:
    """Raise what failed: as it is where it is one and the same, else by number.

    Args:
        outcomes: One a job; None for one that is well so far.
        what: Such as ``are missing``.
        kept: What the others are, such as ``saved``.
        retry: What to do about those that are surely not paid.
    """
    faults = {n: end for n, end in enumerate(outcomes, 1) if isinstance(end, errors.RunComfyError)}
    if not faults:
        return
    count, first = len(outcomes), next(iter(faults.values()))
    if count == 1 or (len(faults) == count and all(fault is first for fault in faults.values())):
        raise first
    others = "" if len(faults) == count else f", the others are {kept}"
    head = [f"{len(faults)} of {count} clips {what}{others}."]
    lost = [isinstance(fault, errors.SubmitUnknown) for fault in faults.values()]
    head += [retry] if retry and not all(lost) else []
    head += [LOST_IN_A_BATCH] if any(lost) else []
    lines = [f"{clip_number(n, count)}{fault}" for n, fault in faults.items()]
    raise errors.RunComfyError("\n".join([" ".join(head), *lines]))


def _request_id(job: Job) -> str | None:
    return job.outcome.request_id if isinstance(job.outcome, Clip) else job.progress.request_id


def _is_sent(job: Job) -> bool:
    return job.ended or (job.progress.request_id is not None and job.progress.state not in NOT_SENT)


def _is_unsent(job: Job) -> bool:
    """Whether a submit came to nothing. A job that has failed since then was sent."""
    if isinstance(job.outcome, errors.SubmitUnknown):
        return True
    return isinstance(job.outcome, errors.RunComfyError) and job.progress.request_id is None


def _text(jobs: Sequence[Job]) -> str:
    """A line for each job; above them how many are done, and the price."""
    if len(jobs) == 1:
        line, _, note = jobs[0].text().partition("\n")
        price = "" if jobs[0].is_new is None else f" · {_price_text(jobs)}"
        return f"{line}{price}\n{note}".rstrip()
    failed = sum(isinstance(job.outcome, errors.RunComfyError) for job in jobs)
    if jobs[0].is_awaited:
        done = sum(isinstance(job.outcome, Clip) for job in jobs)
        head = f"{done} of {len(jobs)} clips saved"
    else:
        head = f"{sum(_is_sent(job) for job in jobs) - failed} of {len(jobs)} jobs sent"
    head += f", {failed} failed" if failed else ""
    if all(job.is_new is not None for job in jobs):
        head += f" · {_price_text(jobs)}"
    lines = [f"{n} · {_line(job)}" for n, job in enumerate(jobs, 1)]
    return "\n".join([head, *lines])


def _line(job: Job) -> str:
    if isinstance(job.outcome, Clip):
        return f"Saved {_place(job.outcome)}"
    return (str(job.outcome) if job.outcome else job.text()).replace("\n", " · ")


def _price_text(jobs: Sequence[Job]) -> str:
    """What this run pays: for clips that were paid before, nothing."""
    new = [job for job in jobs if job.is_new]
    if not new:
        return "$0, paid before"
    if new[0].connection.is_rehearsal:
        return "$0 in a rehearsal"
    price = f"about ${sum(job.price_usd for job in new):.2f}"
    return price if len(new) == len(jobs) else f"{price} for {len(new)} new"


def _summary(jobs: Sequence[Job], clips: Sequence[Clip]) -> str:
    parts = [_clip_text(job, clip) for job, clip in zip(jobs, clips, strict=True)]
    if len(parts) == 1:
        return parts[0]
    pairs = zip(jobs, clips, strict=True)
    paid_usd = [
        0.0 if clip.reused else job.price_usd or None if clip.cost_usd is None else clip.cost_usd
        for job, clip in pairs
    ]
    # a node shows the first lines only
    head = f"{len(clips)} clips saved"
    if None not in paid_usd:
        head += f", ${sum(filter(None, paid_usd)):.2f}"
    if jobs[0].is_new is None:  # collected by their ids
        costs = {clip.request_id: clip.cost_usd for clip in clips}
        head = f"{len(clips)} clips saved, $0 now"
        if None not in costs.values():
            head += f"; they cost ${sum(filter(None, costs.values())):.2f} when they were sent"
    if jobs[0].connection.is_rehearsal:
        head = f"{len(clips)} clips saved, $0 in a rehearsal"
    return "\n".join([head, *(f"{n} · {part}" for n, part in enumerate(parts, 1))])


def _clip_text(job: Job, clip: Clip) -> str:
    if clip.reused:
        cost = "$0"
    elif job.connection.is_rehearsal:
        cost = "rehearsal, nothing charged"
    elif clip.cost_usd is not None:
        cost = f"cost ${clip.cost_usd:.2f}" + (" when sent" if job.is_new is None else "")
    else:
        cost = job.price_text if job.price_usd else "cost unknown"
    info = f"{clip.info.duration_s:.1f} s, {clip.info.width} × {clip.info.height}, {cost}"
    return "\n".join([f"Saved {_place(clip)}", info, *clip.notes])


def _place(clip: Clip) -> str:
    filename, subfolder = comfy_bridge.place_in_output(clip.path) or (str(clip.path), "")
    return f"{subfolder}/{filename}" if subfolder else filename


def _count(jobs: Sequence[Job]) -> str:
    return "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"


def _numbers(numbers: Sequence[int]) -> str:
    many = "s" if len(numbers) > 1 else ""
    return f"Clip{many} {', '.join(str(number) for number in numbers)}"


def _in_background(call: Callable[[], Any]) -> "Future[Any]":
    """Call on a daemon thread: neither the loop nor the end of the process waits for it."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001 - for whoever asked
            future.set_exception(error)

    threading.Thread(target=run, name="runcomfy-stop", daemon=True).start()
    return future
