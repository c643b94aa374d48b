"""Paid jobs from picture to file: what is sent, and what must not be sent, or sent again."""

import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from pack.nodes.core import errors
from pack.nodes.core.job import Connection
from pack.nodes.core.ledger import Ledger
from pack.nodes.core.media import images
from pack.nodes.core.send import SUBMIT_ATTEMPTS
from pack.nodes.core.transport import Transport
from pack.nodes.core.uploaders.inline import InlineUploader
from pack.nodes.rehearsal import Fault, FaultKind
from raw_server import RawServer, answer, read_request, reply
from runner_case import (
    PICTURE,
    REQUEST,
    Folder,
    attempt,
    connect,
    large_order,
    make_order,
    make_runner,
    reset_in_the_body,
    row_of,
    run,
    states,
    until,
)


def test_a_job_ends_as_a_named_clip_of_the_asked_length(runner, rehearsal, tmp_path):
    clip = run(runner, rehearsal)
    assert clip.path.name == f"clip_{clip.info.width}x{clip.info.height}_1.mp4"
    assert clip.info.duration_s == pytest.approx(3, abs=0.1)
    assert clip.cost_usd == pytest.approx(3 * 0.084)
    assert (clip.notes, clip.reused) == ((), False)
    assert clip.request_id == rehearsal.submissions[0].request_id
    assert not list(tmp_path.glob(".*"))


def test_every_step_is_in_the_ledger(runner, rehearsal):
    clip = run(runner, rehearsal)
    (row,) = runner._ledger.newest(9)
    assert states(runner) == [
        "submitting",
        "in_queue",
        "in_progress",
        "downloading",
        "completed",
    ]
    assert (row.request_id, row.path) == (clip.request_id, str(clip.path))
    assert row.cost_usd == clip.cost_usd
    assert row.origin == rehearsal.origin
    assert row.payload["start_image_url"].startswith("sha256:")
    assert rehearsal.token not in f"{row}"


def test_progress_passes_through_the_states(runner, rehearsal):
    rehearsal.plan(queue_s=0.5, run_s=0.5)
    job = runner.start(make_order(), connect(rehearsal))
    seen = []
    while not job.ended:
        line = job.text().split(" · ")[0]
        if line not in seen:
            seen.append(line)
        time.sleep(0.005)
    queued = [i for i, line in enumerate(seen) if "In queue at RunComfy, position" in line]
    assert queued and max(queued) < seen.index("Kling is rendering")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.HTML_502, times=3),
        Fault(FaultKind.RATE_LIMIT, times=2),
        Fault(FaultKind.RATE_LIMIT, times=2, retry_after=0.1),
        Fault(FaultKind.CUT_DOWNLOAD, times=2),
    ],
    ids=lambda fault: f"{fault.kind}",
)
def test_passing_faults_cost_nothing_but_time(runner, rehearsal, fault):
    rehearsal.plan(fault)
    assert run(runner, rehearsal).info.duration_s == pytest.approx(3, abs=0.1)
    assert len(rehearsal.submissions) == 1


def test_a_lost_reply_is_unknown_and_never_sent_again(runner, rehearsal, tmp_path):
    rehearsal.plan(Fault(FaultKind.LOST_REPLY))
    with pytest.raises(errors.SubmitUnknown, match="not sent again"):
        run(runner, rehearsal)
    assert states(runner) == ["submitting", "unknown"]
    for one in (runner, make_runner(tmp_path)):
        with pytest.raises(errors.SubmitUnknown, match="change the seed"):
            run(one, rehearsal)
    assert len(rehearsal.submissions) == 1


def test_a_ledger_that_cannot_be_written_means_no_post(runner, rehearsal, monkeypatch):
    def broken(*_, **__):
        raise errors.LedgerError("disk full")

    monkeypatch.setattr(runner._ledger, "claim", broken)
    with pytest.raises(errors.LedgerError, match="disk full"):
        run(runner, rehearsal)
    assert rehearsal.requests == []


