"""What the tests of paid jobs share: orders, connections, runners, scripted answers."""

import time
from dataclasses import replace

import av
import torch
from pack.nodes.core import errors
from pack.nodes.core.backoff import Backoff
from pack.nodes.core.job import Connection, Order
from pack.nodes.core.jobs import JobRunner
from pack.nodes.core.kling import KlingRequest
from pack.nodes.core.ledger import Ledger
from pack.nodes.core.transport import Transport
from pack.nodes.core.uploaders.inline import InlineUploader
from raw_server import RawServer, answer, reply, reset, routed
from test_video import make_clip

REQUEST = KlingRequest("a cup of coffee, steam rising", duration_s=3, generate_audio=False)
PICTURE = torch.rand((360, 480, 3), generator=torch.Generator().manual_seed(1))


class Folder:
    """Names clips in one folder by counting up, as ComfyUI does."""

    def __init__(self, path):
        self.path = path

    def folder(self, prefix):
        if ".." in prefix:
            raise errors.InputError("out of bounds")
        return self.path

    def candidate(self, prefix, width, height):
        number = 1 + len(list(self.path.glob("*.mp4")))
        return self.path / f"{prefix}_{width}x{height}_{number}.mp4"


def make_order(image=PICTURE, **values):
    return Order(**{"request": REQUEST, "prefix": "clip", "start_image": image, **values})


def large_order():
    """Its submit is more than any socket buffer takes in one go."""
    request = replace(REQUEST, prompt="x" * (12 << 20))
    return make_order(None, request=request, start_image_url="https://example.org/a.png")


def connect(rehearsal, token=None, **values):
    options = {"poll_s": 1, "timeout_s": 60, **values}
    transport = Transport(rehearsal.origin, token or rehearsal.token)
    return Connection(transport, InlineUploader(), **options)


def quick(event, seconds):
    return event.wait(min(seconds, 0.1))


def make_runner(folder, wait=quick, clock=time.monotonic):
    """A runner as a process started anew has it."""
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    return JobRunner(ledger, Folder(folder), wait=wait, clock=clock)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def run(runner, rehearsal, order=None, **values):
    """Start a job and wait for its clip."""
    job = runner.start(order or make_order(), connect(rehearsal, **values))
    return job.waiter().result(30)


def row_of(runner, rehearsal):
    (row,) = runner._ledger.newest(9)
    return row


def states(runner):
    (row,) = runner._ledger.newest(9)
    return [state.value for state, _ in runner._ledger.times(row.id)]


class Clock:
    """Time that passes only by waiting."""

    def __init__(self):
        self.now = 1000.0
        self.waits = []

    def __call__(self):
        return self.now

    def wait(self, event, seconds):
        self.waits.append(round(seconds, 3))
        self.now += seconds


def attempt(tmp_path, server, order=None, **values):
    """The waits of a job that is sent to this server, and what came of it."""
    clock = Clock()
    runner = make_runner(tmp_path, wait=clock.wait, clock=clock)
    connection = Connection(
        Transport(server.origin, "t"),
        InlineUploader(),
        poll_s=1,
        timeout_s=0,
        backoff=Backoff(clock),
    )
    job = runner.start(order or make_order(), connection)
    return clock.waits, job.waiter().exception(30)


def reset_in_the_body(conn):
    conn.recv(4096)
    reset(conn)


def scripted(tmp_path, *scripts):
    """A runner, and a job at RunComfy that answers by these scripts after the submit."""
    server = RawServer(answer(200, {"request_id": "r-1"}), *scripts)
    connection = Connection(
        Transport(server.origin, "token-1"), InlineUploader(), poll_s=1, timeout_s=60
    )
    runner = make_runner(tmp_path)
    return runner, runner.start(make_order(), connection), server


def made_clip(tmp_path, frames=72):
    return make_clip(tmp_path / "made.clip", frames=frames).read_bytes()


def accepted(tmp_path, server, *, request_id="r-1", clip, result=(b"",), cost=None):
    """A runner, and its job that this server takes and has ready at once.

    ``clip`` are the replies at the clip's address, ``result`` those of later calls for the result.
    """
    body = {"status": "succeeded", "output": {"video": f"{server.origin}/clip"}, "cost": cost}
    done = reply(200, body)
    routes = {
        "image-to-video": [reply(200, {"request_id": request_id})],
        "status": [reply(200, {"status": "completed"})],
        "result": [done, *(one or done for one in result)],
        "clip": clip,
    }
    server.scripts.append(routed(routes))
    connection = Connection(Transport(server.origin, "t"), InlineUploader(), poll_s=1, timeout_s=9)
    runner = make_runner(tmp_path)
    return runner, runner.start(make_order(), connection)


def halfway(data, meanwhile):
    """Sends half a clip, and the rest after ``meanwhile``."""

    def script(conn):
        whole = reply(200, data)
        conn.sendall(whole[: len(whole) // 2])
        meanwhile()
        conn.sendall(whole[len(whole) // 2 :])

    return script


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux() if packet.size]
