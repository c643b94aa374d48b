"""Paid jobs from picture to file, against the stand-in API over real HTTP and a real ledger."""

import json
import os
import re
import threading
import time
from dataclasses import replace

import av
import pytest
import torch
from pack.nodes.core import collect, errors
from pack.nodes.core.job import Connection, Order
from pack.nodes.core.jobs import SUBMIT_ATTEMPTS, JobRunner
from pack.nodes.core.kling import KlingRequest
from pack.nodes.core.ledger import Ledger
from pack.nodes.core.media import images
from pack.nodes.core.states import JobState
from pack.nodes.core.transport import Transport
from pack.nodes.core.uploaders.inline import InlineUploader
from pack.nodes.rehearsal import Fault, FaultKind
from raw_server import RawServer, answer, read_request, reply, reset, routed
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


@pytest.fixture
def runner(tmp_path):
    """A runner as one process has it."""
    return make_runner(tmp_path)


def make_runner(folder, wait=quick):
    """A runner as a process started anew has it."""
    return JobRunner(Ledger(f"sqlite:///{folder / 'ledger.db'}"), Folder(folder), wait=wait)


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


# -- the same request again


def test_the_same_request_again_is_the_same_clip_for_nothing(runner, rehearsal):
    first, second = run(runner, rehearsal), run(runner, rehearsal)
    assert (second.path, second.request_id) == (first.path, first.request_id)
    assert second.reused
    assert second.notes[0] == (
        "Reused, $0: this very request was made before. It cost $0.25 then. "
        "Change the seed for a new take."
    )
    assert len(rehearsal.submissions) == 1


def test_the_same_request_after_a_restart_is_the_same_clip(runner, rehearsal, tmp_path):
    first = run(runner, rehearsal)
    second = run(make_runner(tmp_path), rehearsal)
    assert second.path == first.path
    assert len(rehearsal.submissions) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"request": replace(REQUEST, prompt="other")},
        {"request": replace(REQUEST, cfg_scale=0.6)},
        {"image": 1 - PICTURE},
    ],
)
def test_any_change_of_the_request_is_a_new_take(runner, rehearsal, change):
    first, second = run(runner, rehearsal), run(runner, rehearsal, make_order(**change))
    assert first.path != second.path
    assert len(rehearsal.submissions) == 2


def test_changed_pixels_alone_are_pointed_out_where_the_first_clip_was_not_collected(
    runner, rehearsal
):
    first = run(runner, rehearsal)
    second = run(runner, rehearsal, make_order(image=1 - PICTURE))
    assert f"Request {first.request_id} differs from this one in its pixels only" in second.notes[0]
    runner.collected(first)
    runner.collected(second)
    assert run(runner, rehearsal, make_order(image=PICTURE * 0.5)).notes == ()


def test_another_prefix_is_the_same_request(runner, rehearsal):
    first = run(runner, rehearsal)
    assert run(runner, rehearsal, make_order(prefix="elsewhere")).path == first.path


def test_two_that_start_together_are_one_job(runner, rehearsal):
    jobs = [runner.start(make_order(), connect(rehearsal)) for _ in range(4)]
    clips = [job.waiter().result(30) for job in jobs]
    assert len({clip.path for clip in clips}) == 1
    assert sorted(clip.reused for clip in clips) == [False, True, True, True]
    assert len(rehearsal.submissions) == 1


def test_a_job_under_way_is_joined(runner, rehearsal):
    rehearsal.plan(queue_s=1)
    first = runner.start(make_order(), connect(rehearsal))
    until(lambda: first.progress.state == JobState.IN_QUEUE)
    second = runner.start(make_order(), connect(rehearsal))
    assert second.waiter().result(30).notes[0].startswith("Joined, $0 more")
    assert first.waiter().result(0).notes == ()


def test_two_processes_that_start_together_are_one_job(rehearsal, tmp_path):
    runners = [make_runner(tmp_path) for _ in range(3)]
    jobs = [one.start(make_order(), connect(rehearsal)) for one in runners]
    assert len({job.waiter().result(30).request_id for job in jobs}) == 1
    assert len(rehearsal.submissions) == 1


