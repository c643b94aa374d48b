"""Random schedules of faults, restarts, Stops and re-queues: never paid twice, never lost.

Hypothesis drives the real runner, a real ledger and the stand-in over HTTP. A restart abandons the
runner in mid-flight, as a dying process would, and a new one opens the same ledger.
"""

import tempfile
import threading
from collections import Counter
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from pack.nodes.core import errors
from pack.nodes.core.job import Clip, Connection, Order
from pack.nodes.core.jobs import JobRunner
from pack.nodes.core.kling import KlingRequest
from pack.nodes.core.ledger import Ledger
from pack.nodes.core.media import video
from pack.nodes.core.states import JobState
from pack.nodes.core.transport import Transport
from pack.nodes.core.uploaders.inline import InlineUploader
from pack.nodes.rehearsal import Fault, FaultKind, RehearsalServer
from runner_case import Folder

PICTURE = torch.zeros((300, 300, 3))
TAKES = st.integers(0, 2)
FAULTS = st.sampled_from(
    [
        (),
        (),
        (Fault(FaultKind.LOST_REPLY),),
        (Fault(FaultKind.HTML_502, times=2),),
        (Fault(FaultKind.RATE_LIMIT, times=2, retry_after=0.05),),
        (Fault(FaultKind.FAILED_JOB, message="refused"),),
        (Fault(FaultKind.CUT_DOWNLOAD, times=2),),
    ]
)


class Killed(BaseException):
    """Ends the threads of an abandoned runner wherever they wait."""


class Schedules(RuleBasedStateMachine):
    """Three takes of one request, asked for in any order, however often."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.output = Path(self.folder.name) / "output"
        self.output.mkdir()
        clips = Path(self.folder.name) / "clips"
        self.api = RehearsalServer(clips, queue_s=0.05, run_s=0.05).start()
        self.jobs = []
        self.used = set()
        self.restart()

    @rule()
    def restart(self) -> None:
        """The process dies; whatever its jobs had reached is all that is left of them."""
        if hasattr(self, "dead"):
            self.dead.set()
        self.dead = dead = threading.Event()

        def wait(event: threading.Event, seconds: float) -> None:
            event.wait(min(seconds, 0.03))
            if dead.is_set():
                raise Killed

        self.runner = JobRunner(
            Ledger(f"sqlite:///{self.folder.name}/ledger.db"), Folder(self.output), wait=wait
        )
        self.jobs = []

    @rule(take=TAKES, fault=FAULTS, queue_s=st.sampled_from([0.0, 0.3]))
    def queue(self, take: int, fault: tuple[Fault, ...], queue_s: float) -> None:
        """Somebody presses Run; the fault meets the next job that is really sent."""
        self.api.plan(*fault, queue_s=queue_s)
        self.used.add(take)
        self.jobs.append(self.start(take))

    @rule()
    def stop(self) -> None:
        """Somebody presses Stop."""
        for job in self.jobs:
            self.runner.stop(job)

    @rule()
    def wait(self) -> None:
        """All jobs come to their end."""
        for job in self.jobs:
            outcome_of(job)

    def start(self, take: int):
        request = KlingRequest(f"take {take}", duration_s=3, generate_audio=False)
        connection = Connection(
            Transport(self.api.origin, self.api.token), InlineUploader(), poll_s=1, timeout_s=60
        )
        return self.runner.start(Order(request, "clip", start_image=PICTURE), connection)

    def teardown(self) -> None:
        try:
            self.restart()
            for _ in range(3):  # a failed job may be asked for again, with the next fault in plan
                self.ends = {take: outcome_of(self.start(take)) for take in self.used}
            self.check()
        finally:
            self.dead.set()
            self.api.stop()
            self.folder.cleanup()

    def check(self) -> None:
        """The two promises."""
        sent = Counter(one.payload["prompt"] for one in self.api.submissions)
        ledger = Ledger(f"sqlite:///{self.folder.name}/ledger.db")
        rows = ledger.newest(1000)
        for take in self.used:
            mine = [row for row in rows if row.payload["prompt"] == f"take {take}"]
            paid = [row for row in mine if row.state not in (JobState.FAILED, JobState.CANCELLED)]
            assert len(paid) <= 1, "one request, paid twice"
            assert sent[f"take {take}"] <= len(mine), "sent without having been written down"
            end = self.ends[take]
            if isinstance(end, Clip):
                assert video.inspect(end.path).duration_s > 2.9
                assert paid and paid[0].state == JobState.COMPLETED
            else:
                assert isinstance(end, errors.SubmitUnknown | errors.JobFailed), end
                assert end.request_id or isinstance(end, errors.SubmitUnknown)
        ledger.close()


def outcome_of(job) -> object:
    """The clip, or the error that the job ended with."""
    try:
        return job.waiter().result(60)
    except errors.RunComfyError as error:
        return error


Schedules.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
test_random_schedules = Schedules.TestCase
