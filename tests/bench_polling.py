"""Requests a job and the time to notice its end, against polling every 5 s as others do.

Runs the client's own `watch` with a clock that only waiting moves: `python tests/bench_polling.py`.
"""

import importlib
import random
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Simulation:
    """A job that is queued and runs for so many seconds, and whoever polls it."""

    def __init__(self, queue_s: float, run_s: float, latency_s: float = 0.15) -> None:
        self.now = 0.0
        self.requests = 1  # the submit
        self._queue_s, self._end_s, self._latency_s = queue_s, queue_s + run_s, latency_s

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def clean(self, words: object) -> str:
        return str(words)

    def get(self, path: str, params: object = None) -> object:
        """Stands in for Transport.get."""
        self.requests += 1
        self.now += self._latency_s
        state = "in_queue" if self.now < self._queue_s else "in_progress"
        body = {"status": state if self.now < self._end_s else "completed"}
        if self.now >= self._end_s and path.endswith("/result"):
            body["output"] = {"video": "https://files.runcomfy.net/a.mp4"}
        return types.SimpleNamespace(body=body)

    @property
    def noticed_after_s(self) -> float:
        """How long after the end it was seen."""
        return self.now - self._end_s


def ours(job: Simulation) -> None:
    """The client as it is."""
    client = importlib.import_module("pack.nodes.core.client").RunComfyClient
    watched = client(job, clock=job.clock).watch("r", job.wait, poll_s=3.0, timeout_s=3600.0)
    for _ in watched:
        pass


def every_5_s(job: Simulation) -> None:
    """Result every 5 s."""
    while job.get("/result").body["status"] != "completed":
        job.wait(5.0)


def measure(poll: Callable[[Simulation], None], queue_s: float, run_s: float) -> tuple[float, ...]:
    """Median and most requests, median and worst seconds to notice, over 300 jobs."""
    dice = random.Random(7)  # noqa: S311 - the same jobs for both
    jobs = []
    for _ in range(300):
        job = Simulation(queue_s * dice.uniform(0.5, 1.5), run_s * dice.uniform(0.95, 1.05))
        poll(job)
        jobs.append(job)
    requests = [job.requests for job in jobs]
    late = [job.noticed_after_s for job in jobs]
    return statistics.median(requests), max(requests), statistics.median(late), max(late)


def main() -> None:
    """Print one row a kind of job."""
    pack = types.ModuleType("pack")
    pack.__path__ = [str(ROOT)]
    sys.modules["pack"] = pack
    print(
        "job (queue + run)   requests p50/max      noticed after p50/max     requests : every 5 s"
    )
    for queue_s, run_s in ((5, 60), (5, 180), (60, 180), (600, 180), (5, 600)):
        mine, other = measure(ours, queue_s, run_s), measure(every_5_s, queue_s, run_s)
        print(
            f"{queue_s:4} s + {run_s:3} s        {mine[0]:5.0f} / {mine[1]:3.0f}           "
            f"{mine[2]:5.1f} s / {mine[3]:4.1f} s            {mine[0] / other[0]:5.2f}"
        )


if __name__ == "__main__":
    main()
