"""Sending now and collecting later, in the real engine."""

import time
from collections import Counter

import pytest
from node_case import SEEDS, prompt_of
from pack.nodes.core import client
from pack.nodes.rehearsal import Fault, FaultKind
from runner_case import until

PREFIX = "later/clip"


def submit(engine, api, **values):
    """Send one job by the Submit node; its id."""
    outcome = engine.run(submit_prompt(engine, **values))
    assert outcome.succeeded, outcome.error
    ((request_id,),) = outcome.outputs["2"]
    return request_id


def submit_prompt(engine, **values):
    prompt = prompt_of(engine, generate_audio=False, **values)
    prompt["2"]["class_type"] = "RunComfyKlingSubmit"
    return prompt


def collect(engine, request_id, prefix=PREFIX):
    inputs = {"request_id": request_id, "filename_prefix": prefix}
    return engine.run({"1": {"class_type": "RunComfyKlingCollect", "inputs": inputs}})


@pytest.fixture
def forget(engine, monkeypatch, tmp_path):
    """Calling it makes this ComfyUI another machine, with a ledger of its own."""
    numbers = iter(range(9))

    def other():
        url = f"sqlite:///{tmp_path / f'other{next(numbers)}.db'}"
        monkeypatch.setenv("RUNCOMFY_LEDGER_URL", url)

    return other


def test_submit_returns_before_the_clip_and_collect_brings_it(engine, api):
    api.plan(queue_s=1, run_s=1)
    outcome = engine.run(submit_prompt(engine, filename_prefix="mine/take"))
    assert outcome.succeeded, outcome.error
    ((request_id,),) = outcome.outputs["2"]
    assert not any("/files/" in request.path for request in api.requests)
    sent, shown_id = outcome.texts[-1][1].splitlines()
    assert sent == "Sent 1 job, about $0.25. Clips are saved when they are ready."
    assert shown_id == request_id
    outcome = collect(engine, request_id)
    assert outcome.succeeded, outcome.error
    (video,), (last_frame,), (path,), (collected,) = outcome.outputs["1"]
    assert collected == request_id
    assert path.startswith(str(engine.output / "mine" / "take_"))  # the job was live already
    assert video.get_duration() == pytest.approx(3, abs=0.1)
    assert last_frame.ndim == 4
    assert outcome.ui["1"]["images"][0]["subfolder"] == "mine"
    assert "cost $0.25" in outcome.texts[-1][1]
    assert len(api.submissions) == 1


def test_a_submitted_clip_is_saved_without_anyone_collecting_it(engine, api):
    submit(engine, api, filename_prefix="alone/take")
    until(lambda: list((engine.output / "alone").glob("take_*.mp4")), 20)


def test_submit_takes_no_place_among_the_waiting(engine, api, monkeypatch, forget):
    forget()
    monkeypatch.setenv("RUNCOMFY_MAX_CONCURRENT_JOBS", "1")
    for _ in range(3):
        api.plan(queue_s=60)
    ids = [submit(engine, api) for _ in range(3)]
    assert len(set(ids)) == len(api.submissions) == 3
    outcome = engine.run(prompt_of(engine))
    assert outcome.succeeded, outcome.error


def test_submit_again_sends_nothing(engine, api):
    prompt = submit_prompt(engine)
    first, second = engine.run(prompt), engine.run(prompt)
    assert first.outputs["2"] == second.outputs["2"]
    assert second.texts[-1][1].startswith("1 job paid before, $0. Clips are saved")
    assert len(api.submissions) == 1


def test_submit_of_a_clip_that_is_on_disk_gives_its_id(engine, api):
    prompt = submit_prompt(engine, filename_prefix="there/take")
    first = engine.run(prompt)
    until_saved(engine.output / "there")
    until(lambda: engine.run(prompt).texts[-1][1].startswith("1 job paid before"))
    assert engine.run(prompt).outputs["2"] == first.outputs["2"]
    assert len(api.submissions) == 1


def test_a_submit_whose_answer_is_lost_is_said_and_not_sent_again(engine, api):
    api.plan(Fault(FaultKind.LOST_REPLY))
    prompt = submit_prompt(engine)
    for _ in range(2):
        assert "not sent again" in engine.run(prompt).error
    assert len(api.submissions) == 1


def test_submit_wired_to_collect_in_one_graph(engine, api):
    prompt = submit_prompt(engine)
    inputs = {"request_id": ["2", 0], "filename_prefix": PREFIX}
    prompt["3"] = {"class_type": "RunComfyKlingCollect", "inputs": inputs}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    assert outcome.outputs["3"][3] == outcome.outputs["2"][0]


def test_several_typed_ids_are_several_clips_in_their_order(engine, api, forget):
    ids = [submit(engine, api) for _ in range(3)]
    forget()
    outcome = collect(engine, f" {ids[2]}\n{ids[0]},{ids[1]} ")
    assert outcome.succeeded, outcome.error
    assert outcome.outputs["1"][3] == [ids[2], ids[0], ids[1]]
    assert len(set(outcome.outputs["1"][2])) == 3


