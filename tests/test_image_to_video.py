"""The node in the real engine, in this process: what goes in, what comes out, and Stop."""

import threading
import time

import pytest
import torch
from conftest import CANARY_TOKEN
from pack.nodes.rehearsal import Fault, FaultKind, RehearsalServer
from PIL import Image


@pytest.fixture
def api(tmp_path, monkeypatch):
    """A stand-in API that the node talks to, with the canary as its token."""
    folder = tmp_path / "clips"
    folder.mkdir()
    with RehearsalServer(folder, token=CANARY_TOKEN, queue_s=0.3, run_s=0.4) as server:
        monkeypatch.setenv("RUNCOMFY_API_BASE_URL", server.origin)
        monkeypatch.setenv("RUNCOMFY_API_TOKEN", server.token)
        monkeypatch.setenv("RUNCOMFY_POLL_SECONDS", "1")
        yield server


def prompt_of(engine, size=(480, 360), **values):
    Image.new("RGB", size, "teal").save(engine.input / "start.png")
    inputs = {
        "prompt": "steam rises",
        "start_image": ["1", 0],
        "duration": 3,
        "generate_audio": True,
        "negative_prompt": "",
        "cfg_scale": 0.5,
        "model": "kling-3.0/standard",
        "seed": 0,
        **values,
    }
    inputs = {name: value for name, value in inputs.items() if value is not None}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        "2": {"class_type": "RunComfyKlingImageToVideo", "inputs": inputs},
    }


def test_a_picture_becomes_a_clip_with_all_four_outputs(engine, api):
    outcome = engine.run(prompt_of(engine))
    assert outcome.succeeded, outcome.error
    (video,), (last_frame,), (path,), (request_id,) = outcome.outputs["2"]
    assert video.get_duration() == pytest.approx(3, abs=0.1)
    width, height = video.get_dimensions()
    assert last_frame.shape == (1, height, width, 3)
    assert path.startswith(str(engine.output / "video" / "runcomfy-kling_"))
    assert request_id == api.submissions[0].request_id
    assert outcome.ui["2"]["images"][0]["subfolder"] == "video"


def test_the_payload_is_what_the_widgets_say(engine, api):
    outcome = engine.run(
        prompt_of(
            engine,
            generate_audio=False,
            negative_prompt="blur",
            cfg_scale=0.7,
            model="kling-3.0/pro",
        )
    )
    assert outcome.succeeded, outcome.error
    (sent,) = api.submissions
    assert sent.model_id == "kling/kling-3.0/pro/image-to-video"
    assert sent.payload.pop("start_image_url").startswith("data:image/png;base64,")
    assert sent.payload == {
        "prompt": "steam rises",
        "duration": 3,
        "generate_audio": False,
        "negative_prompt": "blur",
        "cfg_scale": 0.7,
    }


def test_the_node_shows_queue_seconds_and_what_it_cost(engine, api):
    texts = [text for _, text in engine.run(prompt_of(engine)).texts]
    assert any(text.startswith("In queue at RunComfy, position ") for text in texts)
    assert texts[-1].splitlines()[1].endswith("cost $0.38")


def test_two_nodes_run_at_once_and_get_different_files(engine, api):
    prompt = prompt_of(engine)
    prompt["3"] = {**prompt["2"], "inputs": {**prompt["2"]["inputs"], "seed": 1}}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    assert outcome.outputs["2"][2] != outcome.outputs["3"][2]
    first, second = api.submissions
    assert second.received_at - first.received_at < 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": " "}, "The prompt is empty"),
        ({"start_image": None}, "No start image"),
        ({"duration": 2}, "smaller than min of 3"),
        ({"cfg_scale": 1.5}, "bigger than max of 1"),
        ({"model": "kling-9"}, "kling-9"),
        ({"size": (480, 200)}, "480 × 200 px"),
        ({"size": (1000, 300)}, "1000:300"),
    ],
)
def test_refusals_come_before_any_request(engine, api, values, said):
    outcome = engine.run(prompt_of(engine, **values))
    assert not outcome.succeeded
    assert said in outcome.error
    assert api.requests == []


