"""Stop, a failing neighbour and a lost reply, in each state of a job: what is paid, what is saved.

Each scenario runs as a graph in the real engine and is then queued again. The stand-in counts what
was sent. `pytest -s tests/test_survival_table.py` prints the table.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from aiohttp import web
from node_case import SEEDS, Threads, prompt_of
from pack.nodes.rehearsal import Fault, FaultKind
from pack.nodes.rehearsal.api import Api
from runner_case import quick, until

SUBMIT = Api._submit
STATES = ("submitting", "in_queue", "in_progress", "downloading")
LONG_S = 60.0
GOES_ON = "Ended by another node. What was sent goes on at RunComfy. What is in line ends."
CANCELLED = "Stopped. The job was still queued at RunComfy and is cancelled: no charge."
CHARGED = "Stopped. Kling was already rendering: that cannot be cancelled and is charged"
MADE = "Stopped. The clip was already made (about $0.38) and is being saved"
STOPPED = {
    "submitting": CANCELLED,
    "in_queue": CANCELLED,
    "in_progress": CHARGED,
    "downloading": MADE,
}
UNDER_WAY = ("Sending", "In queue", "Kling is rendering", "Downloading")
MAY_BE_CHARGED = "Stopped. The job may have reached RunComfy and may be charged, about $0.38."
LOST = "The job was sent, but its answer was lost"
SENT_BEFORE = "This very request was sent before, but no clear answer came back."
TABLE: list[str] = []


@dataclass
class Ran:
    """What a graph came to: submits seen, clips on disk, and the last text of each Kling node."""

    submits: int
    clips: int
    texts: list[str]

    def row(self) -> str:
        """One line of the table: submits, clips, and what the first node says, shortened."""
        lines = self.texts[0].splitlines()
        said = f"{lines[0]} · {lines[2]}" if len(lines) > 2 else lines[0]
        return f"{self.submits:7} {self.clips:6}  {said[:110]}"


class FailWhenTold:
    """Fails beside nodes that wait, when it is told to."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True
    now = threading.Event()

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    async def run(self):
        while not self.now.is_set():
            await asyncio.sleep(0.01)
        raise RuntimeError("meant to fail")


class Stage:
    """The engine, a stand-in whose answers can be held back, and one graph of Kling nodes."""

    def __init__(self, engine, api, gate, nodes=1, beside=None):
        self.engine, self.api, self.gate = engine, api, gate
        self.threads = Threads()
        self.folder = engine.output / f"table{next(SEEDS)}"
        self.prompt = prompt_of(engine, filename_prefix=f"{self.folder.name}/clip")
        self.kling = ["2", "5"][:nodes]
        for node in self.kling[1:]:
            inputs = {**self.prompt["2"]["inputs"], "seed": next(SEEDS)}
            self.prompt[node] = {**self.prompt["2"], "inputs": inputs}
        if beside:
            self.prompt["9"] = {"class_type": beside, "inputs": {}}
        self._pool = ThreadPoolExecutor(1)

    def pace(self, state):
        """Let the next jobs stay where they are when ``state`` is reached."""
        for _ in self.kling:
            self.api.plan(
                queue_s=LONG_S if state in ("submitting", "in_queue") else 0,
                run_s=2.5 if state == "in_progress" else 0,
            )

    def begin(self, state):
        """Queue the graph; returns once every Kling node's job is in ``state``."""
        asked = {"in_queue": "/status", "in_progress": "/result", "downloading": "/output.mp4"}
        self.gate.state = "submitting" if state == "submitting" else "downloading"
        self.running = self._pool.submit(self.engine.run, self.prompt)
        if state == "submitting":
            until(lambda: self.submits() == len(self.kling))
        else:
            until(lambda: len(self.seen(asked[state])) == len(self.kling))

    def submits(self):
        """How often the stand-in was asked for a job, granted or not."""
        posts = (one for one in self.api.requests if one.method == "POST")
        return sum(one.path.startswith("/v1/models/") for one in posts)

    def seen(self, ending):
        """The addresses with this ending that were asked for."""
        return {one.path for one in self.api.requests if one.path.endswith(ending)}

    def texts(self):
        """The last text of each Kling node."""
        told = dict(self.engine.texts)
        return [told.get(node, "") for node in self.kling]

    def says(self, *beginnings):
        """Wait until each Kling node's text begins with one of these."""
        until(lambda: all(text.startswith(beginnings) for text in self.texts()), 20)

    def saved(self, count):
        """Wait for so many clips, and for the end of all jobs."""
        until(lambda: len(list(self.folder.glob("*.mp4"))) >= count, 20)
        until(lambda: not self.threads.named("runcomfy-job"))

    def ran(self):
        """What it has come to by now."""
        return Ran(self.submits(), len(list(self.folder.glob("*.mp4"))), self.texts())

    def again(self):
        """Queue the same graph again, without what failed beside it; what is held goes on then."""
        self.prompt.pop("9", None)
        running = self._pool.submit(self.engine.run, self.prompt)
        until(lambda: running.done() or self.texts()[0].startswith(UNDER_WAY))
        self.gate.opened.set()
        return running.result(20), self.ran()


