"""Rare turns of events in which money or a clip could be lost, each once met or thought of."""

import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from pack.nodes.core import errors
from pack.nodes.core.client import RunComfyClient
from pack.nodes.core.job import Connection
from pack.nodes.core.jobs import JobRunner
from pack.nodes.core.ledger import Ledger
from pack.nodes.core.states import JobState
from pack.nodes.core.transport import Transport
from pack.nodes.core.uploaders.inline import InlineUploader
from raw_server import RawServer, answer, read_request, reply, reset, routed
from runner_case import (
    Folder,
    accepted,
    attempt,
    connect,
    large_order,
    made_clip,
    make_order,
    make_runner,
    quick,
    row_of,
    run,
    states,
    until,
)


def conn_of(server, token="t", **values):  # noqa: S107
    options = {"poll_s": 1, "timeout_s": 60, **values}
    return Connection(Transport(server.origin, token), InlineUploader(), **options)


def test_a_job_from_before_a_reboot_is_picked_up(rehearsal, tmp_path):
    rehearsal.plan(queue_s=1)
    first = make_runner(tmp_path)
    with pytest.raises(errors.JobTimeout):
        run(first, rehearsal, timeout_s=0.2)
    (row,) = first._ledger.newest(1)
    host, rest = row.owner.split("/", 1)
    _, ns = rest.split("/", 1)
    first._ledger.set(row.id, owner=f"{host}/00000000-0000-0000-0000-000000000000/{ns}")
    picked = make_runner(tmp_path).resume(connect(rehearsal))
    assert [job.waiter().result(30).path.exists() for job in picked] == [True]


def test_a_job_from_before_a_new_container_is_picked_up(rehearsal, tmp_path):
    rehearsal.plan(queue_s=1)
    first = make_runner(tmp_path)
    with pytest.raises(errors.JobTimeout):
        run(first, rehearsal, timeout_s=0.2)
    (row,) = first._ledger.newest(1)
    first._ledger.set(row.id, owner="0f3a" + row.owner)
    assert len(make_runner(tmp_path).resume(connect(rehearsal))) == 1


@pytest.mark.parametrize("same", [True, False], ids=["stopped twice", "two identical nodes"])
def test_two_stops_of_one_job_say_the_same(runner, rehearsal, monkeypatch, same):
    rehearsal.plan(queue_s=30)
    one = runner.start(make_order(), connect(rehearsal))
    until(lambda: one.progress.state == JobState.IN_QUEUE)
    two = runner.start(make_order(), connect(rehearsal)) if not same else one
    if not same:
        until(lambda: two.follows is one)
    cancel = RunComfyClient.cancel
    both = threading.Barrier(2)

    def together(self, request_id):  # both ask before either is told
        with suppress(threading.BrokenBarrierError):
            both.wait(2)
        return cancel(self, request_id)

    monkeypatch.setattr(RunComfyClient, "cancel", together)
    said = [runner.stop(job) for job in (one, two)]
    assert ["no charge" in one.result(10) for one in said] == [True, True]


def test_words_that_no_database_takes_do_not_keep_the_end_out_of_the_ledger(tmp_path):
    body = b'{"status": "failed", "error": "too dark \\ud83d"}'
    with RawServer(answer(200, {"request_id": "r-1"}), answer(200, body)) as server:
        runner = make_runner(tmp_path)
        with pytest.raises(errors.JobFailed):
            runner.start(make_order(), conn_of(server)).waiter().result(20)
        until(lambda: not runner._live)
        assert states(runner)[-1] == "failed"


def test_refusal_with_surrogate_frees_the_request(tmp_path):
    body = b'{"error_code": 422001, "error_message": "bad prompt: caf\\ud83d"}'
    with RawServer(answer(422, body), answer(200, {"request_id": "r-1"})) as server:
        runner = make_runner(tmp_path)
        with pytest.raises(errors.ApiError):
            runner.start(make_order(), conn_of(server)).waiter().result(20)
        until(lambda: not runner._live)
        assert states(runner)[-1] == "failed"


def test_unknown_with_id_keeps_id_despite_surrogate(tmp_path):
    body = b'{"request_id": "r-9", "error_message": "oops \\ud83d"}'
    with RawServer(answer(500, body)) as server:
        runner = make_runner(tmp_path)
        with pytest.raises(errors.SubmitUnknown):
            runner.start(make_order(), conn_of(server)).waiter().result(20)
        until(lambda: not runner._live)
        (row,) = runner._ledger.newest(1)
        assert row.request_id == "r-9"


