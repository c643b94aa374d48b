"""Places for jobs in flight: so many at once, first come, first served."""

import threading
from collections import deque

from .job import Job


class Slots:
    """The line of jobs that wait to be sent, and the places they wait for.

    A job that may go on finds out by asking; whoever leaves wakes the first in line. The limit
    comes with each question, since it is a setting that may change between two runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: deque[Job] = deque()
        self._inside: set[Job] = set()

    def line_up(self, job: Job) -> None:
        """Join the end of the line, if it is neither in it nor past it."""
        with self._lock:
            if job not in self._inside and job not in self._line:
                self._line.append(job)

    def enter(self, job: Job, limit: int) -> int:
        """Take a place if it is this job's turn.

        Returns:
            0 with a place; else how many wait in line up to this job.
        """
        with self._lock:
            if job in self._inside or job not in self._line:
                return 0
            ahead = self._line.index(job)
            if ahead or len(self._inside) >= limit:
                return ahead + 1
            self._line.popleft()
            self._inside.add(job)
            self._wake_first()
            return 0

    def leave(self, job: Job) -> None:
        """Give up the place, or the wait for one; harmless without either."""
        with self._lock:
            self._inside.discard(job)
            if job in self._line:
                self._line.remove(job)
            self._wake_first()

    def _wake_first(self) -> None:
        if self._line:
            self._line[0].wake.set()