def test_a_process_that_died_before_it_wrote_the_end_down_leaves_a_clip_that_is_found(
    runner, rehearsal, monkeypatch, tmp_path
):
    first = run(runner, rehearsal)
    (row,) = runner._ledger.newest(9)
    runner._ledger.advance(row.id, JobState.DOWNLOADING)
    asked = len(rehearsal.requests)
    second = run(make_runner(tmp_path), rehearsal)
    assert second.path == first.path
    assert len(rehearsal.requests) == asked
    assert states(runner)[-1] == "completed"


def test_a_name_that_was_written_down_but_went_to_another_clip_is_not_taken(runner, rehearsal):
    first = run(runner, rehearsal)
    (row,) = runner._ledger.newest(9)
    runner._ledger.advance(row.id, JobState.DOWNLOADING)
    another = make_clip(first.path).read_bytes()
    second = run(runner, rehearsal)
    assert second.path != first.path
    assert first.path.read_bytes() == another


def test_a_file_that_was_deleted_is_fetched_again(runner, rehearsal):
    first = run(runner, rehearsal)
    first.path.unlink()
    second = run(runner, rehearsal)
    assert second.path.exists() and second.request_id == first.request_id
    assert second.notes[0].startswith("Fetched again, $0")
    assert len(rehearsal.submissions) == 1


def test_a_clip_that_is_gone_everywhere_is_said_and_not_paid_again(runner, rehearsal):
    first = run(runner, rehearsal)
    first.path.unlink()
    for file in rehearsal._folder.glob("*.mp4"):
        file.unlink()
    with pytest.raises(errors.ResultExpired, match="change the seed"):
        run(runner, rehearsal)
    assert states(runner)[-1] == "expired"
    with pytest.raises(errors.ResultExpired, match="change the seed"):
        run(runner, rehearsal)
    assert len(rehearsal.submissions) == 1


def test_another_accounts_job_is_reported_not_paid_again(runner, rehearsal):
    first = run(runner, rehearsal)
    first.path.unlink()
    with pytest.raises(errors.InputError, match="another RunComfy account"):
        run(runner, rehearsal, token="other-token")
    assert len(rehearsal.submissions) == 1


def test_a_failed_job_may_be_tried_again(runner, rehearsal):
    rehearsal.plan(Fault(FaultKind.FAILED_JOB, message="the content was refused"))
    with pytest.raises(errors.JobFailed, match="the content was refused") as caught:
        run(runner, rehearsal)
    assert caught.value.request_id == rehearsal.submissions[0].request_id
    assert states(runner)[-1] == "failed"
    assert run(runner, rehearsal).path.exists()
    assert len(rehearsal.submissions) == 2


# -- what must not be sent, or sent again


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
    waits = []
    slow_down = answer(429, {"message": "slow"}, Retry_After="1")
    with RawServer(slow_down, slow_down, answer(200, {"request_id": "r-1"})) as server:
        runner = make_runner(tmp_path, wait=lambda event, seconds: waits.append(seconds))
        connection = Connection(
            Transport(server.origin, "t"), InlineUploader(), poll_s=1, timeout_s=0
        )
        with pytest.raises(errors.JobTimeout):
            runner.start(make_order(), connection).waiter().result(10)
    assert waits[:2] == [2.0, 4.0]
    assert server.connections >= 4


def attempt(tmp_path, server, order=None, **values):
    """The waits of a job that is sent to this server, and what came of it."""
    waits = []
    runner = make_runner(tmp_path, wait=lambda event, seconds: waits.append(seconds))
    connection = Connection(Transport(server.origin, "t"), InlineUploader(), poll_s=1, timeout_s=0)
    job = runner.start(order or make_order(), connection)
    return waits, job.waiter().exception(30)


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


def reset_in_the_body(conn):
    conn.recv(4096)
    reset(conn)


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


# -- waiting and stopping


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