def test_another_machine_collects_under_its_own_prefix_once(engine, api, forget):
    request_id = submit(engine, api)
    forget()
    first = collect(engine, request_id, "other/clip")
    assert first.succeeded, first.error
    (path,) = first.outputs["1"][2]
    assert path.startswith(str(engine.output / "other" / "clip_"))
    fetched = Counter(request.path for request in api.requests)[f"/files/{request_id}/output.mp4"]
    second = collect(engine, request_id, "other/clip")
    assert second.outputs["1"][2] == [path]
    assert "It was saved before; this is that file." in second.texts[-1][1]
    again = Counter(request.path for request in api.requests)[f"/files/{request_id}/output.mp4"]
    assert again == fetched
    assert len(api.submissions) == 1


def test_a_queued_and_then_a_running_job_is_waited_for(engine, api, forget):
    api.plan(queue_s=1.5, run_s=1.5)
    request_id = submit(engine, api)
    forget()
    outcome = collect(engine, request_id)
    assert outcome.succeeded, outcome.error
    texts = "\n".join(text for _, text in outcome.texts)
    assert "In queue at RunComfy" in texts and "Kling is rendering" in texts


def test_a_failed_job_says_why(engine, api, forget):
    api.plan(Fault(FaultKind.FAILED_JOB, message="too dark"))
    request_id = submit(engine, api)
    forget()
    for _ in range(2):
        error = collect(engine, request_id).error
        assert error.startswith("Kling could not make")
        assert "too dark" in error and request_id in error


def test_a_cancelled_job_says_so(engine, api, forget):
    api.plan(queue_s=60)
    request_id = submit(engine, api)
    forget()
    cancel(api, request_id)
    assert "was cancelled while queued" in collect(engine, request_id).error
    assert "was cancelled while it was queued" in collect(engine, request_id).error


def cancel(api, request_id):
    import requests

    url = f"{api.origin}/v1/requests/{request_id}/cancel"
    headers = {"Authorization": f"Bearer {api.token}"}
    assert requests.post(url, headers=headers, timeout=10).status_code == 202


def test_an_id_that_runcomfy_does_not_know_says_so(engine, api, monkeypatch):
    quick_to_believe(engine, monkeypatch)
    error = collect(engine, "3f2b8c1e-0000-4c57-9b1e-0a6d2f7c9e11").error
    assert "RunComfy knows no request 3f2b8c1e-0000-4c57-9b1e-0a6d2f7c9e11" in error


def quick_to_believe(engine, monkeypatch):
    """A 404 is RunComfy's word at once, and not only after 20 s."""
    module = engine.module("nodes.core.client")
    assert client.MISSING_S == module.MISSING_S
    monkeypatch.setattr(module, "MISSING_S", 0.0)
    monkeypatch.setattr(engine.module("nodes.core.again"), "NEW_REQUEST_GRACE_S", 0.0)


def test_a_clip_that_runcomfy_has_no_more_says_so(engine, api, monkeypatch):
    quick_to_believe(engine, monkeypatch)
    request_id = submit(engine, api, filename_prefix="gone/take")
    saved = until_saved(engine.output / "gone")
    saved.unlink()
    api.forget(request_id)
    assert "RunComfy does not have it any more" in collect(engine, request_id).error


def until_saved(folder):
    until(lambda: [clip for clip in folder.glob("*.mp4") if clip.stat().st_size], 20)
    (clip,) = folder.glob("*.mp4")
    time.sleep(0.3)
    return clip


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "request_id is empty"),
        (" \n ", "request_id is empty"),
        ("../../etc", "request_id '../../etc' is none of RunComfy's"),
        ("https://example.org/x", "is none of RunComfy's"),
        ("a" * 129, "is none of RunComfy's"),
    ],
)
def test_what_is_no_id_is_refused_before_any_request(engine, api, typed, said):
    assert said in collect(engine, typed).error
    assert api.requests == []


def test_one_of_several_that_cannot_be_had_is_named_and_the_others_are_saved(engine, api, forget):
    good = submit(engine, api)
    api.plan(Fault(FaultKind.FAILED_JOB, message="too dark"))
    bad = submit(engine, api)
    forget()
    before = set(engine.output.rglob("*.mp4"))
    error = collect(engine, f"{good} {bad}", "some/clip").error
    assert error.splitlines()[0].startswith("1 of 2 clips could not be collected")
    assert error.splitlines()[1].startswith("Clip 2 of 2: Kling could not make the clip: too dark")
    assert len(set(engine.output.rglob("some/*.mp4")) - before) == 1


def test_stop_on_collect_ends_the_waiting_only(engine, api, forget):
    import threading

    api.plan(queue_s=2, run_s=1)
    request_id = submit(engine, api)
    forget()
    asked = len(api.requests)

    def stop():
        until(lambda: len(api.requests) > asked, 20)
        engine.stop()

    threading.Thread(target=stop, daemon=True).start()
    outcome = collect(engine, request_id, "stopped/clip")
    assert outcome.interrupted
    assert outcome.texts[-1][1].startswith("Stopped waiting. The jobs go on")
    until(lambda: list((engine.output / "stopped").glob("clip_*.mp4")), 20)
    assert not any(request.path.endswith("/cancel") for request in api.requests)


def test_seeds_ask_for_new_takes(engine, api):
    assert submit(engine, api, seed=next(SEEDS)) != submit(engine, api, seed=next(SEEDS))
