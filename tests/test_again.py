"""The same request again: joined, collected, fetched or reused, and never paid twice."""

from dataclasses import replace

import pytest
from pack.nodes.core import errors
from pack.nodes.core.states import JobState
from pack.nodes.rehearsal import Fault, FaultKind
from runner_case import PICTURE, REQUEST, connect, make_order, make_runner, run, states, until
from test_video import make_clip


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
    runner._ledger.reopen(row.id)
    asked = len(rehearsal.requests)
    second = run(make_runner(tmp_path), rehearsal)
    assert second.path == first.path
    assert len(rehearsal.requests) == asked
    assert states(runner)[-1] == "completed"


def test_a_name_that_was_written_down_but_went_to_another_clip_is_not_taken(runner, rehearsal):
    first = run(runner, rehearsal)
    (row,) = runner._ledger.newest(9)
    runner._ledger.reopen(row.id)
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


def test_an_unknown_job_whose_id_is_known_is_collected(runner, rehearsal):
    first = run(runner, rehearsal)
    (row,) = runner._ledger.newest(9)
    first.path.unlink()
    runner._ledger.advance(row.id, JobState.EXPIRED)  # whatever was believed of it
    again = run(runner, rehearsal)
    assert again.request_id == first.request_id and again.path.exists()
    assert len(rehearsal.submissions) == 1


def test_a_clip_that_was_away_for_a_moment_is_not_given_up(runner, rehearsal, tmp_path):
    first = run(runner, rehearsal)
    away = tmp_path / "away"
    first.path.rename(away)
    (row,) = runner._ledger.newest(9)
    runner._ledger.advance(row.id, JobState.EXPIRED)
    away.rename(first.path)
    assert run(runner, rehearsal).path == first.path


def test_a_queue_with_another_prefix_saves_there(runner, rehearsal):
    first = run(runner, rehearsal)
    first.path.unlink()
    assert run(runner, rehearsal, make_order(prefix="other")).path.name.startswith("other_")


def test_another_clip_of_the_same_size_is_not_taken_for_this_one(runner, rehearsal):
    first = run(runner, rehearsal)
    size = first.path.stat().st_size
    first.path.write_bytes(b"x" * size)
    assert run(runner, rehearsal).path != first.path
