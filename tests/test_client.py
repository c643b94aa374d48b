"""RunComfy's calls and the patience of watching, against scripted answers over real HTTP."""

import time

import pytest
from pack.nodes.core import client, errors
from pack.nodes.core.client import CancelOutcome, RunComfyClient, State, pause_s
from pack.nodes.core.transport import Transport
from raw_server import RawServer, answer, reply, routed

CLIP = "https://files.runcomfy.net/a.mp4"
DONE = answer(200, {"status": "succeeded", "output": {"video": CLIP}})
RUNNING = answer(200, {"status": "in_progress"})


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def result_of(body, status=200):
    with RawServer(answer(status, body)) as server:
        return RunComfyClient(Transport(server.origin, "t")).result("r-1")


def watch(*scripts, timeout_s=600.0, clock=None):
    """All statuses that watching yields, and the clock that passed."""
    clock = clock or Clock()
    with RawServer(*scripts) as server:
        watcher = RunComfyClient(Transport(server.origin, "t", clock=clock), clock=clock)
        return list(watcher.watch("r-1", clock.wait, poll_s=3, timeout_s=timeout_s)), clock


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("in_queue", State.IN_QUEUE),
        ("pending", State.IN_QUEUE),
        ("waiting", State.IN_QUEUE),
        ("in_progress", State.IN_PROGRESS),
        ("starting", State.IN_PROGRESS),
        ("processing", State.IN_PROGRESS),
        ("completed", State.COMPLETED),
        ("succeeded", State.COMPLETED),
        ("success", State.COMPLETED),
        ("SUCCEEDED", State.COMPLETED),
        ("failed", State.FAILED),
        ("error", State.FAILED),
        ("cancelled", State.CANCELLED),
        ("canceled", State.CANCELLED),
        ("paused", State.UNKNOWN),
        (None, State.UNKNOWN),
    ],
)
def test_every_spelling_of_a_state(word, state):
    assert result_of({"status": word}).state == state


@pytest.mark.parametrize(
    "output",
    [
        CLIP,
        [CLIP],
        {"video": CLIP},
        {"videos": [CLIP]},
        {"video": {"url": CLIP}},
        {"videos": [{"url": CLIP}]},
        {"video": CLIP, "image": "https://files.runcomfy.net/a.png"},
    ],
)
def test_every_shape_of_output(output):
    assert result_of({"status": "succeeded", "output": output}).video_urls == (CLIP,)


@pytest.mark.parametrize("output", [None, "", [], {}, {"image": CLIP}, 7])
def test_output_without_a_clip(output):
    body = {"status": "succeeded", "output": output, "input": {"video": CLIP}}
    assert result_of(body).video_urls == ()


@pytest.mark.parametrize(
    ("cost", "usd"), [(0.63, 0.63), ("0.63", 0.63), (None, None), ("?", None), ("nan", None)]
)
def test_cost(cost, usd):
    assert result_of({"status": "succeeded", "cost": cost}).cost_usd == usd


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"status": "completed", "outcome": "cancelled"}, CancelOutcome.CANCELLED),
        ({"status": "in_progress", "outcome": "not_cancellable"}, CancelOutcome.NOT_CANCELLABLE),
        ({"status": "cancelled", "outcome": "cancellation_requested"}, CancelOutcome.UNCLEAR),
        ({}, CancelOutcome.UNCLEAR),
    ],
)
def test_cancel_goes_by_its_outcome(body, outcome):
    with RawServer(answer(202, body)) as server:
        assert RunComfyClient(Transport(server.origin, "t")).cancel("r-1") == outcome


def test_a_cancel_that_is_not_answered_is_asked_once_and_given_up(monkeypatch):
    monkeypatch.setattr(client, "CANCEL_S", 0.4)
    with RawServer(lambda conn: time.sleep(0.6)) as server:
        with pytest.raises(errors.NetworkError):
            RunComfyClient(Transport(server.origin, "t")).cancel("r-1")
        assert server.connections == 1


