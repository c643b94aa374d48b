"""Runs of several jobs at the core: places, prices, pauses, and what must not be said wrongly."""

import hashlib
from dataclasses import replace

import pytest
import torch
from pack.nodes.core import client as client_module
from pack.nodes.core import errors, jobs
from pack.nodes.core.backoff import Backoff
from pack.nodes.core.client import RunComfyClient
from pack.nodes.core.elements import Element, VideoFile
from pack.nodes.core.job import Clip
from pack.nodes.core.kling import KlingRequest
from pack.nodes.core.states import JobState
from pack.nodes.core.uploaders.inline import InlineUploader
from runner_case import Clock, connect, make_order, make_runner, run, until
from test_budget import NEW, claim, ended, ledger  # noqa: F401


def stopped_and_asked_again(runner, rehearsal, monkeypatch, is_awaited_first=True, **values):
    """A job that is stopped, and the same request before RunComfy has answered the cancel."""
    second = []
    cancel = RunComfyClient.cancel

    def slow(self, request_id):
        until(lambda: second and second[0].follows is not None)
        return cancel(self, request_id)

    monkeypatch.setattr(RunComfyClient, "cancel", slow)
    rehearsal.plan(queue_s=60)
    (first,) = runner.start_all(
        [make_order()], connect(rehearsal, **values), is_awaited=is_awaited_first
    )
    until(lambda: first.progress.state == JobState.IN_QUEUE)
    runner.stop(first)
    second.append(runner.start(make_order(), connect(rehearsal, **values)))
    return first, second[0]


def test_a_request_that_is_sent_anew_after_a_stop_is_new(runner, rehearsal, monkeypatch):
    _, second = stopped_and_asked_again(runner, rehearsal, monkeypatch)
    clip = second.waiter().result(30)
    assert len(rehearsal.submissions) == 2 and not clip.reused
    assert second.is_new


def test_a_request_that_is_sent_anew_after_a_stop_takes_a_place(runner, rehearsal, monkeypatch):
    # the only place is taken
    rehearsal.plan(queue_s=60)
    other = runner.start(make_order(seed=7), connect(rehearsal, max_concurrent=1))
    until(lambda: len(rehearsal.submissions) == 1)
    first, second = stopped_and_asked_again(
        runner, rehearsal, monkeypatch, is_awaited_first=False, max_concurrent=1
    )
    until(lambda: first.ended)
    until(lambda: second.progress.in_line or len(rehearsal.submissions) > 2)
    assert len(rehearsal.submissions) == 2
    runner.stop(other)
    runner.stop(second)


def test_two_that_start_together_are_one_new_job(runner, rehearsal):
    started = [runner.start(make_order(), connect(rehearsal)) for _ in range(4)]
    for job in started:
        job.waiter().result(30)
    assert len(rehearsal.submissions) == 1
    assert sum(bool(job.is_new) for job in started) == 1


# -- back-off --


class Api:
    """Counts questions, and answers by a script."""

    def __init__(self, script):
        self.script, self.asked = script, 0

    def get(self, path, params=None, timeout_s=None):
        self.asked += 1
        return self.script()

    def clean(self, words):
        return str(words)


def queued():
    from pack.nodes.core.answers import Answer

    return Answer(200, {"status": "in_queue"})


def test_a_job_that_pauses_while_another_is_told_to_slow_down_holds_back_too():
    clock = Clock()
    backoff = Backoff(clock)
    api = Api(queued)
    asked_at = []

    def script():
        asked_at.append(clock.now)
        return queued()

    api.script = script
    first_wait = []

    def wait(seconds):
        if not first_wait:  # meanwhile another job gets a 429 with Retry-After: 30
            first_wait.append(seconds)
            backoff.hold(30)
        clock.now += seconds

    watch = RunComfyClient(api, clock=clock).watch(
        "r", wait, poll_s=3, timeout_s=1000, grace_s=0, backoff=backoff
    )
    next(watch)
    next(watch)
    assert asked_at[1] >= 1030


def test_after_a_pause_the_jobs_do_not_all_ask_at_the_same_moment():
    clock = Clock()
    backoff = Backoff(clock)
    waits = []

    class Pause(Exception):
        pass

    def wait(seconds):
        waits.append(seconds)
        raise Pause

    watches = [
        RunComfyClient(Api(queued), clock=clock).watch(
            f"r{n}", wait, poll_s=3, timeout_s=1000, grace_s=0, backoff=backoff
        )
        for n in range(20)
    ]
    for watch in watches:
        next(watch)
    backoff.hold(30)
    for watch in watches:
        with pytest.raises(Pause):
            next(watch)
    assert len(set(waits)) > 10, waits


# -- money --


def test_what_was_cancelled_and_charged_counts(ledger):  # noqa: F811
    row, _ = claim(ledger, "cancelled and charged")
    ledger.advance(row.id, JobState.IN_QUEUE)
    ledger.advance(row.id, JobState.CANCELLED, cost_usd=1.26)
    with pytest.raises(errors.BudgetExceeded):
        ledger.check_budget(NEW.origin, 1.0, 2.0)


