"""Lists, prices and neighbours in the real engine: what a run of several clips says and does."""

import asyncio
import threading
import time

import pytest
import torch
from node_case import SEEDS, prompt_of
from pack.nodes.rehearsal import Fault, FaultKind
from runner_case import until
from test_batches import ListNode, batch_of, shades
from test_submit_collect import collect, forget, submit, submit_prompt  # noqa: F401


def test_a_clip_made_anew_after_a_failed_sibling_is_not_said_to_differ_in_pixels(engine, api):
    api.plan()
    api.plan(Fault(FaultKind.FAILED_JOB, message="too dark"))
    prompt = batch_of(engine, [torch.stack(shades(4))])
    assert "1 of 4 clips" in engine.run(prompt).error
    again = engine.run(prompt)
    assert again.succeeded, again.error
    assert "differs from this one in its pixels only" not in again.texts[-1][1]


def test_costs_that_nobody_knows_are_not_0_dollars(engine, api, forget, monkeypatch):  # noqa: F811
    ids = [submit(engine, api) for _ in range(2)]
    forget()
    monkeypatch.setattr(engine.module("nodes.core.client"), "_number", lambda _: None)
    outcome = collect(engine, " ".join(ids), "unknown/cost")
    assert outcome.succeeded, outcome.error
    assert outcome.texts[-1][1].count("cost unknown") == 2
    assert "$0.00" not in outcome.texts[-1][1].splitlines()[0], outcome.texts[-1][1]


def test_a_list_of_prefixes_goes_to_the_clips_of_collect(engine, api, forget):  # noqa: F811
    ids = [submit(engine, api) for _ in range(2)]
    forget()
    prompt = batch_of(engine, ids, ["one/clip", "two/clip"])
    inputs = {"request_id": ["1", 0], "filename_prefix": ["1", 1]}
    prompt["2"] = {"class_type": "RunComfyKlingCollect", "inputs": inputs}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    first, second = outcome.outputs["2"][2]
    assert "/one/" in first and "/two/" in second


def test_an_empty_list_of_prefixes_is_said(engine, api, forget):  # noqa: F811
    prompt = batch_of(engine, ["r-1"], [])
    inputs = {"request_id": ["1", 0], "filename_prefix": ["1", 1]}
    prompt["2"] = {"class_type": "RunComfyKlingCollect", "inputs": inputs}
    assert "filename_prefix is an empty list" in engine.run(prompt).error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", None),
        ("duration", None),
        ("seed", None),
        ("model", None),
        ("cfg_scale", None),
        ("filename_prefix", None),
        ("start_image_url", None),
        ("negative_prompt", None),
        ("cfg_scale", "0.5"),
        ("seed", "7"),
        ("seed", 7.5),
        ("prompt", 7),
        ("cfg_scale", float("nan")),
    ],
)
def test_an_item_of_a_list_that_is_no_value_is_named(engine, api, name, value):
    good = prompt_of(engine)["2"]["inputs"][name]
    prompt = batch_of(engine, [torch.stack(shades(2))], [good, value], **{name: ["1", 1]})
    if name == "start_image_url":
        ListNode.first = [None, None]
        ListNode.second = ["https://example.org/a.png", None]
    outcome = engine.run(prompt)
    kinds = [d.get("exception_type") for n, d in outcome.events if n == "execution_error"]
    print(name, value, kinds, outcome.error)
    assert kinds == ["runcomfy.InputError"] and "Clip 2 of 2" in outcome.error
    assert api.submissions == []


class Fail:
    """Fails once a condition holds."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "run"
    condition = None

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    async def run(self):
        while not Fail.condition():
            await asyncio.sleep(0.05)
        raise ValueError("a neighbour fails")


def test_what_is_in_line_when_a_neighbour_fails_is_not_paid_in_silence(engine, api, monkeypatch):
    monkeypatch.setenv("RUNCOMFY_MAX_CONCURRENT_JOBS", "1")
    engine.nodes.NODE_CLASS_MAPPINGS["TestFail"] = Fail
    Fail.condition = lambda: len(api.submissions) == 1
    prompt = batch_of(engine, [torch.stack(shades(3))], seed=next(SEEDS))
    prompt["f"] = {"class_type": "TestFail", "inputs": {}}
    outcome = engine.run(prompt)
    assert "a neighbour fails" in outcome.error
    sent = len(api.submissions)
    with_line = [text for _, text in engine.texts]
    end = time.monotonic() + 8
    while len(api.submissions) < 3 and time.monotonic() < end:
        time.sleep(0.1)
    print(sent, len(api.submissions), with_line[-3:])
    assert len(api.submissions) == sent


def test_two_equal_submits_do_not_both_say_that_they_pay(engine, api):
    prompt = submit_prompt(engine)
    prompt["3"] = {**prompt["2"], "inputs": {**prompt["2"]["inputs"], "filename_prefix": "b/c"}}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    assert len(api.submissions) == 1
    said = [text for _, text in outcome.texts if "Sent 1 job" in text]
    assert len(said) == 1, said


def test_stop_and_queue_again_says_that_it_pays(engine, api, monkeypatch):
    """Stop, and the same graph at once, before RunComfy has answered the cancel."""
    client = engine.module("nodes.core.client").RunComfyClient
    cancel, gate = client.cancel, threading.Event()

    def slow(self, request_id):
        gate.wait(20)
        return cancel(self, request_id)

    monkeypatch.setattr(client, "cancel", slow)
    monkeypatch.setattr(engine.module("nodes.waiting"), "STOP_S", 0.2)
    api.plan(queue_s=60)
    prompt = prompt_of(engine, generate_audio=False)

    def stop():
        until(lambda: any("/status" in r.path for r in api.requests), 30)
        engine.stop()

    threading.Thread(target=stop, daemon=True).start()
    assert engine.run(prompt).interrupted
    threading.Timer(1.0, gate.set).start()
    api.plan(queue_s=1, run_s=1)
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    assert len(api.submissions) == 2  # and the second one is paid
    texts = [text for _, text in outcome.texts]
    rendering = [text for text in texts if "Kling is rendering" in text]
    assert rendering and all("$0" not in text.replace("$0.25", "") for text in rendering), rendering