def test_the_id_is_written_as_soon_as_the_ledger_can_again(runner, rehearsal, monkeypatch):
    rehearsal.plan(queue_s=8)
    advance, failures = runner._ledger.advance, iter([True])

    def shaky(*args, **values):
        if next(failures, False):
            raise errors.LedgerError("busy")
        return advance(*args, **values)

    monkeypatch.setattr(runner._ledger, "advance", shaky)
    job = runner.start(make_order(), connect(rehearsal))
    until(lambda: job.progress.state == JobState.IN_QUEUE)
    until(lambda: row_of(runner, rehearsal).request_id, 5)


def test_a_ledger_that_is_away_for_longer_loses_nothing_known(runner, rehearsal, monkeypatch):
    advance, working = runner._ledger.advance, threading.Event()

    def broken(*args, **values):
        if not working.is_set():
            raise errors.LedgerError("disk full")
        return advance(*args, **values)

    monkeypatch.setattr(runner._ledger, "advance", broken)
    assert run(runner, rehearsal).path.exists()
    time.sleep(2)
    working.set()
    until(lambda: states(runner)[-1] == "completed", 10)


def test_a_claim_that_waits_for_the_ledger_keeps_no_other_job_waiting(
    runner, rehearsal, monkeypatch
):
    claim, waiting, go_on = runner._ledger.claim, threading.Event(), threading.Event()
    rehearsal.plan(queue_s=1)
    first = runner.start(make_order(), connect(rehearsal))
    until(lambda: first.progress.state == JobState.IN_QUEUE)

    def slow(*a, **k):
        waiting.set()
        go_on.wait(60)
        return claim(*a, **k)

    monkeypatch.setattr(runner._ledger, "claim", slow)
    second = runner.start(make_order(seed=1), connect(rehearsal))
    assert waiting.wait(10)
    try:
        assert first.waiter().result(15).path.exists()
    finally:
        go_on.set()
        second.waiter().result(30)


def test_who_joins_late_waits_for_his_own_time(runner, rehearsal):
    rehearsal.plan(queue_s=5)
    first = runner.start(make_order(), connect(rehearsal, timeout_s=2))
    until(lambda: first.progress.state == JobState.IN_QUEUE)
    second = runner.start(make_order(), connect(rehearsal, timeout_s=60))
    until(lambda: second.follows is first)
    with pytest.raises(errors.JobTimeout):
        first.waiter().result(20)
    assert second.waiter().result(30).path.exists()


def test_an_early_refusal_whose_words_are_cut_is_not_unknown(tmp_path):
    def early(conn):
        conn.recv(4096)
        conn.sendall(b"HTTP/1.1 413 X\r\nContent-Length: 1000\r\n\r\n<html>too")
        time.sleep(0.2)
        reset(conn)

    with RawServer(early) as server:
        runner = make_runner(tmp_path)
        error = runner.start(large_order(), conn_of(server)).waiter().exception(30)
    assert not isinstance(error, errors.SubmitUnknown), error


def test_a_stop_of_an_earlier_prompt_does_not_end_a_later_one(runner, rehearsal, monkeypatch):
    rehearsal.plan(queue_s=30)
    first = runner.start(make_order(), connect(rehearsal))
    until(lambda: first.progress.state == JobState.IN_QUEUE)
    cancel, go_on = RunComfyClient.cancel, threading.Event()

    def slow(self, request_id):
        go_on.wait(10)
        return cancel(self, request_id)

    monkeypatch.setattr(RunComfyClient, "cancel", slow)
    said = runner.stop(first)
    rehearsal.plan()
    later = runner.start(make_order(), connect(rehearsal))  # the next prompt in ComfyUI's queue
    until(lambda: later.follows is first)
    go_on.set()
    assert "no charge" in said.result(10)
    assert later.waiter().result(30).path.exists()


def test_a_cancel_of_a_rendering_job_is_not_called_free(tmp_path):
    routes = {
        "image-to-video": [reply(200, {"request_id": "r-1"})],
        "status": [reply(200, {"status": "in_progress"})],
        "result": [
            reply(200, {"status": "in_progress"}),
            reply(200, {"status": "cancelled", "cost": 0.25}),
        ],
    }
    with RawServer(routed(routes)) as server:
        runner = make_runner(tmp_path)
        error = runner.start(make_order(), conn_of(server)).waiter().exception(20)
    assert isinstance(error, errors.JobCancelled)
    assert "nothing is charged" not in str(error)


