"""The jobs of this process that are under way, by their row in the ledger."""

import threading

from .job import Job


class Live:
    """At most one live job a row. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._jobs)

    def get(self, row_id: int) -> Job | None:
        """The job that is live under this row, if any."""
        with self._lock:
            return self._jobs.get(row_id)

    def enter(self, row_id: int, job: Job) -> Job:
        """The job that is live under this row: this one where there was none."""
        with self._lock:
            return self._jobs.setdefault(row_id, job)

    def row_id(self, job: Job) -> int | None:
        """The row under which this job is live, if any."""
        with self._lock:
            return next((row_id for row_id, live in self._jobs.items() if live is job), None)

    def leave(self, job: Job) -> None:
        """The job is over."""
        with self._lock:
            self._jobs = {row_id: live for row_id, live in self._jobs.items() if live is not job}
