"""What a job will cost, and what may be spent in a day."""

import threading
from contextlib import suppress
from dataclasses import replace

import pytest
from pack.nodes.core import errors
from pack.nodes.core.client import Price
from pack.nodes.core.kling import KlingRequest
from pack.nodes.core.ledger import Ledger
from pack.nodes.core.prices import KEEP_FAILURE_S, KEEP_S, Prices, estimate_usd
from pack.nodes.core.rows import NewJob
from pack.nodes.core.states import JobState
from pack.nodes.core.transport import Transport
from raw_server import RawServer, answer
from runner_case import Clock, connect, make_order, run, until

TEN_SECONDS = KlingRequest("x")  # standard, with audio: $1.26 by the table
NEW = NewJob(
    identity="0",
    near_identity="n",
    origin="https://api.example",
    account="me",
    model_id="kling/x",
    payload={"generate_audio": True},
    price_usd=1.26,
    prefix="video/x",
    duration_s=10,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request, tmp_path):
    """An empty ledger of each kind."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'l.db'}" if sqlite else request.getfixturevalue("postgresql_url")
    ledger = Ledger(url)
    yield ledger
    ledger.close()


def claim(ledger, identity, budget_usd=None, **values):
    new = replace(NEW, identity=identity, **values)
    return ledger.claim(new, post_limit_s=60, budget_usd=budget_usd)


def ended(ledger, identity, state, cost_usd=None, **values):
    row, _ = claim(ledger, identity, **values)
    path = [JobState.IN_QUEUE, JobState.DOWNLOADING] if state == JobState.COMPLETED else []
    for step in [*path, state]:
        ledger.advance(row.id, step)
    ledger.set(row.id, cost_usd=cost_usd)


def refusal(ledger, this_usd, limit_usd):
    with pytest.raises(errors.BudgetExceeded) as caught:
        ledger.check_budget(NEW.origin, this_usd, limit_usd)
    return str(caught.value)


def test_spent_running_this_and_limit_are_told(ledger):
    ended(ledger, "done", JobState.COMPLETED, cost_usd=2.0)
    ended(ledger, "lost", JobState.UNKNOWN)  # may have been charged
    ended(ledger, "failed", JobState.FAILED)
    ended(ledger, "failed and charged", JobState.FAILED, cost_usd=0.5)
    ended(ledger, "cancelled", JobState.CANCELLED)
    claim(ledger, "running")
    said = refusal(ledger, 3.0, 6.0)
    assert "This costs about $3.00 and would pass today's budget of $6.00" in said
    assert "$3.76 is spent, $1.26 is running" in said
    ledger.check_budget(NEW.origin, 0.98, 6.0)


def test_other_origins_and_other_days_do_not_count(ledger):
    ended(ledger, "rehearsed", JobState.COMPLETED, origin="http://127.0.0.1:1")
    ended(ledger, "yesterday", JobState.COMPLETED)
    row = ledger.find("yesterday")
    ledger.set(row.id, created_at=row.created_at - 86400)
    ledger.check_budget(NEW.origin, 1.0, 1.0)


def test_what_was_sent_elsewhere_does_not_count(ledger):
    new = replace(NEW, identity="a", model_id="", price_usd=0.0)
    ledger.set(ledger.adopt(new, "r-1").id, cost_usd=9.0)
    ledger.check_budget(NEW.origin, 1.0, 1.0)


def test_the_claim_itself_keeps_the_budget(ledger):
    assert claim(ledger, "first", budget_usd=2.0)[1]
    with pytest.raises(errors.BudgetExceeded):
        claim(ledger, "second", budget_usd=2.0)
    assert ledger.find("second") is None
    assert claim(ledger, "first", budget_usd=2.0)[1] is False  # nothing more is paid for it


def test_parallel_jobs_cannot_pass_the_budget_together(ledger):
    won, gate = [], threading.Barrier(8)

    def go(number):
        gate.wait()
        with suppress(errors.BudgetExceeded):
            won.append(claim(ledger, f"{number}", budget_usd=3 * 1.26)[0])

    threads = [threading.Thread(target=go, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 3


def test_what_such_a_clip_really_cost_is_known(ledger):
    ended(ledger, "a", JobState.COMPLETED, cost_usd=1.0)
    ended(ledger, "b", JobState.COMPLETED, cost_usd=1.1)
    ended(ledger, "silent", JobState.COMPLETED, cost_usd=0.8, payload={"generate_audio": False})
    ended(ledger, "longer", JobState.COMPLETED, cost_usd=1.9, duration_s=15)
    assert ledger.paid_usd(NEW.origin, "kling/x", 10, True) == 1.1
    assert ledger.paid_usd(NEW.origin, "kling/x", 10, False) == 0.8
    assert ledger.paid_usd(NEW.origin, "kling/x", 5, True) is None


@pytest.mark.parametrize(
    ("base", "paid_usd", "usd"),
    [
        (None, None, 1.26),
        (Price(0.084, "second", ""), None, 1.26),  # the silent rate
        (Price(0.2, "second", ""), None, 2.0),  # dearer than the table says
        (Price(1.5, "output", ""), None, 1.5),
        (None, 1.1, 1.1),  # cheaper than the table says
        (Price(0.2, "second", ""), 1.1, 2.0),
    ],
)
def test_the_estimate_is_the_higher_of_what_is_known(base, paid_usd, usd):
    assert estimate_usd(TEN_SECONDS, base, paid_usd) == pytest.approx(usd)


def test_the_base_price_is_asked_for_once_an_hour():
    clock = Clock()
    prices = Prices(clock)
    first = answer(200, {"base_price_usd": 0.1, "price_unit": "second"})
    with RawServer(first, answer(502), answer(200, {"base_price_usd": "0.2"})) as server:
        transport = Transport(server.origin, "t")
        assert [prices.base(transport, "m").base_usd for _ in range(3)] == [0.1] * 3
        clock.now += KEEP_S
        for _ in range(2):
            with pytest.raises(errors.NetworkError):
                prices.base(transport, "m")
        clock.now += KEEP_FAILURE_S
        assert prices.base(transport, "m").base_usd == 0.2
        assert server.connections == 3


def test_a_live_price_above_the_table_is_the_estimate(runner, rehearsal):
    from pack.nodes.rehearsal import schema

    model = schema.MODELS["kling/kling-3.0/standard/image-to-video"]
    assert model.silent_usd_s * 3 == pytest.approx(0.252)
    job = runner.start(make_order(), connect(rehearsal, prices=Prices()))
    until(lambda: job.is_new is not None)
    assert job.price_usd == pytest.approx(0.252)
    job.waiter().result(30)


def test_without_a_live_price_only_a_budget_stops_the_run(runner, tmp_path):
    with RawServer(answer(502)) as server:
        with pytest.raises(errors.BudgetExceeded, match="does not tell what .* costs now"):
            run(runner, server_of(server), budget_usd=5.0, prices=Prices())
    assert runner._ledger.newest(9) == []


def server_of(server):
    """A raw server in the place of a stand-in."""
    server.token = "t"
    return server


def test_without_a_live_price_and_without_a_budget_the_table_counts(runner, rehearsal, monkeypatch):
    prices = Prices()

    def broken(*_):
        raise errors.NetworkError("no answer")

    monkeypatch.setattr(prices, "base", broken)
    assert run(runner, rehearsal, prices=prices).path.exists()


def test_an_estimate_learns_from_what_was_paid(runner, rehearsal):
    clip = run(runner, rehearsal)
    runner._ledger.set(clip.row_id, cost_usd=0.21)
    job = runner.start(make_order(seed=1), connect(rehearsal))
    until(lambda: job.is_new is not None)
    assert job.price_usd == 0.21
    job.waiter().result(30)


def test_a_run_is_held_against_the_budget_as_a_whole(runner, rehearsal):
    orders = [make_order(seed=seed) for seed in range(3)]
    jobs = runner.start_all(orders, connect(rehearsal, budget_usd=0.6))
    for job in jobs:
        assert "$0.76" in str(job.waiter().exception(10))
    assert rehearsal.submissions == []
