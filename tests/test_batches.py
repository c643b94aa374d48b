"""Several clips in one run, in the real engine: pairing, limits, failures, prices, the budget."""

import threading
import time

import pytest
import torch
from node_case import SEEDS, prompt_of
from pack.nodes.rehearsal import Fault, FaultKind
from runner_case import until


class ListNode:
    """Hands out a list of any values, as many as were set."""

    RETURN_TYPES = ("*", "*")
    OUTPUT_IS_LIST = (True, True)
    FUNCTION = "run"
    first, second = [], []

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls):
        return time.monotonic()

    def run(self):
        return (self.first, self.second)


def shades(count, size=320):
    """So many pictures ``[H, W, 3]``, each of its own grey."""
    return [torch.full((size, size, 3), n / 100) for n in range(count)]


def batch_of(engine, images, second=None, **values):
    """A graph that makes a clip of each picture, fed by a list."""
    engine.nodes.NODE_CLASS_MAPPINGS["TestList"] = ListNode
    ListNode.first = images
    ListNode.second = second or []
    prompt = prompt_of(engine, **{"start_image": ["1", 0], "generate_audio": False, **values})
    prompt["1"] = {"class_type": "TestList", "inputs": {}}
    return prompt


def sent_prompts(api):
    return [one.payload["prompt"] for one in api.submissions]


def test_an_image_batch_is_as_many_clips_in_its_order(engine, api):
    batch = torch.stack(shades(3))
    outcome = engine.run(batch_of(engine, [batch]))
    assert outcome.succeeded, outcome.error
    videos, last_frames, paths, request_ids = outcome.outputs["2"]
    assert len(videos) == len(set(paths)) == len(last_frames) == 3
    assert sorted(request_ids) == sorted(one.request_id for one in api.submissions)
    pictures = {one.request_id: one.payload["start_image_url"] for one in api.submissions}
    alone = [sent_alone(engine, api, picture) for picture in batch]
    assert [pictures[request_id] for request_id in request_ids] == alone
    assert len(outcome.ui["2"]["images"]) == 3
    head, *lines = outcome.texts[-1][1].splitlines()
    assert head == "3 clips saved, $0.76"
    assert [line[:3] for line in lines[::2]] == ["1 ·", "2 ·", "3 ·"]


def sent_alone(engine, api, picture):
    """What is sent for this picture by itself."""
    assert engine.run(batch_of(engine, [picture.unsqueeze(0)])).succeeded
    return api.submissions[-1].payload["start_image_url"]


def test_lists_pair_up_and_the_shorter_repeats_its_last(engine, api):
    images = [picture.unsqueeze(0) for picture in shades(3)]
    prompt = batch_of(engine, images, ["first", "second"], prompt=["1", 1])
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    by_id = {one.request_id: one.payload["prompt"] for one in api.submissions}
    assert [by_id[request_id] for request_id in outcome.outputs["2"][3]] == [
        "first",
        "second",
        "second",
    ]


def test_equal_pictures_are_as_many_clips_and_are_paid_once(engine, api):
    prompt = batch_of(engine, [torch.stack(shades(1) * 3)])
    first = engine.run(prompt)
    assert first.succeeded, first.error
    assert len(api.submissions) == 3
    again = engine.run(prompt)
    assert again.outputs["2"][2] == first.outputs["2"][2]
    assert len(api.submissions) == 3
    assert again.texts[-1][1].count("Reused, $0") == 3


def test_an_empty_list_is_refused(engine, api):
    assert "start_image is an empty list" in engine.run(batch_of(engine, [])).error


def test_one_bad_picture_refuses_the_run_before_anything_is_sent(engine, api):
    images = [*shades(1), torch.rand((200, 400, 3)), torch.full((400, 400, 3), float("nan"))]
    outcome = engine.run(batch_of(engine, [image.unsqueeze(0) for image in images]))
    first, second = outcome.error.splitlines()
    assert first.startswith("Clip 2 of 3: start_image is 400 × 200 px")
    assert second.startswith("Clip 3 of 3: start_image has pixels that are not numbers")
    assert api.requests == []


def test_one_bad_value_of_a_list_names_its_clip(engine, api):
    prompt = batch_of(engine, [torch.stack(shades(2))], [3, 99], duration=["1", 1])
    assert engine.run(prompt).error == (
        "Clip 2 of 2: Duration is 99 s. Set it to whole seconds from 3 to 15."
    )
    assert api.requests == []


def test_video_frames_wired_by_mistake_are_refused_with_their_price(engine, api, monkeypatch):
    batch = torch.zeros((120, 320, 320, 3))
    outcome = engine.run(batch_of(engine, [batch], duration=10, generate_audio=True))
    assert "120 clips in one run would cost about $151.20; the limit is 8" in outcome.error
    assert "RUNCOMFY_MAX_JOBS_PER_RUN to 120" in outcome.error
    assert api.requests == []
    monkeypatch.setenv("RUNCOMFY_MAX_JOBS_PER_RUN", "2")
    nine = batch_of(engine, [torch.stack(shades(3))])
    assert "3 clips in one run" in engine.run(nine).error
    monkeypatch.setenv("RUNCOMFY_MAX_JOBS_PER_RUN", "3")
    assert engine.run(nine).succeeded


def most_in_flight(api):
    """The most jobs that were sent and whose clips nobody had asked for yet."""
    events = [(one.received_at, 1) for one in api.submissions]
    fetched = {}
    for request in api.requests:
        if request.path.startswith("/files/"):
            fetched.setdefault(request.path, request.at)
    events += [(at, -1) for at in fetched.values()]
    level = most = 0
    for _, step in sorted(events):
        level += step
        most = max(most, level)
    return most


