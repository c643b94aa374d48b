"""Texts, lines and leftovers of runs in the real engine and at the core."""

import gc
import time
import weakref
from dataclasses import replace

import torch
from pack.nodes.core import errors
from pack.nodes.core.job import Clip
from pack.nodes.core.states import JobState
from pack.nodes.core.uploaders.inline import InlineUploader
from pack.nodes.rehearsal import Fault, FaultKind
from runner_case import connect, make_order, make_runner, until
from test_batches import batch_of, shades


def picture(n=0):
    return torch.rand((360, 480, 3), generator=torch.Generator().manual_seed(100 + n))


def test_pictures_are_not_kept_while_kling_works(runner, rehearsal):
    for _ in range(3):
        rehearsal.plan(queue_s=60)
    pictures = [picture(n) for n in range(3)]
    dead = [weakref.ref(one) for one in pictures]
    orders = [make_order(one) for one in pictures]
    started = runner.start_all(orders, connect(rehearsal))
    del orders, pictures
    until(lambda: all(job.progress.state == JobState.IN_QUEUE for job in started))
    until(lambda: gc.collect() >= 0 and not any(one() is not None for one in dead))
    for job in started:
        runner.stop(job)


def test_pictures_are_not_kept_while_a_job_of_before_is_waited_for(runner, rehearsal, tmp_path):
    rehearsal.plan(queue_s=60)
    first = runner.start(make_order(picture()), connect(rehearsal))
    until(lambda: first.progress.state == JobState.IN_QUEUE)
    one = picture()
    dead = weakref.ref(one)
    other = make_runner(tmp_path)
    job = other.start(make_order(one), connect(rehearsal))
    del one
    until(lambda: job.progress.state == JobState.IN_QUEUE)
    try:
        until(lambda: gc.collect() >= 0 and dead() is None, 3)
    finally:
        other.stop(job)


def test_a_failed_job_keeps_no_pictures(runner, rehearsal):
    rehearsal.plan(Fault(FaultKind.FAILED_JOB, message="x"))
    one = picture()
    dead = weakref.ref(one)
    job = runner.start(make_order(one), connect(rehearsal))
    del one
    assert job.waiter().exception(30)
    until(lambda: gc.collect() >= 0 and dead() is None, 3)


class Down(InlineUploader):
    calls = 0

    def upload(self, data, content_type):
        Down.calls += 1
        if Down.calls > 1:
            raise errors.UploadError("the host is down")
        return super().upload(data, content_type)


def test_what_was_made_while_a_job_stood_in_line_needs_no_upload(runner, rehearsal):
    connection = replace(connect(rehearsal, max_concurrent=1), uploader=Down())
    jobs = [runner.start(make_order(), connection) for _ in range(2)]
    for job in jobs:
        assert isinstance(job.waiter().result(30), Clip)


def test_a_long_line_costs_little(runner, rehearsal):
    rehearsal.plan(queue_s=600)
    started = runner.start_all(
        [make_order(seed=n) for n in range(1000)], connect(rehearsal, max_concurrent=1)
    )
    until(lambda: started[-1].progress.in_line, 100)
    cpu, wall = time.process_time(), time.monotonic()
    time.sleep(5)
    print("CPU share", (time.process_time() - cpu) / (time.monotonic() - wall))
    began = time.monotonic()
    said = [runner.stop(job) for job in started]
    for one in said:
        one.result(60)
    print("stop took", time.monotonic() - began)


def test_the_error_of_a_batch_names_no_folder_of_the_disk(engine, api):
    api.plan(Fault(FaultKind.FAILED_JOB, message="too dark"))
    outcome = engine.run(batch_of(engine, [torch.stack(shades(2))]))
    (data,) = [data for name, data in outcome.events if name == "execution_error"]
    assert data["exception_type"] == "runcomfy.RunComfyError"


def test_a_batch_does_not_ask_to_pay_for_what_is_never_sent_again(engine, api):
    api.plan(Fault(FaultKind.LOST_REPLY))
    outcome = engine.run(batch_of(engine, [torch.stack(shades(2))]))
    head, line = outcome.error.splitlines()
    assert "not sent again by itself" in line
    assert "Queue again to pay" not in head, outcome.error


def test_a_written_video_is_the_same_at_another_time(engine, tmp_path):
    from test_video import make_clip

    clip = make_clip(tmp_path / "subject.mp4", frames=120, size=(800, 720))
    made_mp4 = engine.module("nodes.video_input").mp4_file
    from comfy_api.latest import InputImpl

    video = InputImpl.VideoFromFile(str(clip)).as_trimmed(0.5, 3.2)
    first = made_mp4(video)
    time.sleep(2.1)
    second = made_mp4(video)
    assert first.sha256 == second.sha256
    components = InputImpl.VideoFromFile(str(clip)).get_components()
    made = InputImpl.VideoFromComponents(components)
    first = made_mp4(made)
    time.sleep(2.1)
    assert first.sha256 == made_mp4(made).sha256


def test_stop_while_told_to_wait(runner, tmp_path):
    from pack.nodes.core.job import Connection
    from pack.nodes.core.transport import Transport
    from raw_server import RawServer, answer

    with RawServer(
        answer(429, {"error_code": 429001, "error_message": "slow"}, Retry_After="200")
    ) as server:
        connection = Connection(
            Transport(server.origin, "t"), InlineUploader(), poll_s=1, timeout_s=9
        )
        import threading

        own = make_runner(tmp_path, wait=threading.Event.wait)
        started = own.start_all([make_order(seed=n) for n in range(3)], connection)
        until(lambda: server.connections >= 1)
        time.sleep(0.5)
        for future in [own.stop(job) for job in started]:
            assert "Nothing is charged" in future.result(10)
        assert [row.state for row in own._ledger.newest(9)] == [JobState.CANCELLED] * 3
