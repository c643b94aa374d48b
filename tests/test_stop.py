"""Waiting and stopping: what can be called off, and what is said of the rest."""

import threading
import time

import pytest
import torch
from pack.nodes.core import errors
from pack.nodes.core.job import Connection
from pack.nodes.core.states import JobState
from pack.nodes.core.transport import Transport
from pack.nodes.core.uploaders.inline import InlineUploader
from pack.nodes.rehearsal import Fault, FaultKind
from raw_server import RawServer, answer, read_request, reply
from runner_case import (
    accepted,
    connect,
    halfway,
    made_clip,
    make_order,
    make_runner,
    run,
    scripted,
    states,
    until,
)


def test_a_timeout_leaves_the_job_collectable(runner, rehearsal):
    rehearsal.plan(queue_s=2)
    with pytest.raises(errors.JobTimeout, match="collectable"):
        run(runner, rehearsal, timeout_s=0.5)
    assert states(runner)[-1] == "in_queue"
    clip = run(runner, rehearsal)
    assert clip.reused and clip.path.exists()
    assert clip.notes[0].startswith("Collected, $0 more")
    assert len(rehearsal.submissions) == 1


def test_a_waiter_that_gives_up_leaves_job_and_others_alone(runner, rehearsal):
    job = runner.start(make_order(), connect(rehearsal))
    first, second = job.waiter(), job.waiter()
    assert first.cancel()
    assert second.result(30).path.exists()
    assert job.waiter().result(0).path.exists()


def test_stop_in_the_queue_cancels_at_runcomfy_and_frees_the_request(runner, rehearsal):
    rehearsal.plan(queue_s=30)
    job = runner.start(make_order(), connect(rehearsal))
    until(lambda: job.progress.state == JobState.IN_QUEUE)
    assert "cancelled: no charge" in runner.stop(job).result(10)
    with pytest.raises(errors.JobCancelled):
        job.waiter().result(10)
    assert states(runner)[-1] == "cancelled"
    assert run(runner, rehearsal).path.exists()


def test_a_cancel_that_brings_no_answer_is_asked_for_again(tmp_path):
    cancels = []

    def api(conn):
        head = read_request(conn).split(b" ")[1]
        if head.endswith(b"/cancel"):
            cancels.append(head)
            broken = len(cancels) < 3
            body = b"<html>502</html>" if broken else b'{"outcome": "cancelled"}'
            status = 502 if broken else 202
        else:
            done = len(cancels) >= 3
            body = b'{"status": "cancelled"}' if done else b'{"status": "in_queue"}'
            status = 200
        conn.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n".encode())
        conn.sendall(b"Connection: close\r\n\r\n" + body)

    runner, job, server = scripted(tmp_path, api)
    until(lambda: job.progress.state == JobState.IN_QUEUE)
    assert "cancelled: no charge" in runner.stop(job).result(10)
    with pytest.raises(errors.JobCancelled):
        job.waiter().result(10)
    assert len(cancels) == 3
    server.close()


def test_a_job_that_an_earlier_cancel_had_already_is_not_called_charged(runner, rehearsal):
    """Two nodes share a job, or the answer to the first cancel was lost."""
    rehearsal.plan(queue_s=30)
    first = runner.start(make_order(), connect(rehearsal))
    until(lambda: first.progress.state == JobState.IN_QUEUE)
    second = runner.start(make_order(), connect(rehearsal))
    until(lambda: second.follows is first)
    said = [runner.stop(job).result(10) for job in (first, first, second)]
    assert (
        said[:2]
        == ["Stopped. The job was still queued at RunComfy and is cancelled: no charge."] * 2
    )
    assert "charge" in said[2] and "is charged" not in said[2]


def test_a_cancel_that_comes_second_asks_what_became_of_the_first(tmp_path):
    def api(conn):
        head = read_request(conn).split(b" ")[1]
        if head.endswith(b"/cancel"):
            conn.sendall(reply(202, {"outcome": "not_cancellable"}))
        elif b"/result" in head:
            conn.sendall(reply(200, {"status": "cancelled"}))
        else:
            conn.sendall(reply(200, {"status": "in_queue"}))

    runner, job, server = scripted(tmp_path, api)
    until(lambda: job.progress.state == JobState.IN_QUEUE)
    assert "cancelled: no charge" in runner.stop(job).result(10)
    server.close()


def test_a_cancel_whose_outcome_is_unclear_is_not_called_free(tmp_path):
    unclear = answer(202, {"status": "in_queue", "outcome": "cancellation_requested"})
    runner, job, server = scripted(tmp_path, unclear)
    until(lambda: job.progress.state == JobState.IN_QUEUE)
    assert "may be charged, about $0.25" in runner.stop(job).result(10)
    server.close()