def test_jobs_in_flight_are_limited_for_all_nodes_together_and_in_order(
    engine, api, monkeypatch, tmp_path
):
    monkeypatch.setenv("RUNCOMFY_LEDGER_URL", f"sqlite:///{tmp_path / 'own.db'}")
    monkeypatch.setenv("RUNCOMFY_MAX_CONCURRENT_JOBS", "2")
    names = [f"clip {n}" for n in range(5)]
    prompt = batch_of(engine, [torch.stack(shades(1))], names, prompt=["1", 1])
    other = {**prompt["2"]["inputs"], "prompt": "other", "seed": next(SEEDS)}
    prompt["3"] = {"class_type": "RunComfyKlingImageToVideo", "inputs": other}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    assert most_in_flight(api) == 2
    sent = [name for name in sent_prompts(api) if name != "other"]
    # two that have their places encode side by side, so neighbours may overtake each other
    assert all(abs(sent.index(name) - n) < 2 for n, name in enumerate(names))
    assert "Waiting its turn, number" in "\n".join(text for _, text in outcome.texts)


def test_one_failed_clip_leaves_the_others_and_only_it_is_paid_again(engine, api):
    api.plan()
    api.plan(Fault(FaultKind.FAILED_JOB, message="too dark"))
    prompt = batch_of(engine, [torch.stack(shades(4))])
    before = set(engine.output.rglob("*.mp4"))
    outcome = engine.run(prompt)
    first, second, *rest = outcome.error.splitlines()
    assert first.startswith("1 of 4 clips are missing, the others are saved. Queue again: only")
    assert second.startswith("Clip ") and "too dark" in second and not rest
    assert len(set(engine.output.rglob("*.mp4")) - before) == 3
    assert len(api.submissions) == 4
    again = engine.run(prompt)
    assert again.succeeded, again.error
    assert len(api.submissions) == 5
    assert "about $0.25 for 1 new" in "\n".join(text for _, text in again.texts)
    assert len(set(again.outputs["2"][2])) == 4


def test_a_lost_reply_in_a_batch_asks_for_no_second_payment(engine, api):
    api.plan(Fault(FaultKind.LOST_REPLY))
    prompt = batch_of(engine, [torch.stack(shades(2))])
    for _ in range(2):
        head, line = engine.run(prompt).error.splitlines()
        assert head.startswith("1 of 2 clips are missing, the others are saved. Where the answer")
        assert "Queue again" not in head
        assert "may be charged" in line
    assert len(api.submissions) == 2


def test_a_submit_that_fails_in_part_shows_the_ids_of_what_was_sent(engine, api):
    api.plan(Fault(FaultKind.LOST_REPLY))
    prompt = batch_of(engine, [torch.stack(shades(2))])
    prompt["2"]["class_type"] = "RunComfyKlingSubmit"
    outcome = engine.run(prompt)
    assert "1 of 2 clips were not sent, the others are sent" in outcome.error
    known = [one.request_id for one in api.submissions if one.request_id in outcome.error]
    assert len(known) == 1
    assert outcome.texts[-1][1] == outcome.error


def test_stop_in_a_batch_says_what_became_of_which(engine, api):
    api.plan(queue_s=0, run_s=4)
    for _ in range(2):
        api.plan(queue_s=60)
    prompt = batch_of(engine, [torch.stack(shades(3))])

    def stop():
        until(lambda: len(api.submissions) == 3, 30)
        until(lambda: sum("/status" in r.path for r in api.requests) >= 4, 30)
        engine.stop()

    threading.Thread(target=stop, daemon=True).start()
    outcome = engine.run(prompt)
    assert outcome.interrupted
    said = outcome.texts[-1][1].splitlines()
    assert sorted(line.partition(": ")[2][:38] for line in said) == [
        "Stopped. Kling was already rendering: ",
        "Stopped. The job was still queued at R",
    ]
    assert sum(request.path.endswith("/cancel") for request in api.requests) == 3


def test_the_budget_refuses_the_whole_run_with_its_numbers(engine, api, monkeypatch):
    monkeypatch.setenv("RUNCOMFY_DAILY_BUDGET_USD", "0.60")
    assert engine.run(batch_of(engine, [torch.stack(shades(1))])).succeeded
    outcome = engine.run(batch_of(engine, [torch.stack(shades(2))]))
    assert outcome.error == (
        "This costs about $0.50 and would pass today's budget of $0.60: $0.25 is spent, $0.00 is "
        "running. Nothing was sent for it. Raise RUNCOMFY_DAILY_BUDGET_USD, or go on after 00:00 "
        "UTC."
    )
    assert len(api.submissions) == 1
    assert engine.run(batch_of(engine, [torch.stack(shades(1))])).succeeded


def test_what_was_paid_before_passes_any_budget(engine, api, monkeypatch):
    prompt = batch_of(engine, [torch.stack(shades(2))])
    assert engine.run(prompt).succeeded
    monkeypatch.setenv("RUNCOMFY_DAILY_BUDGET_USD", "0")
    assert engine.run(prompt).succeeded


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_JOBS_PER_RUN", "0"),
        ("MAX_CONCURRENT_JOBS", "many"),
        ("DAILY_BUDGET_USD", "-1"),
        ("DAILY_BUDGET_USD", "nan"),
    ],
)
def test_a_bad_limit_is_named(engine, api, monkeypatch, name, value):
    monkeypatch.setenv(f"RUNCOMFY_{name}", value)
    assert f"RUNCOMFY_{name} is {value!r}" in engine.run(prompt_of(engine)).error
    assert api.requests == []