def scripted(tmp_path, *scripts):
    """A runner, and a job at RunComfy that answers by these scripts after the submit."""
    server = RawServer(answer(200, {"request_id": "r-1"}), *scripts)
    connection = Connection(
        Transport(server.origin, "token-1"), InlineUploader(), poll_s=1, timeout_s=60
    )
    runner = make_runner(tmp_path)
    return runner, runner.start(make_order(), connection), server


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
    said = f"Stopped. The clip was already made (about $0.25) and saved: {clip.path}"
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


def test_every_error_of_a_sent_job_names_its_request(runner, rehearsal, monkeypatch):
    def gone(*_, **__):
        raise errors.NetworkError("cut again and again")

    monkeypatch.setattr(collect, "download", gone)
    with pytest.raises(errors.NetworkError) as caught:
        run(runner, rehearsal)
    assert rehearsal.submissions[0].request_id in str(caught.value)


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


def test_a_dead_link_is_asked_for_again_by_id(tmp_path):
    links = []

    def api(conn):
        path = read_request(conn).decode().split(" ")[1]
        if path.startswith("/clip"):
            body = made if path == "/clip-2" else b""
            status = 200 if body else 404
        else:
            links.append(path)
            url = (
                f"http://{conn.getsockname()[0]}:{conn.getsockname()[1]}/clip-{min(len(links), 2)}"
            )
            body = json.dumps({"status": "succeeded", "output": {"video": url}}).encode()
            status = 200
        conn.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n".encode())
        conn.sendall(b"Connection: close\r\n\r\n" + body)

    made = make_clip(tmp_path / "made.clip", frames=72).read_bytes()
    _, job, server = scripted(tmp_path, api)
    assert job.waiter().result(30).path.exists()
    server.close()


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


def test_a_page_in_the_place_of_the_clip_is_fetched_again(tmp_path):
    replies = [reply(200, b"<html>one moment</html>"), reply(200, made_clip(tmp_path))]
    with RawServer() as server:
        _, job = accepted(tmp_path, server, clip=replies, cost=0.25)
        clip = job.waiter().result(30)
    assert clip.info.duration_s == pytest.approx(3, abs=0.1)
    assert clip.notes == ()


def test_a_clip_of_another_length_is_said(tmp_path):
    with RawServer() as server:
        _, job = accepted(tmp_path, server, clip=[reply(200, made_clip(tmp_path, 48))])
        assert job.waiter().result(30).notes == ("The clip lasts 2.0 s; 3 s were asked for.",)


@pytest.mark.parametrize(
    ("late", "cost_usd"),
    [
        (reply(200, {"status": "succeeded", "cost": 0.25}), 0.25),
        (reply(502, b"<html>gateway</html>"), None),
        (reply(404, {"error_code": 404001, "error_message": "gone"}), None),
    ],
    ids=["told", "gateway", "gone"],
)
def test_a_cost_that_is_told_late_is_written_and_one_that_is_not_told_harms_nothing(
    tmp_path, late, cost_usd
):
    with RawServer() as server:
        runner, job = accepted(
            tmp_path, server, clip=[reply(200, made_clip(tmp_path))], result=[late]
        )
        clip = job.waiter().result(30)
    assert clip.path.exists()
    (row,) = runner._ledger.newest(9)
    assert (row.state, row.cost_usd, clip.cost_usd) == (JobState.COMPLETED, cost_usd, cost_usd)


def test_the_connection_is_closed_when_the_job_has_ended(tmp_path):
    closed = []

    def keep_alive(conn):
        for status in ("completed", "failed"):
            read_request(conn)
            conn.sendall(reply(200, {"status": status}).replace(b"Connection: close\r\n", b""))
        closed.append(conn.recv(1) == b"")

    _, job, server = scripted(tmp_path, keep_alive)
    assert isinstance(job.waiter().exception(10), errors.JobFailed)
    until(lambda: closed, 4)
    server.close()


