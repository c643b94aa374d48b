"""One paid job from picture to file, against the stand-in API over real HTTP."""

import threading
import time

import pytest
import torch
from pack.nodes.core import errors
from pack.nodes.core.job import Order, Phase
from pack.nodes.core.jobs import JobRunner
from pack.nodes.core.kling import KlingRequest
from pack.nodes.core.transport import Transport
from pack.nodes.core.uploaders.inline import InlineUploader
from pack.nodes.rehearsal import Fault, FaultKind

REQUEST = KlingRequest("a cup of coffee, steam rising", duration_s=3, generate_audio=False)


def make_order(folder, image=None, request=REQUEST):
    names = iter(range(1, 100))

    def name_clip(width, height):
        path = folder / f"clip_{width}x{height}_{next(names)}.mp4"
        path.touch(exist_ok=False)
        return path

    picture = torch.rand((360, 480, 3)) if image is None else image
    return Order(request, picture, folder, name_clip)


def make_runner(rehearsal, **values):
    def quick(event, seconds):
        return event.wait(min(seconds, 0.1))

    options = {"poll_s": 1, "timeout_s": 60, "wait": quick, **values}
    return JobRunner(Transport(rehearsal.origin, rehearsal.token), InlineUploader(), **options)


def run(rehearsal, folder, **values):
    job = make_runner(rehearsal, **values).start(make_order(folder))
    return job, job.waiter().result(30)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def test_a_job_ends_as_a_named_clip_of_the_asked_length(rehearsal, tmp_path):
    job, clip = run(rehearsal, tmp_path)
    assert clip.path.name == f"clip_{clip.info.width}x{clip.info.height}_1.mp4"
    assert clip.info.duration_s == pytest.approx(3, abs=0.1)
    assert clip.cost_usd == pytest.approx(3 * 0.084)
    assert clip.notes == ()
    assert clip.request_id == rehearsal.submissions[0].request_id
    assert job.progress.phase == Phase.COMPLETED
    assert not list(tmp_path.glob(".*"))


def test_progress_passes_through_the_states(rehearsal, tmp_path):
    rehearsal.plan(queue_s=0.5, run_s=0.5)
    job = make_runner(rehearsal).start(make_order(tmp_path))
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
def test_passing_faults_cost_nothing_but_time(rehearsal, tmp_path, fault):
    rehearsal.plan(fault)
    _, clip = run(rehearsal, tmp_path)
    assert clip.info.duration_s == pytest.approx(3, abs=0.1)
    assert len(rehearsal.submissions) == 1


def test_a_lost_reply_is_unknown_and_never_sent_again(rehearsal, tmp_path):
    rehearsal.plan(Fault(FaultKind.LOST_REPLY))
    with pytest.raises(errors.SubmitUnknown, match="not sent again"):
        run(rehearsal, tmp_path)
    assert len(rehearsal.submissions) == 1


def test_a_failed_job_says_why_and_names_its_id(rehearsal, tmp_path):
    rehearsal.plan(Fault(FaultKind.FAILED_JOB, message="the content was refused"))
    with pytest.raises(errors.JobFailed, match="the content was refused") as caught:
        run(rehearsal, tmp_path)
    assert caught.value.request_id == rehearsal.submissions[0].request_id


def test_a_wrong_token_is_refused_before_anything_starts(rehearsal, tmp_path):
    runner = JobRunner(
        Transport(rehearsal.origin, "wrong"), InlineUploader(), poll_s=1, timeout_s=60
    )
    with pytest.raises(errors.AuthError, match="nothing was charged"):
        runner.start(make_order(tmp_path)).waiter().result(10)
    assert rehearsal.submissions == []


def test_a_bad_picture_is_refused_before_anything_is_sent(rehearsal, tmp_path):
    job = make_runner(rehearsal).start(make_order(tmp_path, torch.rand((200, 480, 3))))
    with pytest.raises(errors.InputError, match="480 × 200"):
        job.waiter().result(10)
    assert rehearsal.requests == []