def test_a_ledger_that_fails_after_the_post_does_not_lose_the_clip(
    runner, rehearsal, monkeypatch, caplog
):
    advance, failures = runner._ledger.advance, iter([True, True, False])

    def shaky(*args, **values):
        if next(failures, False):
            raise errors.LedgerError("busy")
        return advance(*args, **values)

    monkeypatch.setattr(runner._ledger, "advance", shaky)
    clip = run(runner, rehearsal)
    assert clip.path.exists()
    assert f"request {clip.request_id} goes on, but is not in the ledger" in caplog.text
    assert states(runner) == ["submitting", "in_queue", "in_progress", "downloading", "completed"]
    assert row_of(runner, rehearsal).request_id == clip.request_id


def test_a_wrong_token_is_refused_before_anything_starts_and_may_be_mended(runner, rehearsal):
    with pytest.raises(errors.AuthError, match="nothing was charged"):
        run(runner, rehearsal, token="wrong")
    assert rehearsal.submissions == []
    assert run(runner, rehearsal).path.exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": torch.rand((200, 480, 3))}, "480 × 200"),
        ({"end_image": PICTURE}, "takes no end image"),
        ({"prefix": "../out"}, "out of bounds"),
    ],
)
def test_a_bad_order_is_refused_before_anything_is_sent(runner, rehearsal, values, said):
    with pytest.raises(errors.InputError, match=said):
        run(runner, rehearsal, make_order(**values))
    assert rehearsal.requests == []
    assert runner._ledger.newest(9) == []


def test_an_end_image_and_an_address_go_out_as_they_are(runner, rehearsal):
    request = replace(REQUEST, model="kling-3.0/pro")
    picture = images.encode(images.check(PICTURE, "x"), max_bytes=1 << 20).data
    with RawServer(answer(200, picture, Content_Type="image/png")) as host:
        url = f"{host.origin}/start.png"
        order = make_order(request=request, image=None, start_image_url=url, end_image=PICTURE)
        assert run(runner, rehearsal, order).path.exists()
    (sent,) = rehearsal.submissions
    assert sent.payload["start_image_url"] == url
    assert sent.payload["end_image_url"].startswith("data:image/png;base64,")


def test_what_was_done_to_the_picture_is_said_with_the_clip(runner, rehearsal):
    clip = run(runner, rehearsal, make_order(image=torch.rand((360, 480, 4))))
    assert clip.notes == ("start_image: its transparent parts are sent on white.",)


def test_a_refusal_for_the_rate_is_sent_again_later(tmp_path):
    slow_down = answer(429, {"message": "slow"}, Retry_After="1")
    queued = answer(200, {"status": "in_queue"})
    with RawServer(slow_down, slow_down, answer(200, {"request_id": "r-1"}), queued) as server:
        waits, error = attempt(tmp_path, server)
    assert isinstance(error, errors.JobTimeout)
    assert waits[:2] == [2.0, 4.0]


def test_a_refusal_for_the_rate_is_sent_again_when_the_server_says_and_is_not_over_before(tmp_path):
    over_at = []

    def look(conn):
        read_request(conn)
        (row,) = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").newest(1)
        over_at.append(row.post_over_at)
        refused = reply(429, {"message": "slow"}, Retry_After="20")
        conn.sendall(refused if len(over_at) == 1 else reply(200, {"request_id": "r-1"}))

    with RawServer(look, look, answer(200, {"status": "in_queue"})) as server:
        waits, error = attempt(tmp_path, server)
    assert isinstance(error, errors.JobTimeout)
    assert waits[0] == 20
    assert over_at[1] - over_at[0] >= 20


def test_no_balance_is_not_tried_again(tmp_path):
    with RawServer(answer(402, {"message": "no money"})) as server:
        waits, error = attempt(tmp_path, server)
    assert isinstance(error, errors.PaymentError)
    assert (server.connections, waits) == (1, [])


def test_a_job_that_never_left_is_sent_again(tmp_path):
    accepted = answer(200, {"request_id": "r-1"})
    scripts = [reset_in_the_body, reset_in_the_body, accepted, answer(200, {"status": "in_queue"})]
    with RawServer(*scripts) as server:
        waits, error = attempt(tmp_path, server, large_order())
    assert isinstance(error, errors.JobTimeout) and error.request_id == "r-1"
    assert waits == [2.0, 4.0]


