"""Places for jobs in flight, and the pause that all jobs of an account keep."""

import random

import pytest
from pack.nodes.core.backoff import CALM_S, TURN_S, Backoff
from pack.nodes.core.job import Job
from pack.nodes.core.slots import Slots
from runner_case import Clock


def job():
    return Job(1.0, None, lambda: 0.0)


def in_line(slots, count):
    jobs = [job() for _ in range(count)]
    for one in jobs:
        slots.line_up(one)
    return jobs


def test_places_are_handed_out_in_the_order_of_the_line():
    slots = Slots()
    jobs = in_line(slots, 4)
    assert [slots.enter(one, 2) for one in reversed(jobs)] == [4, 3, 2, 0]
    assert slots.enter(jobs[1], 2) == 0
    assert [slots.enter(one, 2) for one in jobs[2:]] == [1, 2]
    slots.leave(jobs[1])
    assert jobs[2].wake.is_set()
    assert [slots.enter(one, 2) for one in reversed(jobs[2:])] == [2, 0]


def test_who_leaves_the_line_lets_the_next_one_come():
    slots = Slots()
    first, second, third = in_line(slots, 3)
    assert slots.enter(first, 1) == 0
    slots.leave(second)
    assert slots.enter(third, 1) == 1
    slots.leave(first)
    assert slots.enter(third, 1) == 0


def test_leaving_without_a_place_is_harmless():
    slots = Slots()
    (first,) = in_line(slots, 1)
    slots.leave(job())
    assert slots.enter(first, 1) == 0


def test_a_higher_limit_works_at_once():
    slots = Slots()
    first, second = in_line(slots, 2)
    assert slots.enter(first, 1) == 0
    assert slots.enter(second, 1) == 1
    assert slots.enter(second, 2) == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_more_than_the_limit_and_nobody_is_forgotten(seed):
    dice = random.Random(seed)  # noqa: S311
    slots, limit = Slots(), dice.randint(1, 4)
    waiting, inside, entered = in_line(slots, 30), [], []
    order = list(waiting)
    while waiting or inside:
        one = dice.choice(waiting + inside)
        if one in inside or dice.random() < 0.1:
            slots.leave(one)
            (inside if one in inside else waiting).remove(one)
        elif slots.enter(one, limit) == 0:
            waiting.remove(one)
            inside.append(one)
            entered.append(one)
        assert len(inside) <= limit
    assert entered == [one for one in order if one in entered]


def test_nothing_is_held_back_without_a_reason():
    backoff = Backoff(Clock())
    assert [backoff.turn_s() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert backoff.left_s() == 0


def test_after_too_many_calls_all_wait_and_then_go_one_by_one():
    clock = Clock()
    backoff = Backoff(clock)
    backoff.hold(10)
    assert backoff.left_s() == 10
    assert [backoff.turn_s() for _ in range(3)] == [10, 10 + TURN_S, 10 + 2 * TURN_S]
    clock.now += 10
    assert backoff.left_s() == 0
    assert backoff.turn_s() == 3 * TURN_S


def test_the_longest_pause_counts():
    backoff = Backoff(Clock())
    backoff.hold(10)
    backoff.hold(3)
    assert backoff.left_s() == 10


def test_after_a_calm_time_all_is_as_before():
    clock = Clock()
    backoff = Backoff(clock)
    backoff.hold(1)
    clock.now += 1 + CALM_S
    assert [backoff.turn_s() for _ in range(3)] == [0.0, 0.0, 0.0]
