"""What the stand-in saw and what it is about to do: its only state shared between threads.

The server's thread appends, tests read; each operation is a single append or pop, which needs
no lock in CPython.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from .faults import Plan

# A data: URI may weigh megabytes, and a rehearsal may run inside ComfyUI for days.
WHOLE_PAYLOADS = 32
SHOWN_OF_DATA_URI = 60


@dataclass(frozen=True)
class Submission:
    """One job that was accepted. `received_at` is time.monotonic() seconds.

    `payload` is the JSON as received for the latest 32; older ones have data: URIs shortened.
    """

    request_id: str
    model_id: str
    payload: dict[str, Any]
    received_at: float


@dataclass(frozen=True)
class Request:
    """One HTTP request, answered or not; `query` is the raw text after "?", `at` as above.

    `authorized`: the server's own bearer was sent, on whatever path.
    """

    method: str
    path: str
    query: str
    at: float
    authorized: bool


@dataclass
class Journal:
    """Everything that arrived, oldest first, and the plans of jobs to come."""

    submissions: list[Submission] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    plans: deque[Plan] = field(default_factory=deque)

    def next_plan(self) -> Plan:
        """Take the oldest plan; the empty plan if there is none."""
        return self.plans.popleft() if self.plans else Plan()

    def add(self, submission: Submission) -> None:
        """Record an accepted job, and shorten the one that has grown old."""
        self.submissions.append(submission)
        aged = len(self.submissions) - 1 - WHOLE_PAYLOADS
        if aged >= 0:
            old = self.submissions[aged]
            self.submissions[aged] = replace(old, payload=shortened(old.payload))


def shortened(value: Any) -> Any:
    """A copy of JSON data in which data: URIs show 60 characters and their length."""
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shortened(item) for item in value]
    if isinstance(value, str) and value.startswith("data:") and len(value) > SHOWN_OF_DATA_URI:
        return f"{value[:SHOWN_OF_DATA_URI]}… ({len(value)} characters)"
    return value