def test_a_job_that_never_leaves_is_given_up_after_some_attempts(tmp_path):
    with RawServer(reset_in_the_body) as server:
        _, error = attempt(tmp_path, server, large_order())
    assert isinstance(error, errors.NeverLeft)
    assert server.connections == SUBMIT_ATTEMPTS


def test_an_answer_that_breaks_everything_after_the_post_ends_unknown(tmp_path):
    nested = b'{"detail":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with RawServer(answer(200, nested)) as server:
        runner = make_runner(tmp_path)
        transport = Transport(server.origin, "token-1")
        connection = Connection(transport, InlineUploader(), poll_s=1, timeout_s=9)
        with pytest.raises(errors.SubmitUnknown):
            runner.start(make_order(), connection).waiter().result(10)
        with pytest.raises(errors.SubmitUnknown):
            runner.start(make_order(), connection).waiter().result(10)
        assert server.connections == 1


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_an_unexpected_fault_reaches_the_waiter_with_the_id(runner, rehearsal, monkeypatch, kind):
    def broken(*_):
        raise kind("surprise")

    monkeypatch.setattr(Folder, "candidate", broken)
    with pytest.raises(
        errors.RunComfyError, match=f"Unexpected {kind.__name__}: surprise"
    ) as caught:
        run(runner, rehearsal)
    assert caught.value.request_id == rehearsal.submissions[0].request_id
    monkeypatch.undo()
    assert run(runner, rehearsal).reused


def test_no_thread_is_left_when_a_job_has_ended(runner, rehearsal):
    before = set(threading.enumerate())
    run(runner, rehearsal)
    until(lambda: not {t for t in threading.enumerate() if "runcomfy" in t.name} - before)


def test_an_address_of_this_machine_is_not_sent_to_runcomfy(runner):
    order = make_order(image=None, start_image_url="http://127.0.0.1:8188/view?filename=a.png")
    transport = Transport("https://model-api.runcomfy.invalid", "token-1")
    job = runner.start(order, Connection(transport, InlineUploader(), poll_s=1, timeout_s=9))
    with pytest.raises(errors.InputError, match="an address of this machine"):
        job.waiter().result(10)
    assert runner._ledger.newest(9) == []


def test_what_the_ledger_could_not_take_during_the_job_is_written_after_it(
    runner, rehearsal, monkeypatch
):
    advance, working = runner._ledger.advance, threading.Event()

    def broken(*args, **values):
        if not working.is_set():
            raise errors.LedgerError("disk full")
        return advance(*args, **values)

    monkeypatch.setattr(runner._ledger, "advance", broken)
    clip = run(runner, rehearsal)
    assert clip.path.exists()
    working.set()
    until(lambda: states(runner)[-1] == "completed")
    assert row_of(runner, rehearsal).request_id == clip.request_id


def test_too_many_calls_hold_all_jobs_back_and_none_is_lost(tmp_path):
    """The first is told to slow down; nobody else sends before that time is over."""
    refused_at, sent_at = [], []

    def api(conn):
        head = read_request(conn)
        if b"image-to-video" not in head:
            conn.sendall(reply(200, {"status": "in_queue"}))
        elif not refused_at:
            refused_at.append(time.monotonic())
            conn.sendall(reply(429, {"message": "slow"}, Retry_After="2"))
        else:
            sent_at.append(time.monotonic())
            conn.sendall(reply(200, {"request_id": f"r-{len(sent_at)}"}))

    with RawServer(api) as server:
        runner = make_runner(tmp_path, wait=threading.Event.wait)
        connection = Connection(
            Transport(server.origin, "t"), InlineUploader(), poll_s=1, timeout_s=60
        )
        first = runner.start(make_order(), connection)
        until(lambda: refused_at)
        others = runner.start_all([make_order(seed=n) for n in (1, 2)], connection)
        until(lambda: all(job.progress.request_id for job in (first, *others)))
        for job in (first, *others):
            runner.stop(job)
    assert sent_at[0] - refused_at[0] >= 2
    assert all(later - sooner > 0.5 for sooner, later in pairwise(sent_at))