def test_a_batch_is_refused_for_now_with_its_count(engine, api):
    prompt = prompt_of(engine, start_image=["3", 0])
    prompt["3"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": 4}}
    outcome = engine.run(prompt)
    assert "holds 4 pictures" in outcome.error
    assert api.requests == []


def test_without_a_token_the_error_names_the_places_and_rehearsal(engine, monkeypatch):
    outcome = engine.run(prompt_of(engine))
    assert "Set the environment variable RUNCOMFY_API_TOKEN" in outcome.error
    assert "RUNCOMFY_REHEARSAL=1" in outcome.error


def test_rehearsal_starts_by_itself_and_never_sees_the_token(engine, monkeypatch):
    monkeypatch.setenv("RUNCOMFY_REHEARSAL", "1")
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", CANARY_TOKEN)
    outcome = engine.run(prompt_of(engine))
    assert outcome.succeeded, outcome.error
    assert "rehearsal, nothing charged" in outcome.texts[-1][1]
    server = engine.module("nodes.comfy_bridge")._rehearsal
    assert server.token != CANARY_TOKEN
    assert all(request.authorized for request in server.requests if "/files/" not in request.path)


def test_a_failed_job_fails_the_node_with_the_reason(engine, api):
    api.plan(Fault(FaultKind.FAILED_JOB, message="the content was refused"))
    outcome = engine.run(prompt_of(engine))
    assert "Kling could not make the clip: the content was refused" in outcome.error


def stop_when(engine, api, condition):
    """Press Stop once ``condition`` holds; returns when, by the monotonic clock, in a list."""
    pressed = []

    def press():
        while not condition():
            time.sleep(0.01)
        pressed.append(time.monotonic())
        engine.stop()

    threading.Thread(target=press, daemon=True).start()
    return pressed


def test_stop_in_the_queue_is_seen_within_half_a_second_and_costs_nothing(engine, api):
    api.plan(queue_s=30)
    pressed = stop_when(engine, api, lambda: any("/status" in r.path for r in api.requests))
    outcome = engine.run(prompt_of(engine))
    assert outcome.interrupted
    cancel = next(r for r in api.requests if r.path.endswith("/cancel"))
    assert cancel.at - pressed[0] < 0.5
    assert "is cancelled: no charge" in outcome.texts[-1][1]


def test_stop_while_rendering_keeps_collecting(engine, api):
    api.plan(queue_s=0, run_s=2)
    before = set((engine.output / "video").glob("*.mp4"))
    stop_when(engine, api, lambda: any("/result" in r.path for r in api.requests))
    outcome = engine.run(prompt_of(engine))
    assert outcome.interrupted
    assert "cannot be cancelled and is charged" in outcome.texts[-1][1]
    end = time.monotonic() + 20
    while not (new := set((engine.output / "video").glob("*.mp4")) - before):
        assert time.monotonic() < end, "the clip did not arrive"
        time.sleep(0.05)
    assert next(iter(new)).stat().st_size > 1000


def test_the_token_is_in_no_text_output_or_file(engine, api, caplog):
    outcome = engine.run(prompt_of(engine))
    seen = f"{outcome} {caplog.text}"
    assert CANARY_TOKEN not in seen
    for path in engine.base.rglob("*"):
        if path.is_file():
            assert CANARY_TOKEN.encode() not in path.read_bytes(), path


def test_the_start_frame_is_the_picture_that_was_wired(engine, api):
    outcome = engine.run(prompt_of(engine, size=(640, 400)))
    frames = outcome.outputs["2"][0][0].get_components().images
    teal = torch.tensor([0, 128, 128]) / 255
    assert torch.allclose(frames[0, 100:110, 300:310].mean((0, 1)), teal, atol=0.06)