def jumping():
    now = [0.0]

    def clock():
        return now[0]

    def wait(event, seconds):
        now[0] += seconds
        event.wait(0.01)

    return clock, wait


def test_another_account_does_not_write_the_job_off(tmp_path):
    routes = {
        "image-to-video": [reply(200, {"request_id": "r-1"})],
        "status": [reply(200, {"status": "in_queue"})],
        "result": [reply(200, {"status": "in_queue"})],
    }
    with RawServer(routed(routes)) as server:
        clock, wait = jumping()
        runner = make_runner(tmp_path, wait=wait, clock=clock)
        with pytest.raises(errors.JobTimeout):
            runner.start(make_order(), conn_of(server, "mine", timeout_s=3)).waiter().result(20)
        none = reply(404, {"error_code": 404001, "error_message": "none"})
        routes["status"][:] = routes["result"][:] = [none]
        with pytest.raises(errors.InputError, match="another RunComfy account"):
            runner.start(make_order(), conn_of(server, "other", timeout_s=300)).waiter().result(20)
        assert states(runner)[-1] == "in_queue"
        until(lambda: len(runner.resume(conn_of(server, "mine", timeout_s=1))) == 1)


def test_a_request_that_runcomfy_never_knew_is_not_called_made_and_paid(tmp_path):
    oops = answer(500, {"request_id": "r-1", "message": "oops"})
    with RawServer(oops, answer(404, {"error_code": 404001, "error_message": "none"})) as server:
        clock, wait = jumping()
        runner = make_runner(tmp_path, wait=wait, clock=clock)
        with pytest.raises(errors.SubmitUnknown):
            runner.start(make_order(), conn_of(server)).waiter().result(20)
        error = runner.start(make_order(), conn_of(server, timeout_s=600)).waiter().exception(20)
        assert "made and paid" not in str(error), error


def test_a_row_that_ended_between_look_up_and_join_is_read_again(runner, rehearsal, monkeypatch):
    first = run(runner, rehearsal)
    (row,) = runner._ledger.newest(1)
    runner._ledger.advance(row.id, JobState.EXPIRED)
    find = runner._ledger.find

    def raced(identity):
        found = find(identity)
        runner._ledger.advance(found.id, JobState.COMPLETED)  # a resumed job was quicker
        return replace(found, path=None, file_sha256=None)  # it had no file when it was read

    monkeypatch.setattr(runner._ledger, "find", raced)
    assert run(runner, rehearsal).path == first.path


def test_a_gateway_page_while_the_address_is_asked_for_again_is_waited_out(tmp_path):
    with RawServer() as server:
        good = reply(200, made_clip(tmp_path))
        _, job = accepted(tmp_path, server, clip=[reply(404), good], result=[reply(502, b"<html>")])
        assert job.waiter().result(20).path.exists()


def test_a_clip_that_came_back_ends_the_row(runner, rehearsal, tmp_path):
    first = run(runner, rehearsal)
    (row,) = runner._ledger.newest(1)
    runner._ledger.advance(row.id, JobState.EXPIRED)
    runner._ledger.advance(row.id, JobState.IN_QUEUE)  # asked again, and given up by a time-out
    assert run(runner, rehearsal).path == first.path
    assert states(runner)[-1] == "completed"


def test_a_clip_fetched_again_keeps_its_cost(tmp_path):
    with RawServer() as server:
        clip = made_clip(tmp_path)
        runner, job = accepted(tmp_path, server, clip=[reply(200, clip)], cost=0.25, result=[b""])
        first = job.waiter().result(20)
        first.path.unlink()
        done = {"status": "succeeded", "output": {"video": f"{server.origin}/clip"}}
        routes = {
            "status": [reply(200, {"status": "completed"})],
            "result": [reply(200, done)],
            "clip": [reply(200, clip)],
        }
        server.scripts.append(routed(routes))
        server.connections = max(server.connections, len(server.scripts))
        again = runner.start(make_order(), conn_of(server)).waiter().result(20)
        (row,) = runner._ledger.newest(1)
        assert row.cost_usd == 0.25 and again.notes[0].count("It cost $0.25")