class Gate:
    """Holds what the stand-in is asked for in this state, until it is opened."""

    def __init__(self):
        self.state = None
        self.opened = threading.Event()

    async def submit(self, api, request):
        """Take the job, but late: the client has sent everything by then."""
        await self._wait("submitting")
        return await SUBMIT(api, request)

    async def file(self, api, request):
        """Give half of the clip, and the rest late."""
        data = api._jobs.get(request.match_info["request_id"]).outcome.path.read_bytes()
        reply = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await reply.prepare(request)
        await reply.write(data[: len(data) // 2])
        await self._wait("downloading")
        await reply.write(data[len(data) // 2 :])
        return reply

    async def _wait(self, state):
        while self.state == state and not self.opened.is_set():
            await asyncio.sleep(0.01)


@pytest.fixture
def gate(monkeypatch):
    """The stand-in's gate; needed before it starts."""
    gate = Gate()

    async def submit(api, request):
        return await gate.submit(api, request)

    async def file(api, request):
        return await gate.file(api, request)

    monkeypatch.setattr(Api, "_submit", submit)
    monkeypatch.setattr(Api, "_file", file)
    yield gate
    gate.opened.set()


@pytest.fixture
def stage(engine, gate, api, monkeypatch):
    """Begins graphs; the jobs' threads poll ten times a second."""
    bridge = engine.module("nodes.comfy_bridge")
    monkeypatch.setattr(bridge._runner(None), "_wait", quick)
    monkeypatch.setattr(FailWhenTold, "now", threading.Event())
    monkeypatch.setitem(engine.nodes.NODE_CLASS_MAPPINGS, "FailWhenTold", FailWhenTold)
    return lambda *args, **values: Stage(engine, api, gate, *args, **values)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """No thread or callback of ours ends in a traceback."""
    yield
    assert [one.getMessage() for one in caplog.get_records("call") if one.exc_info] == []


@pytest.fixture(autouse=True, scope="module")
def _printed():
    yield
    print(f"\n{'':46} submits  clips  text\n" + "\n".join(TABLE))


def note(scenario, first, then):
    TABLE.append(f"{scenario:46} {first.row()}\n{'... queued again':46} {then.row()}")


@pytest.mark.parametrize("again", ["at once", "later"])
@pytest.mark.parametrize("state", STATES)
def test_a_failing_neighbour(stage, api, gate, state, again):
    """One submit; the clip is saved by itself; the same graph again joins the job or its clip."""
    graph = stage(beside="FailWhenTold")
    api.plan(queue_s=1 if state == "in_queue" else 0, run_s=1 if state == "in_progress" else 0)
    graph.begin(state)
    FailWhenTold.now.set()
    assert "meant to fail" in graph.running.result(20).error
    graph.says(GOES_ON)
    if again == "later":
        gate.opened.set()
        graph.saved(1)
    first = graph.ran()
    outcome, then = graph.again()
    note(f"a neighbour fails, {state}, again {again}", first, then)
    assert (first.submits, first.clips) == (1, again == "later")
    assert not graph.seen("/cancel")
    assert outcome.succeeded and (then.submits, then.clips) == (1, 1)
    how = "Reused, $0" if again == "later" else "Joined, $0 more"
    assert how in then.texts[0]


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("state", STATES)
def test_stop(engine, stage, api, gate, state, nodes):
    """What is queued costs nothing; what is not is charged once and saved."""
    graph = stage(nodes)
    graph.pace(state)
    graph.begin(state)
    engine.stop()
    if state == "submitting":
        graph.says("Stopping", "Ended by another node")
        gate.opened.set()
    assert graph.running.result(20).interrupted
    graph.says(STOPPED[state])
    gate.opened.set()
    free = STOPPED[state] == CANCELLED
    graph.saved(0 if free else nodes)
    first = graph.ran()
    graph.pace("")
    outcome, then = graph.again()
    note(f"Stop, {state}, {nodes} node{'s' * (nodes > 1)}", first, then)
    assert (first.submits, first.clips) == (nodes, 0 if free else nodes)
    assert outcome.succeeded and then.clips == nodes
    assert then.submits == (2 * nodes if free else nodes)
    assert all(("Reused, $0" in text) != free for text in then.texts)


def test_stop_that_is_answered_after_the_node_has_ended(engine, stage, gate, monkeypatch):
    """The node does not wait for ever, and still says the end of it."""
    monkeypatch.setattr(engine.module("nodes.waiting"), "STOP_S", 0.3)
    graph = stage()
    graph.pace("submitting")
    graph.begin("submitting")
    engine.stop()
    assert graph.running.result(20).interrupted
    graph.says("Stopped, but RunComfy has not answered yet.")
    gate.opened.set()
    graph.says(CANCELLED)
    graph.saved(0)
    first = graph.ran()
    graph.pace("")
    outcome, then = graph.again()
    note("Stop, submitting, answered late", first, then)
    assert (first.submits, first.clips) == (1, 0)
    assert outcome.succeeded and (then.submits, then.clips) == (2, 1)


def test_stop_with_one_queued_and_one_rendering(engine, stage, api, gate):
    """Each node says what became of its own job."""
    graph = stage(nodes=2)
    for node in graph.kling:
        graph.prompt[node]["inputs"]["prompt"] = node
    api.plan(queue_s=0, run_s=2.5)
    api.plan(queue_s=LONG_S)
    graph.begin("in_queue")
    until(lambda: graph.seen("/result"))
    engine.stop()
    assert graph.running.result(20).interrupted
    graph.says("Stopped.")
    gate.opened.set()
    graph.saved(1)
    first = graph.ran()
    rendering = graph.kling.index(api.submissions[0].payload["prompt"])
    api.plan(queue_s=0, run_s=0)
    outcome, then = graph.again()
    note("Stop, one job queued and one rendering", first, then)
    assert first.texts[rendering].startswith(CHARGED)
    assert first.texts[1 - rendering].startswith(CANCELLED)
    assert (first.submits, first.clips) == (2, 1)
    assert outcome.succeeded and (then.submits, then.clips) == (3, 2)


@pytest.mark.parametrize("beside", ["nothing", "a failing neighbour", "Stop"])
def test_a_lost_reply(engine, stage, api, gate, beside):
    """One submit, and never another by itself; the texts say how to go on."""
    graph = stage(beside="FailWhenTold")
    api.plan(Fault(FaultKind.LOST_REPLY))
    graph.begin("submitting")
    if beside == "Stop":
        engine.stop()
        graph.says("Stopping")
    if beside == "a failing neighbour":
        FailWhenTold.now.set()
        graph.says(GOES_ON)
    gate.opened.set()
    assert not graph.running.result(20).succeeded
    graph.says(MAY_BE_CHARGED if beside == "Stop" else LOST)
    graph.saved(0)
    first = graph.ran()
    outcome, then = graph.again()
    note(f"a lost reply beside {beside}", first, then)
    assert not outcome.succeeded and "change the seed" in then.texts[0]
    assert then.texts[0].startswith(SENT_BEFORE)
    assert (first.submits, first.clips) == (then.submits, then.clips) == (1, 0)