def test_what_was_done_to_the_picture_is_said_with_the_clip(rehearsal, tmp_path):
    image = torch.rand((360, 480, 4))
    job = make_runner(rehearsal).start(make_order(tmp_path, image))
    assert job.waiter().result(30).notes == (
        "start_image: its transparent parts are sent on white.",
    )


def test_a_timeout_leaves_the_job_collectable(rehearsal, tmp_path):
    rehearsal.plan(queue_s=30)
    job = make_runner(rehearsal, timeout_s=0.5).start(make_order(tmp_path))
    with pytest.raises(errors.JobTimeout, match="collectable"):
        job.waiter().result(10)
    assert job.progress.phase == Phase.IN_QUEUE


def test_a_waiter_that_gives_up_leaves_job_and_others_alone(rehearsal, tmp_path):
    job = make_runner(rehearsal).start(make_order(tmp_path))
    first, second = job.waiter(), job.waiter()
    assert first.cancel()
    assert second.result(30).path.exists()
    assert job.waiter().result(0).path.exists()


def test_stop_in_the_queue_cancels_at_runcomfy(rehearsal, tmp_path):
    rehearsal.plan(queue_s=30)
    runner = make_runner(rehearsal)
    job = runner.start(make_order(tmp_path))
    until(lambda: job.progress.phase == Phase.IN_QUEUE)
    assert "cancelled: no charge" in runner.stop(job).result(10)
    with pytest.raises(errors.JobCancelled):
        job.waiter().result(10)


def test_stop_while_rendering_says_the_charge_and_collects(rehearsal, tmp_path):
    rehearsal.plan(queue_s=0, run_s=2)
    runner = make_runner(rehearsal)
    job = runner.start(make_order(tmp_path))
    until(lambda: job.progress.phase == Phase.IN_PROGRESS)
    said = runner.stop(job).result(10)
    assert "cannot be cancelled and is charged, about $0.25" in said
    assert job.waiter().result(30).path.exists()


def test_stop_before_the_submit_sends_nothing(rehearsal, tmp_path, monkeypatch):
    go_on = threading.Event()
    upload = InlineUploader.upload

    def slow(self, data, content_type):
        go_on.wait(10)
        return upload(self, data, content_type)

    monkeypatch.setattr(InlineUploader, "upload", slow)
    runner = make_runner(rehearsal)
    job = runner.start(make_order(tmp_path))
    said = runner.stop(job)
    go_on.set()
    assert said.result(10) == "Stopped before the job was sent. Nothing is charged."
    assert rehearsal.submissions == []


def test_an_unexpected_fault_reaches_the_waiter_with_the_id(rehearsal, tmp_path):
    order = make_order(tmp_path)

    def broken(width, height):
        raise RuntimeError("surprise")

    job = make_runner(rehearsal).start(
        Order(order.request, order.start_image, order.folder, broken)
    )
    with pytest.raises(errors.RunComfyError, match="Unexpected RuntimeError: surprise") as caught:
        job.waiter().result(30)
    assert caught.value.request_id == rehearsal.submissions[0].request_id


def test_a_refusal_for_the_rate_is_sent_again_later():
    from raw_server import RawServer, answer

    slow_down = answer(429, {"message": "slow"}, Retry_After="1")
    with RawServer(slow_down, slow_down, answer(200, {"request_id": "r-1"})) as server:
        waits = []
        runner = JobRunner(
            Transport(server.origin, "t"),
            InlineUploader(),
            poll_s=1,
            timeout_s=0,
            wait=lambda event, seconds: waits.append(seconds),
        )
        with pytest.raises(errors.RunComfyError):
            runner.start(make_order(None, torch.rand((300, 300, 3)))).waiter().result(10)
    assert waits[:2] == [2.0, 4.0]
    assert server.connections >= 3


def test_no_thread_is_left_when_a_job_has_ended(rehearsal, tmp_path):
    run(rehearsal, tmp_path)
    until(lambda: not [t for t in threading.enumerate() if t.name == "runcomfy-job"])