def halfway(data, meanwhile):
    """Sends half a clip, and the rest after ``meanwhile``."""

    def script(conn):
        whole = reply(200, data)
        conn.sendall(whole[: len(whole) // 2])
        meanwhile()
        conn.sendall(whole[len(whole) // 2 :])

    return script


def test_stop_while_downloading_says_that_the_clip_is_made_and_saves_it(tmp_path):
    go_on = threading.Event()
    with RawServer() as server:
        clip = halfway(made_clip(tmp_path), lambda: go_on.wait(10))
        runner, job = accepted(tmp_path, server, clip=[clip])
        until(lambda: job.progress.bytes_done)
        said = runner.stop(job).result(4)
        go_on.set()
        assert said == "Stopped. The clip was already made (about $0.25), it is saved."
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
        assert "The clip was already made (about $0.25) and saved" in said.result(10)


def test_an_odd_request_id_makes_a_plain_file_name(tmp_path):
    names, request_id = [], "a:b.c" + "x" * 100

    def look():
        until(lambda: list(tmp_path.glob(".runcomfy-*")))
        names.extend(path.name for path in tmp_path.glob(".runcomfy-*"))

    with RawServer() as server:
        clip = halfway(made_clip(tmp_path), look)
        _, job = accepted(tmp_path, server, clip=[clip], request_id=request_id)
        assert job.waiter().result(30).request_id == request_id
    assert [re.sub(r"\.[0-9a-f]{8}\.", ".?.", name) for name in names] == [
        f".runcomfy-a_b_c{'x' * 59}.?.part"
    ]


def test_leftovers_of_dead_processes_are_removed_once_they_are_an_hour_old(tmp_path):
    old, young = tmp_path / ".runcomfy-r-1.aaaa.part", tmp_path / ".runcomfy-r-1.bbbb.part"
    for path, age_s in ((old, 3700), (young, 3500)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s,) * 2)
    with RawServer() as server:
        _, job = accepted(tmp_path, server, clip=[reply(200, made_clip(tmp_path))])
        job.waiter().result(30)
    assert list(tmp_path.glob(".runcomfy-*")) == [young]


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


# -- the file


def test_parallel_jobs_get_names_of_their_own(runner, rehearsal, tmp_path):
    jobs = [runner.start(make_order(seed=n), connect(rehearsal)) for n in range(4)]
    assert len({job.waiter().result(60).path for job in jobs}) == 4
    assert len(list(tmp_path.glob("*.mp4"))) == 4


def test_a_name_that_was_taken_meanwhile_is_not_overwritten(runner, rehearsal, monkeypatch):
    candidate, taken = Folder.candidate, []

    def beaten(self, *args):
        path = candidate(self, *args)
        if not taken:
            taken.append(path)
            path.write_bytes(b"somebody else's")
        return path

    monkeypatch.setattr(Folder, "candidate", beaten)
    clip = run(runner, rehearsal)
    assert clip.path != taken[0]
    assert taken[0].read_bytes() == b"somebody else's"


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX only")
def test_the_clip_and_its_name_are_synced_to_disk(runner, rehearsal, monkeypatch, tmp_path):
    synced, fsync = [], os.fsync

    def noted(file):
        synced.append(os.fstat(file).st_ino)
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    clip = run(runner, rehearsal)
    assert synced.index(clip.path.stat().st_ino) < synced.index(tmp_path.stat().st_ino)


def test_a_disk_without_hard_links_will_do(runner, rehearsal, monkeypatch, tmp_path):
    def no_links(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    assert run(runner, rehearsal).info.duration_s == pytest.approx(3, abs=0.1)
    assert not list(tmp_path.glob(".*"))


def test_the_graph_is_in_the_files_metadata_and_the_streams_are_untouched(runner, rehearsal):
    graph = {"prompt": {"1": {"class_type": "X"}}, "workflow": {"nodes": [1, "é"]}}
    clip = run(runner, rehearsal, make_order(**graph))
    (original,) = rehearsal._folder.glob("*.mp4")
    with av.open(str(clip.path)) as container:
        assert json.loads(container.metadata["prompt"]) == graph["prompt"]
        assert json.loads(container.metadata["workflow"]) == graph["workflow"]
    assert packets(clip.path) == packets(original)


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux() if packet.size]
