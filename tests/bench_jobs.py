"""What the ledger and the runner cost: `python tests/bench_jobs.py`, loopback only, under a minute.

Durable intent write against a plain SQLite insert with the same syncing; look-up and list in a
ledger of 10,000 jobs; memory and threads over 1,000 jobs; a batch of 32 jobs in one graph of the
real ComfyUI against one job; 50 prompts queued with the Submit node.
"""

import importlib
import itertools
import json
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
pack = types.ModuleType("pack")
pack.__path__ = [str(ROOT)]
sys.modules["pack"] = pack

import psutil  # noqa: E402
import torch  # noqa: E402
from pack.nodes.core.job import Connection, Order  # noqa: E402
from pack.nodes.core.jobs import JobRunner  # noqa: E402
from pack.nodes.core.kling import KlingRequest  # noqa: E402
from pack.nodes.core.ledger import Ledger  # noqa: E402
from pack.nodes.core.rows import NewJob  # noqa: E402
from pack.nodes.core.states import JobState  # noqa: E402
from pack.nodes.core.transport import Transport  # noqa: E402
from pack.nodes.core.uploaders.inline import InlineUploader  # noqa: E402
from test_video import make_clip  # noqa: E402

NEW = NewJob(
    identity="",
    near_identity="n",
    origin="https://api.example",
    account="me",
    model_id="kling/x",
    payload={"prompt": "x" * 400, "start_image_url": "sha256:" + "0" * 64},
    price_usd=1.26,
    prefix="video/x",
    duration_s=10,
    prompt={str(n): {"class_type": "X", "inputs": {}} for n in range(40)},
    workflow={"nodes": [{"id": n, "widgets_values": [1, 2, 3]} for n in range(40)]},
)