def test_what_a_rehearsal_says_it_cost_is_no_real_cost(runner, rehearsal):
    clip = run(runner, rehearsal)
    runner._ledger.set(clip.row_id, cost_usd=0.01, origin="http://127.0.0.1:1")
    job = runner.start(make_order(seed=1), connect(rehearsal))
    until(lambda: job.is_new is not None)
    assert job.price_usd == pytest.approx(0.252)
    job.waiter().result(30)


# -- elements --


class Small(InlineUploader):
    """As inline, with less room."""

    max_total_bytes = 3_000_000
    max_video_bytes = 1_000_000


def noise(seed, side=500):
    return torch.rand((side, side, 3), generator=torch.Generator().manual_seed(seed))


def size_of(value):
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, list):
        return sum(map(size_of, value))
    return len(value) * 3 // 4 if str(value).startswith("data:") else 0


def test_all_pictures_of_a_request_fit_although_one_is_sent_twice(runner, rehearsal):
    elements = tuple(Element(one, (one,)) for one in (noise(1), noise(2), noise(3)))
    request = KlingRequest("@Element1 @Element2 @Element3", duration_s=3)
    order = make_order(noise(4), request=request, elements=elements)
    connection = replace(connect(rehearsal), uploader=Small())
    assert isinstance(runner.start(order, connection).waiter().result(30), Clip)
    assert size_of(rehearsal.submissions[0].payload) <= Small.max_total_bytes


def video_file(path, size):
    path.write_bytes(b"x" * size)
    return VideoFile(path, hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_video_that_is_too_large_refuses_the_run_before_anything_is_sent(
    runner, rehearsal, tmp_path
):
    large = Element(video=video_file(tmp_path / "v.mp4", 1_500_000))
    request = KlingRequest("@Element1", duration_s=3)
    orders = [make_order(), make_order(request=request, elements=(large,))]
    connection = replace(connect(rehearsal), uploader=Small())
    started = runner.start_all(orders, connection)
    for job in started:
        assert "videos up to" in str(job.waiter().exception(30))
    assert rehearsal.submissions == []


def test_a_video_that_changed_while_its_job_was_in_line_is_not_sent(runner, rehearsal, tmp_path):
    file = video_file(tmp_path / "v.mp4", 1000)
    order = make_order(
        request=KlingRequest("@Element1", duration_s=3), elements=(Element(video=file),)
    )
    file.path.write_bytes(b"another video")
    job = runner.start(order, connect(rehearsal))
    assert isinstance(job.waiter().exception(30), errors.InputError)
    assert rehearsal.submissions == []


# -- places --


def test_a_job_whose_thread_does_not_start_gives_its_place_back(runner, rehearsal, monkeypatch):
    thread, count = jobs._thread, []

    def failing(name, target):
        if name == "runcomfy-job":
            count.append(name)
            if len(count) == 1:
                raise RuntimeError("can't start new thread")
        thread(name, target)

    monkeypatch.setattr(jobs, "_thread", failing)
    first = runner.start(make_order(), connect(rehearsal, max_concurrent=1))
    until(lambda: count)
    second = runner.start(make_order(seed=1), connect(rehearsal, max_concurrent=1))
    second.waiter().result(10)
    assert first.ended


def test_stop_of_a_long_line_sends_no_more(runner, rehearsal):
    rehearsal.plan(queue_s=60)
    started = runner.start_all(
        [make_order(seed=n) for n in range(150)], connect(rehearsal, max_concurrent=1)
    )
    until(lambda: len(rehearsal.submissions) == 1, 60)
    until(lambda: started[0].progress.state == JobState.IN_QUEUE, 60)
    for future in [runner.stop(job) for job in started]:
        future.result(60)
    assert len(rehearsal.submissions) == 1


def test_collect_of_an_unknown_id_with_another_token_says_so(runner, rehearsal, monkeypatch):
    monkeypatch.setattr(client_module, "MISSING_S", 0.0)
    monkeypatch.setattr("pack.nodes.core.again.NEW_REQUEST_GRACE_S", 0.0)
    said = []
    for token in (rehearsal.token, "other"):
        job = runner.collect("nonsense", connect(rehearsal, token=token), prefix="clip")
        said.append(str(job.waiter().exception(30)))
    assert "knows no request" in said[0]
    assert "change the seed" not in said[1], said[1]


def test_submit_reports_another_accounts_job(runner, rehearsal, tmp_path):
    rehearsal.plan(queue_s=60)
    first = runner.start(make_order(), connect(rehearsal))
    until(lambda: first.progress.state == JobState.IN_QUEUE)
    other = make_runner(tmp_path)  # after a restart, with another token
    (job,) = other.start_all([make_order()], connect(rehearsal, token="other"), is_awaited=False)
    until(lambda: job.ended or job.progress.request_id)
    # what makes Submit return: with an id it says "1 job paid before" and hands the id on
    assert job.ended and job.progress.request_id is None
    assert "another RunComfy account" in str(job.outcome)
    runner.stop(first)
