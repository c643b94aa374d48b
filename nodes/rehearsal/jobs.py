"""Rehearsal jobs: their clock, their states, and the one worker that renders their clips.

A job is over when its queue and run times have passed and its clip is ready, whichever is later;
so a state is computed when it is asked for, never stored.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from pathlib import Path

import av
from PIL import Image

from .faults import Fault, FaultKind, PendingFaults, Plan
from .media import Abandoned, MediaError, Source, sources
from .render import Clip, render
from .schema import ImageToVideo, Model

PLACES_IN_QUEUE = 3


class JobFailed(Exception):
    """The job ends failed; the text is what /result will say."""


class State(Enum):
    """Where a job stands; /status and /result spell some of them differently."""

    IN_QUEUE = "in_queue"
    IN_PROGRESS = "in_progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Outcome:
    """How the worker left a job: a clip's path or an error text, and when (monotonic s)."""

    at: float
    path: Path | None = None
    error: str = ""


@dataclass
class Job:
    """One accepted job. `submitted` is time.monotonic() seconds, `created_at` UTC."""

    model: Model
    duration_s: int
    audio: bool
    queue_s: float
    run_s: float
    faults: PendingFaults
    failure: Fault | None
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    submitted: float = field(default_factory=time.monotonic)
    created_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    cancelled_at: float | None = None
    outcome: Outcome | None = None

    @property
    def state(self) -> State:
        """The state now."""
        if self.cancelled_at is not None:
            return State.CANCELLED
        waited = time.monotonic() - self.submitted
        if waited < self.queue_s:
            return State.IN_QUEUE
        if waited < self.queue_s + self.run_s or self.outcome is None:
            return State.IN_PROGRESS
        return State.FAILED if self.outcome.path is None else State.SUCCEEDED

    @property
    def queue_position(self) -> int:
        """Counts down to 1 while the job is in the queue."""
        left = self.queue_s - (time.monotonic() - self.submitted)
        return max(1, math.ceil(PLACES_IN_QUEUE * left / self.queue_s)) if self.queue_s else 1

    @property
    def finished_at(self) -> datetime | None:
        """UTC time of the end, None before it."""
        if self.state in (State.IN_QUEUE, State.IN_PROGRESS):
            return None
        if self.cancelled_at is not None:
            end = self.cancelled_at
        else:
            end = max(self.outcome.at, self.submitted + self.queue_s + self.run_s)
        return self.created_at + timedelta(seconds=end - self.submitted)

    @property
    def cost_usd(self) -> float:
        """The list price of the clip; 0 for a job that made none."""
        if self.state is not State.SUCCEEDED:
            return 0.0
        return self.model.cost_usd(self.duration_s, self.audio)

    def cancel(self) -> bool:
        """Cancel if still in the queue; tell whether that was so."""
        if self.state is not State.IN_QUEUE:
            return False
        self.cancelled_at = time.monotonic()
        return True


class JobStore:
    """All jobs of one server, and the thread that renders them one after another."""

    def __init__(self, folder: Path, *, queue_s: float, run_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._queue_s, self._run_s = queue_s, run_s
        self._jobs: dict[str, Job] = {}
        # The request travels here and not on the job: its images are dropped once rendered.
        self._waiting: queue.SimpleQueue[tuple[Job, ImageToVideo] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._worker = threading.Thread(target=self._work, name="rehearsal-render", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    def stop(self) -> None:
        """Leave what is being rendered and end the worker, once it was started."""
        self._stopping.set()
        self._waiting.put(None)
        self._worker.join()

    def get(self, request_id: str) -> Job | None:
        """The job of that id, if there is one."""
        return self._jobs.get(request_id)

    def forget(self, request_id: str) -> None:
        """Know a job no more, as after the time for which results are kept."""
        self._jobs.pop(request_id, None)

    def add(self, model: Model, request: ImageToVideo, plan: Plan) -> Job:
        """Accept a job and let its rendering begin."""
        faults = PendingFaults(plan.faults)
        job = Job(
            model,
            duration_s=request.duration,
            audio=request.generate_audio,
            queue_s=self._queue_s if plan.queue_s is None else plan.queue_s,
            run_s=self._run_s if plan.run_s is None else plan.run_s,
            faults=faults,
            failure=faults.take([FaultKind.FAILED_JOB]),
        )
        self._jobs[job.request_id] = job
        self._waiting.put((job, request))
        return job

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None and not self._stopping.is_set():
            job, request = item
            try:
                path, error = self._make(job, request), ""
            except Abandoned:
                continue
            except JobFailed as refusal:
                path, error = None, str(refusal)
            except (av.FFmpegError, OSError, ValueError, MemoryError) as trouble:
                # Without an outcome the job would run for ever and take its client along.
                path, error = None, f"The rehearsal clip could not be rendered: {trouble}"
            job.outcome = Outcome(time.monotonic(), path, error)

    def _make(self, job: Job, request: ImageToVideo) -> Path:
        def give_up() -> bool:
            return self._stopping.is_set() or job.cancelled_at is not None

        if give_up():
            raise Abandoned
        if job.failure:
            raise JobFailed(job.failure.message)
        images = {source.loc: _loaded(source, give_up) for source in sources(request)}
        clip = Clip(
            start=images[("start_image_url",)],
            end=images.get(("end_image_url",)),
            duration_s=job.duration_s,
            short_side_px=job.model.short_side_px,
            audio=job.audio,
            shots=[shot.duration for shot in request.multi_prompt],
        )
        path = self._folder / f"{job.request_id}.mp4"
        render(clip, path, give_up)
        return path


def _loaded(source: Source, give_up: Callable[[], bool]) -> Image.Image | None:
    try:
        return source.load(give_up)
    except MediaError as refusal:
        raise JobFailed(f"{source.name} {refusal}") from None