def timed(call: Callable[[], object], times: int) -> tuple[float, float]:
    """p50 and p95 in milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken), statistics.quantiles(taken, n=20)[18]


def bench_writes(folder: Path) -> None:
    """Claims, against bare inserts that are synced likewise."""
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    numbers = iter(range(10**9))
    claim = timed(
        lambda: ledger.claim(replace(NEW, identity=f"w{next(numbers)}"), post_limit_s=60), 300
    )
    plain = sqlite3.connect(folder / "plain.db", isolation_level=None)
    plain.execute("PRAGMA journal_mode=WAL")
    plain.execute("PRAGMA synchronous=FULL")
    plain.execute("CREATE TABLE t (body TEXT)")
    body = json.dumps(NEW.workflow)
    bare = timed(lambda: plain.execute("INSERT INTO t VALUES (?)", (body,)), 300)
    print(f"durable intent write     p50 {claim[0]:6.2f} ms   p95 {claim[1]:6.2f} ms")
    print(f"bare synced insert       p50 {bare[0]:6.2f} ms   p95 {bare[1]:6.2f} ms")
    print(
        f"  ratio                  p50 {claim[0] / bare[0]:6.2f}      p95 {claim[1] / bare[1]:6.2f}"
    )


def bench_reads(folder: Path) -> None:
    """Look-up and list among 10,000 jobs, against the same among 100."""
    found = {}
    for count in (100, 10_000):
        ledger = Ledger(f"sqlite:///{folder / f'{count}.db'}")
        first, _ = ledger.claim(replace(NEW, identity="0"), post_limit_s=60)
        ledger.advance(first.id, JobState.IN_QUEUE, request_id="r")
        with sqlite3.connect(folder / f"{count}.db") as raw:
            names = [row[1] for row in raw.execute("PRAGMA table_info(jobs)")]
            others = ", ".join(name for name in names if name not in ("id", "identity", "state"))
            raw.executemany(
                f"INSERT INTO jobs (identity, state, {others}) "
                f"SELECT ?, 'completed', {others} FROM jobs WHERE id = 1",
                [(str(n),) for n in range(1, count)],
            )
        dice = random.Random(1)  # noqa: S311
        look = timed(lambda: ledger.find(str(dice.randrange(count))), 200)  # noqa: B023
        listed = timed(lambda: ledger.newest(100), 50)  # noqa: B023
        found[count] = (look[0], listed[0])
        print(
            f"{count:6} jobs: look-up p50 {look[0]:6.2f} ms   p95 {look[1]:6.2f} ms   "
            f"newest 100 p50 {listed[0]:6.2f} ms"
        )
    look_up, listing = (found[10_000][n] / found[100][n] for n in (0, 1))
    print(f"  ratio 10,000 : 100     look-up {look_up:5.2f}   newest 100 {listing:5.2f}")


class _Api(BaseHTTPRequestHandler):
    """Every job is done ``run_s`` seconds after it was sent."""

    clip = b""
    run_s = 0.0
    protocol_version = "HTTP/1.1"
    numbers = itertools.count(1)
    sent: dict[str, float] = {}
    asked = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        request_id = f"r-{next(self.numbers)}"
        self.sent[request_id] = time.monotonic()
        self._answer({"request_id": request_id})

    def do_GET(self) -> None:
        if self.path == "/clip.mp4":
            self._send(self.clip, "video/mp4")
            return
        if self.path.startswith("/v1/models/"):
            self._answer({"base_price_usd": 0.084, "price_unit": "second"})
            return
        _Api.asked += 1
        if time.monotonic() - self.sent[self.path.split("/")[3]] < self.run_s:
            self._answer({"status": "in_progress"})
            return
        url = f"http://{self.headers['Host']}/clip.mp4"
        self._answer({"status": "succeeded", "output": {"video": url}, "cost": 0.25})

    def _answer(self, body: object) -> None:
        self._send(json.dumps(body).encode(), "application/json")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Silent."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # 32 jobs knock at once


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, _: str) -> Path:
        return self.path

    def candidate(self, prefix: str, *_: int) -> Path:
        return self.path / f"{prefix}_{time.monotonic_ns()}.mp4"


def bench_jobs(folder: Path, count: int = 1000, at_once: int = 8) -> None:
    """Memory and threads while so many jobs pass through one runner."""
    _Api.clip = make_clip(folder / "clip.mp4", frames=72, size=(64, 64)).read_bytes()
    server = _Server(("127.0.0.1", 0), _Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    transport = Transport(f"http://127.0.0.1:{server.server_port}", "token-1")
    connection = Connection(transport, InlineUploader(), poll_s=1.0, timeout_s=60.0)
    output = folder / "output"
    output.mkdir()
    runner = JobRunner(Ledger(f"sqlite:///{folder / 'jobs.db'}"), _Folder(output))
    picture = torch.rand((300, 300, 3))
    request = KlingRequest("x", duration_s=3, generate_audio=False)
    process = psutil.Process()

    def run(seeds: range) -> None:
        jobs = [
            runner.start(Order(request, "clip", seed=n, start_image=picture), connection)
            for n in seeds
        ]
        for job in jobs:
            job.waiter().result(60)

    for begin in range(0, 104, at_once):
        run(range(begin, begin + at_once))
    began, memory = time.perf_counter(), process.memory_info().rss
    most = 0
    for begin in range(104, count + 104, at_once):
        run(range(begin, min(begin + at_once, count + 104)))
        most = max(most, sum(t.name.startswith("runcomfy") for t in threading.enumerate()))
    time.sleep(0.5)
    left = sum(t.name.startswith("runcomfy") for t in threading.enumerate())
    grown = (process.memory_info().rss - memory) / 1e6
    seconds = time.perf_counter() - began
    files = process.num_fds() if hasattr(process, "num_fds") else 0
    print(f"{count} jobs, {at_once} at once: {1000 * seconds / count:.1f} ms a job")
    print(f"  memory grown {grown:+.1f} MB   threads left {left}   open files {files}")
    server.shutdown()


def bench_graphs(folder: Path, count: int = 32, submits: int = 50) -> None:
    """A batch in one graph against one job, in the real engine; and many graphs with Submit."""
    _Api.clip = make_clip(folder / "clip5.mp4", frames=120, size=(320, 320)).read_bytes()
    server = _Server(("127.0.0.1", 0), _Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "RUNCOMFY_API_BASE_URL": f"http://127.0.0.1:{server.server_port}",
        "RUNCOMFY_API_TOKEN": "token-1",
        "RUNCOMFY_MAX_CONCURRENT_JOBS": str(count),
        "RUNCOMFY_MAX_JOBS_PER_RUN": str(count),
    }
    base = folder / "engine"
    base.mkdir()
    engine = importlib.import_module("engine_in_process").Engine(
        importlib.import_module("pack.dev.setup").engine_dir(), base
    )
    seeds = itertools.count()

    def graph(node: str, pictures: int) -> dict[str, object]:
        inputs = {
            "prompt": "x",
            "start_image": ["1", 0],
            "duration": 5,
            "generate_audio": False,
            "negative_prompt": "",
            "cfg_scale": 0.5,
            "model": "kling-3.0/standard",
            "seed": next(seeds),
            "start_image_url": "",
            "filename_prefix": "bench/clip",
        }
        picture = {"width": 320, "height": 320, "batch_size": pictures, "color": 0x808080}
        return {
            "1": {"class_type": "EmptyImage", "inputs": picture},
            "2": {"class_type": f"RunComfyKling{node}", "inputs": inputs},
        }

    def run(node: str, pictures: int = 1) -> float:
        began = time.perf_counter()
        outcome = engine.run(graph(node, pictures))
        assert outcome.succeeded, outcome.error
        return time.perf_counter() - began

    run("ImageToVideo")
    _Api.run_s = 5.0
    rounds = [(run("ImageToVideo"), run("ImageToVideo", count)) for _ in range(3)]
    one, many = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"one job of 5 s           {one:6.2f} s   (median of 3, through the real ComfyUI)")
    print(f"{count} jobs of 5 s at once  {many:6.2f} s   ratio {many / one:.2f} (target < 1.5)")
    asked = _Api.asked
    run("ImageToVideo", count)
    print(f"  status and result requests a job: {(_Api.asked - asked) / count:.1f}")
    _Api.run_s = 600.0
    began = time.perf_counter()
    for _ in range(submits):
        run("Submit")
    print(f"{submits} prompts with Submit     {time.perf_counter() - began:6.2f} s   (target < 60)")
    server.shutdown()


def main() -> None:
    """All of it, on a disk of this machine."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        bench_writes(folder)
        bench_reads(folder)
        bench_jobs(folder)
        bench_graphs(folder)


if __name__ == "__main__":
    main()