@pytest.mark.parametrize("code", [400004, 403001, 404001, 429001])
def test_a_refused_question_is_no_failed_job(tmp_path, code):
    refused = {"status": "error", "error_code": code, "error_message": "invalid token"}
    with RawServer(answer(200, {"request_id": "r-1"}), answer(200, refused)) as server:
        clock, wait = jumping()
        runner = make_runner(tmp_path, wait=wait, clock=clock)
        error = runner.start(make_order(), conn_of(server, timeout_s=5)).waiter().exception(20)
        assert not isinstance(error, errors.JobFailed), error
        assert states(runner)[-1] != "failed"


def test_many_threads_may_open_a_new_ledger_at_once(tmp_path):
    bad = []

    def open_it(ledger, gate):
        gate.wait()
        try:
            ledger.newest(1)
        except errors.LedgerError as error:
            bad.append(str(error))

    for number in range(10):
        ledgers = [Ledger(f"sqlite:///{tmp_path}/l{number}.db") for _ in range(6)]
        gate = threading.Barrier(6)
        threads = [threading.Thread(target=open_it, args=(one, gate)) for one in ledgers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for ledger in ledgers:
            ledger.close()
    assert not bad


def test_three_runners_share_one_postgresql(rehearsal, tmp_path, postgresql_url):
    runners = [JobRunner(Ledger(postgresql_url), Folder(tmp_path), wait=quick) for _ in range(3)]
    jobs = [
        runner.start(make_order(seed=seed), connect(rehearsal))
        for seed in range(4)
        for runner in runners
    ]
    paths = [job.waiter().result(60).path for job in jobs]
    assert len(rehearsal.submissions) == 4
    assert all(path.exists() for path in paths)
    rows = runners[0]._ledger.newest(99)
    assert [row.state.value for row in rows] == ["completed"] * 4


def test_a_cost_that_does_not_come_keeps_nobody_waiting(tmp_path):
    go_on = threading.Event()
    with RawServer() as server:
        hangs = [lambda conn: go_on.wait(20)]
        _, job = accepted(tmp_path, server, clip=[reply(200, made_clip(tmp_path))], result=hangs)
        try:
            assert job.waiter().result(15).cost_usd is None
        finally:
            go_on.set()


def test_a_cost_that_comes_late_is_in_the_ledger(tmp_path):
    with RawServer() as server:
        late = reply(200, {"status": "succeeded", "cost": 0.25})
        nothing = reply(200, {"status": "succeeded"})
        runner, job = accepted(
            tmp_path, server, clip=[reply(200, made_clip(tmp_path))], result=[nothing, late]
        )
        assert job.waiter().result(15).cost_usd is None
        until(lambda: row_of(runner, server).cost_usd == 0.25)


def test_a_graph_may_be_queued_while_its_job_is_picked_up(rehearsal, tmp_path):
    rehearsal.plan(queue_s=1)
    with pytest.raises(errors.JobTimeout):
        run(make_runner(tmp_path), rehearsal, timeout_s=0.2)
    for _ in range(3):
        runner, picked, gate = make_runner(tmp_path), [], threading.Barrier(2)

        def pick_up(runner=runner, picked=picked, gate=gate):
            gate.wait()
            picked.extend(runner.resume(connect(rehearsal)))

        thread = threading.Thread(target=pick_up)
        thread.start()
        gate.wait()
        assert runner.start(make_order(), connect(rehearsal)).waiter().result(30).path.exists()
        thread.join()
        for job in picked:
            job.waiter().exception(30)
    assert len(rehearsal.submissions) == 1
    assert len(list(tmp_path.glob("*.mp4"))) == 1


def test_a_clock_that_jumps_while_a_job_is_sent_loses_nothing(tmp_path):
    answers = iter([reply(429, {"message": "slow"}), reply(200, {"request_id": "r-1"})])

    def slow(conn):
        read_request(conn)
        ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
        (row,) = ledger.newest(1)
        ledger.set(row.id, post_over_at=0.0)  # hours have passed, says the clock
        assert ledger.newest(1)[0].state == JobState.UNKNOWN
        conn.sendall(next(answers))

    with RawServer(slow, slow, answer(200, {"status": "in_queue"})) as server:
        _, error = attempt(tmp_path, server)
    assert isinstance(error, errors.JobTimeout)
    (row,) = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").newest(1)
    assert (row.request_id, row.state) == ("r-1", JobState.IN_QUEUE)