def test_price_of_the_catalog():
    body = {"base_price_usd": 0.084, "price_unit": "second", "pricing_note": "audio is more"}
    with RawServer(answer(200, body), answer(200, {"model_id": "x"})) as server:
        catalog = RunComfyClient(Transport(server.origin, "t"))
        price = catalog.price("kling/x")
        assert (price.base_usd, price.unit, price.note) == (0.084, "second", "audio is more")
        assert catalog.price("kling/x") is None


def test_a_request_id_cannot_reach_another_path():
    seen = []

    def script(conn):
        data = conn.recv(65536)
        seen.append(data.split(b" ")[1])
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    with RawServer(script) as server:
        RunComfyClient(Transport(server.origin, "t")).status("../models?x=")
    assert seen == [b"/v1/requests/..%2Fmodels%3Fx%3D/status"]


def test_watching_shows_the_queue_then_asks_the_authority():
    queued = answer(200, {"status": "in_queue", "queue_position": 2})
    statuses, _ = watch(queued, answer(200, {"status": "in_progress"}), RUNNING, DONE)
    assert [s.state for s in statuses] == [State.IN_QUEUE, State.IN_PROGRESS, State.COMPLETED]
    assert statuses[0].queue_position == 2
    assert statuses[-1].video_urls == (CLIP,)


QUEUED = reply(200, {"status": "in_queue", "queue_position": 2})


def test_the_authority_is_asked_even_while_the_queue_does_not_end():
    done = reply(200, {"status": "succeeded", "output": {"video": CLIP}})
    statuses, clock = watch(routed({"status": [QUEUED], "result": [done]}))
    assert statuses[-1].video_urls == (CLIP,)
    assert clock.now < 60


def test_the_queue_position_stays_when_the_authority_does_not_tell_it():
    failed = [reply(200, {"status": "in_queue"}), reply(200, {"status": "failed"})]
    statuses, _ = watch(routed({"status": [QUEUED], "result": failed}))
    assert len(statuses) == 10
    assert {status.queue_position for status in statuses[:-1]} == {2}


def test_the_rhythm_of_polls_begins_anew_when_the_job_runs():
    queue = [QUEUED] * 25 + [reply(200, {"status": "in_progress"})]
    running = reply(200, {"status": "in_progress"})
    results = (
        [reply(200, {"status": "in_queue"})] * 5
        + [running] * 3
        + [reply(200, {"status": "failed"})]
    )
    statuses, clock = watch(routed({"status": queue, "result": results}), timeout_s=9999)
    ran = [status.state for status in statuses].index(State.IN_PROGRESS)
    assert max(clock.waits[:ran]) > 10
    assert clock.waits[ran:] == [3.0, 3.0, 3.0]


def test_odd_answers_count_in_a_row_only():
    odd = [answer(200, {"status": "paused"})] * (client.MAX_ODD_ANSWERS - 1)
    statuses, _ = watch(RUNNING, RUNNING, *odd, RUNNING, *odd, DONE)
    assert statuses[-1].state == State.COMPLETED


def test_a_failed_job_that_reads_completed_on_status_is_failed():
    statuses, _ = watch(
        answer(200, {"status": "completed"}),
        answer(200, {"status": "failed", "error": {"message": "too dark"}}),
    )
    assert (statuses[-1].state, statuses[-1].error) == (State.FAILED, "too dark")


def test_polls_wait_out_faults_and_say_so():
    faults = [
        answer(502, b"<html>Bad gateway</html>"),
        answer(429, {"message": "slow"}, Retry_After="20"),
        answer(429, {"message": "slow"}),
        answer(200, b"<html>login</html>"),
        lambda conn: None,
    ]
    statuses, clock = watch(RUNNING, RUNNING, *faults, DONE)
    assert [bool(s.note) for s in statuses] == [False, True, True, True, True, True, False]
    assert statuses[-1].state == State.COMPLETED
    assert clock.waits[2] == 20.0
    assert all(s.state == State.IN_PROGRESS for s in statuses[1:-1])


