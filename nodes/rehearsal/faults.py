"""Faults that a rehearsal job can be given, as they were met or feared on the real service.

A plan names the faults and the pace of exactly one job: the next one accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any


class FaultKind(str, Enum):
    """Each member equals its plain string, so `Fault("html_502")` is as good."""

    LOST_REPLY = "lost_reply"
    """The POST is accepted and the job runs, but the connection closes without a reply byte."""
    HTML_502 = "html_502"
    """The next `times` polls (status or result) answer 502 with a gateway's HTML page."""
    RATE_LIMIT = "rate_limit"
    """The next `times` polls answer 429, with `Retry-After` if `retry_after` (s) is given."""
    FAILED_JOB = "failed_job"
    """The job ends: "completed" on /status, "failed" with `message` on /result."""
    CUT_DOWNLOAD = "cut_download"
    """The next `times` GETs of the clip stop after `after_bytes` (0: half of what was asked)."""


POLL_FAULTS = frozenset({FaultKind.HTML_502, FaultKind.RATE_LIMIT})
ONCE_A_JOB = frozenset({FaultKind.LOST_REPLY, FaultKind.FAILED_JOB})


@dataclass(frozen=True)
class Fault:
    """One fault of one job. Raises ValueError for an unknown kind or a number out of range."""

    kind: str
    times: int = 1
    retry_after: float | None = None
    after_bytes: int = 0
    message: str = "The rehearsal job failed, as it was planned to."

    def __post_init__(self) -> None:
        known = [kind.value for kind in FaultKind]
        if self.kind not in known:
            raise ValueError(f"Unknown fault {self.kind!r}. Known faults: {', '.join(known)}.")
        if type(self.times) is not int or self.times < 1:
            raise ValueError(f"A fault's times is a whole number from 1 up, got {self.times!r}.")
        if self.kind in ONCE_A_JOB and self.times != 1:
            raise ValueError(f"{self.kind} happens once a job, got times={self.times}.")
        if type(self.after_bytes) is not int or self.after_bytes < 0:
            raise ValueError(f"after_bytes is a whole number from 0 up, got {self.after_bytes!r}.")
        if self.retry_after is not None:
            seconds("retry_after", self.retry_after)
        if type(self.message) is not str:
            raise ValueError(f"A fault's message is a text, got {self.message!r}.")


@dataclass(frozen=True)
class Plan:
    """What the next job will meet; a pace of None means the server's own (seconds)."""

    faults: tuple[Fault, ...] = ()
    queue_s: float | None = None
    run_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("queue_s", "run_s"):
            if getattr(self, name) is not None:
                seconds(name, getattr(self, name))

    @classmethod
    def from_json(cls, body: Any) -> Plan:
        """Read the body of POST /rehearsal/plan; ValueError names what it does not know."""
        known = _known_fields(cls, "plan", body)
        faults = known.pop("faults", [])
        if not isinstance(faults, list):
            raise ValueError(f"faults is a list, got {type(faults).__name__}.")
        return cls(faults=tuple(_fault_from_json(item) for item in faults), **known)


class PendingFaults:
    """The faults still ahead of one job; asking for one uses it up."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self._left = [[fault, fault.times] for fault in faults]

    def take(self, kinds: Iterable[str]) -> Fault | None:
        """The first planned fault of these kinds with a time left, or None."""
        for entry in self._left:
            if entry[0].kind in kinds and entry[1] > 0:
                entry[1] -= 1
                return entry[0]
        return None


def seconds(name: str, value: Any) -> float:
    """Return `value` if it is a finite number from 0 up; else raise ValueError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < float("inf"):
        raise ValueError(f"{name} is a number of seconds from 0 up, got {value!r}.")
    return value


def _fault_from_json(item: Any) -> Fault:
    known = _known_fields(Fault, "fault", item)
    if "kind" not in known:
        raise ValueError("A fault needs a kind.")
    return Fault(**known)


def _known_fields(cls: type, what: str, body: Any) -> dict[str, Any]:
    if not isinstance(body, Mapping):
        raise ValueError(f"A {what} is a JSON object, got {type(body).__name__}.")
    names = {field.name for field in fields(cls)}
    if unknown := sorted(set(body) - names):
        raise ValueError(f"A {what} has no {unknown[0]!r}. It has: {', '.join(sorted(names))}.")
    return dict(body)
