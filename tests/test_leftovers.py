"""What jobs leave behind in ComfyUI's process when they have ended, however they did: nothing."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
from node_case import Threads, prompt_of
from pack.nodes.rehearsal import Fault, FaultKind
from runner_case import quick, until

ROUNDS = 1
ENDS = {
    "saved": {},
    "failed": {"faults": [Fault(FaultKind.FAILED_JOB)]},
    "unknown": {"faults": [Fault(FaultKind.LOST_REPLY)]},
    "download cut": {"faults": [Fault(FaultKind.CUT_DOWNLOAD, times=2)]},
    "stopped in the queue": {"queue_s": 60, "stop_at": "/status"},
    "stopped while rendering": {"run_s": 0.5, "stop_at": "/result"},
}


def ran_once(engine, api, faults=(), queue_s=0, run_s=0, stop_at=None):
    """One graph from its start to the end of its job."""
    api.plan(*faults, queue_s=queue_s, run_s=run_s)
    sent = len(api.submissions)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.run, prompt_of(engine))
        if stop_at:
            until(lambda: len(api.submissions) > sent)
            address = f"/v1/requests/{api.submissions[sent].request_id}{stop_at}"
            until(lambda: any(one.path == address for one in api.requests))
            engine.stop()
        outcome = running.result(30)
    assert outcome.interrupted == bool(stop_at)


def held(ledger):
    """Threads, sockets and open files of this process.

    Without the connections that the ledger keeps, and the threads of the stand-in.
    """
    ledger.close()
    gc.collect()
    process, names = psutil.Process(), [thread.name for thread in threading.enumerate()]
    return {
        "threads": sum(not name.startswith(("rehearsal-", "asyncio_")) for name in names),
        "sockets": len(process.net_connections("all")),
        "files": process.num_fds(),
    }


def test_nothing_is_left_of_jobs_that_have_ended(engine, api, monkeypatch):
    threads = Threads()
    runner = engine.module("nodes.comfy_bridge")._runner(None)
    monkeypatch.setattr(runner, "_wait", quick)
    for end in ENDS.values():  # what the first of a kind opens for good
        ran_once(engine, api, **end)
    until(lambda: not threads.named("runcomfy"))
    before = held(runner._ledger)
    for _ in range(ROUNDS):
        for end in ENDS.values():
            ran_once(engine, api, **end)
    until(lambda: not threads.named("runcomfy"))
    until(lambda: all(held(runner._ledger)[what] <= count for what, count in before.items()))
    assert len(api.submissions) == (ROUNDS + 1) * len(ENDS)