def test_a_clear_refusal_ends_the_watching():
    with pytest.raises(errors.AuthError):
        watch(RUNNING, RUNNING, answer(401, {"error_code": 400004, "error_message": "x"}))


def test_a_404_in_the_middle_is_waited_out():
    missing = answer(404, {"detail": "Not Found"})
    clock = Clock()
    clock.now = 0
    statuses, _ = watch(RUNNING, *[RUNNING] * 20, missing, missing, RUNNING, DONE, clock=clock)
    assert statuses[-1].state == State.COMPLETED


def test_the_servers_words_are_shown_without_the_token():
    with RawServer(
        answer(200, {"status": "Bearer canary-token", "error": "canary-token"})
    ) as server:
        status = RunComfyClient(Transport(server.origin, "canary-token")).result("r-1")
    assert (status.said, status.error) == ("Bearer [token]", "[token]")


def test_the_catalogs_words_are_shown_without_the_token():
    body = {"base_price_usd": 1, "pricing_note": "for canary-token"}
    with RawServer(answer(200, body)) as server:
        price = RunComfyClient(Transport(server.origin, "canary-token")).price("kling/x")
    assert price.note == "for [token]"


def test_an_unknown_request_is_taken_for_new_at_first_only():
    missing = answer(404, {"error_code": 404001, "error_message": "no such request"})
    statuses, _ = watch(missing, missing, RUNNING, DONE)
    assert statuses[-1].state == State.COMPLETED
    clock = Clock()
    with pytest.raises(errors.NotFoundError):
        watch(missing, clock=clock)
    assert 30 <= clock.now < 40


def test_completed_without_a_clip_is_asked_again_then_given_up_but_kept():
    empty = answer(200, {"status": "completed"})
    statuses, _ = watch(empty, empty, empty, DONE)
    assert statuses[-1].video_urls == (CLIP,)
    with pytest.raises(errors.JobTimeout, match="names no clip.*r-1"):
        watch(empty)


def test_an_unknown_state_is_waited_for_then_reported_and_kept():
    odd = answer(200, {"status": "paused"})
    statuses, _ = watch(odd, odd, DONE)
    assert statuses[-1].state == State.COMPLETED
    with pytest.raises(errors.JobTimeout, match="'paused'.*r-1"):
        watch(odd)


def test_the_timeout_leaves_the_job_collectable():
    clock = Clock()
    with pytest.raises(errors.JobTimeout, match="collectable.*r-1"):
        watch(RUNNING, timeout_s=60, clock=clock)
    assert 60 <= clock.now < 70


def test_a_job_that_is_done_is_never_timed_out_unasked():
    """However late the first poll is, it comes before the deadline is looked at."""
    statuses, _ = watch(RUNNING, DONE, timeout_s=0)
    assert statuses[-1].state == State.COMPLETED


def test_a_three_minute_job_takes_at_most_45_requests():
    elapsed = polls = 0.0
    while elapsed < 180:
        elapsed += pause_s(3, elapsed, queued=False)
        polls += 1
    assert polls <= 42  # with submit, one status and the cost that is 45
    assert max(pause_s(3, at, queued=False) for at in range(180)) <= 5


def test_an_hour_in_the_queue_is_cheap():
    elapsed = polls = 0.0
    while elapsed < 3600:
        elapsed += pause_s(3, elapsed, queued=True)
        polls += 1
    assert polls < 260


def test_the_catalogs_unit_is_shown_without_the_token():
    with RawServer(answer(200, {"base_price_usd": 1, "price_unit": "secret-canary"})) as server:
        price = RunComfyClient(Transport(server.origin, "secret-canary")).price("kling/x")
    assert "secret" not in price.unit
