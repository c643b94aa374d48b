"""The jobs of this process that are under way, by their row in the ledger."""

import threading
from collections.abc import Callable

from .job import Job
from .rows import Row


class Live:
    """At most one live job a row. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}

    def get(self, row_id: int) -> Job | None:
        """The job that is live under this row, if any."""
        with self._lock:
            return self._jobs.get(row_id)

    def enter(self, row_id: int, job: Job) -> Job:
        """The job that is live under this row: this one where there was none."""
        with self._lock:
            return self._jobs.setdefault(row_id, job)

    def claim(self, job: Job, claim: Callable[[], tuple[Row, bool]]) -> tuple[Row, bool]:
        """Claim a row for this job, so that nobody here finds the row without its live job."""
        with self._lock:
            row, is_ours = claim()
            if is_ours:
                self._jobs[row.id] = job
            return row, is_ours

    def row_id(self, job: Job) -> int | None:
        """The row under which this job is live, if any."""
        with self._lock:
            return next((row_id for row_id, live in self._jobs.items() if live is job), None)

    def leave(self, job: Job) -> None:
        """The job is over."""
        with self._lock:
            self._jobs = {row_id: live for row_id, live in self._jobs.items() if live is not job}