def test_stop_after_a_lost_reply_does_not_say_that_nothing_is_charged(runner, rehearsal):
    rehearsal.plan(Fault(FaultKind.LOST_REPLY))
    job = runner.start(make_order(), connect(rehearsal))
    until(lambda: job.ended)
    assert job.progress.state == JobState.UNKNOWN
    assert "may be charged, about $0.25" in runner.stop(job).result(10)


def test_stop_after_the_end_says_what_the_end_was(runner, rehearsal):
    job = runner.start(make_order(), connect(rehearsal))
    clip = job.waiter().result(30)
    said = f"Stopped. The clip was already there (about $0.25): {clip.path}"
    assert runner.stop(job).result(10) == said
    rehearsal.plan(Fault(FaultKind.FAILED_JOB, message="too dark"))
    failed = runner.start(make_order(seed=1), connect(rehearsal))
    until(lambda: failed.ended)
    assert "too dark" in runner.stop(failed).result(10)


def test_stop_in_a_rehearsal_charges_nothing(runner, rehearsal):
    rehearsal.plan(queue_s=0, run_s=1)
    job = runner.start(make_order(), connect(rehearsal, is_rehearsal=True))
    until(lambda: job.progress.state == JobState.IN_PROGRESS)
    assert "$0 in a rehearsal" in runner.stop(job).result(10)
    job.waiter().result(30)


def test_stop_while_the_job_is_being_sent_breaks_the_send_off(tmp_path):
    noise = torch.rand((1400, 1400, 3))  # some 6 MB: more than the socket takes while nobody reads
    with RawServer(lambda conn: time.sleep(2)) as server:
        runner = make_runner(tmp_path)
        transport = Transport(server.origin, "token-1")
        job = runner.start(
            make_order(noise), Connection(transport, InlineUploader(), poll_s=1, timeout_s=9)
        )
        until(lambda: job.progress.state == JobState.SUBMITTING, 20)
        assert runner.stop(job).result(30) == "Stopped before the job was sent. Nothing is charged."
    assert states(runner)[-1] == "cancelled"


def test_stop_while_downloading_says_that_the_clip_is_made_and_saves_it(tmp_path):
    go_on = threading.Event()
    with RawServer() as server:
        clip = halfway(made_clip(tmp_path), lambda: go_on.wait(10))
        runner, job = accepted(tmp_path, server, clip=[clip])
        until(lambda: job.progress.bytes_done)
        said = runner.stop(job).result(4)
        go_on.set()
        assert said.startswith(
            "Stopped. The clip was already made (about $0.25) and is being saved"
        )
        assert job.waiter().result(10).path.exists()


def test_stop_while_a_refusal_is_being_written_down_sends_no_cancel(tmp_path, monkeypatch):
    writing, go_on = threading.Event(), threading.Event()
    with RawServer(answer(402, {"message": "no money"})) as server:
        runner = make_runner(tmp_path)
        advance = runner._ledger.advance

        def slow(*args, **values):
            writing.set()
            go_on.wait(10)
            return advance(*args, **values)

        monkeypatch.setattr(runner._ledger, "advance", slow)
        transport = Transport(server.origin, "t")
        job = runner.start(make_order(), Connection(transport, InlineUploader(), 1, 9))
        assert writing.wait(10)
        said = runner.stop(job)
        time.sleep(0.3)
        go_on.set()
        assert said.result(10) == "Stopped before the job was sent. Nothing is charged."
        assert server.connections == 1


def test_stop_while_the_cost_is_asked_for_says_that_the_clip_is_made(tmp_path):
    asked, go_on = threading.Event(), threading.Event()

    def late(conn):
        asked.set()
        go_on.wait(10)
        conn.sendall(reply(200, {"status": "succeeded", "cost": 0.25}))

    with RawServer() as server:
        clip = [reply(200, made_clip(tmp_path))]
        runner, job = accepted(tmp_path, server, clip=clip, result=[late])
        assert asked.wait(10)
        said = runner.stop(job)
        time.sleep(0.3)
        go_on.set()
        assert "The clip was already there (about $0.25)" in said.result(10)


def test_stop_while_rendering_says_the_charge_and_collects(runner, rehearsal):
    rehearsal.plan(queue_s=0, run_s=2)
    job = runner.start(make_order(), connect(rehearsal))
    until(lambda: job.progress.state == JobState.IN_PROGRESS)
    said = runner.stop(job).result(10)
    assert "cannot be cancelled and is charged, about $0.25" in said
    assert job.waiter().result(30).path.exists()


def test_stop_before_the_submit_sends_nothing(runner, rehearsal, monkeypatch):
    go_on = threading.Event()
    upload = InlineUploader.upload

    def slow(self, data, content_type):
        go_on.wait(10)
        return upload(self, data, content_type)

    monkeypatch.setattr(InlineUploader, "upload", slow)
    job = runner.start(make_order(), connect(rehearsal))
    said = runner.stop(job)
    go_on.set()
    assert said.result(10) == "Stopped before the job was sent. Nothing is charged."
    assert rehearsal.submissions == []
