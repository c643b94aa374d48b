"""One pause for all: when RunComfy says "too many calls" to one job, the others hold back too."""

import threading
import time
from collections.abc import Callable

TURN_S = 1.0  # between two submits while RunComfy is counting
QUESTION_S = 0.5  # between two questions at the end of a pause
CALM_S = 60.0  # after which all is as before


class Backoff:
    """The pause that all jobs of one account keep. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held_until = self._next_turn = self._next_question = self._calm_at = clock()

    def hold(self, seconds: float) -> None:
        """No call for so many seconds, and after that one submit at a time."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)
            self._next_question = self._held_until
            self._next_turn = self._held_until  # who has a turn before then asks for another
            self._calm_at = self._held_until + CALM_S

    def left_s(self) -> float:
        """Seconds until calls may go out again."""
        return max(0.0, self._held_until - self._clock())

    def question_s(self) -> float:
        """Seconds until this caller may ask about a job: after a pause not all at once."""
        with self._lock:
            now = self._clock()
            if now >= self._held_until:
                return 0.0
            turn = self._next_question
            self._next_question = turn + QUESTION_S
            return turn - now

    def turn_s(self) -> float:
        """Seconds until this caller's turn to submit; each question takes a turn."""
        with self._lock:
            now = self._clock()
            if now >= self._calm_at:
                return 0.0
            turn = max(now, self._next_turn)
            self._next_turn = turn + TURN_S
            return turn - now
