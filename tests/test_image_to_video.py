"""The node in the real engine, in this process: what goes in, what comes out, and Stop."""

import asyncio
import io
import json
import threading
import time
from pathlib import Path

import av
import pytest
import torch
from conftest import CANARY_TOKEN
from engine_in_process import progress_texts
from node_case import SEEDS, prompt_of
from pack.nodes.rehearsal import Fault, FaultKind
from PIL import Image
from raw_server import RawServer, answer


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
    prompt["3"] = {**prompt["2"], "inputs": {**prompt["2"]["inputs"], "seed": next(SEEDS)}}
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
        ({"duration": 2}, "Duration is 2 s. Set it to whole seconds from 3 to 15"),
        ({"cfg_scale": 1.5}, "cfg_scale is 1.5. Set it from 0 to 1"),
        ({"model": "kling-9"}, "Model 'kling-9' is not known. Choose one of"),
        ({"end_image": ["1", 0]}, "kling-3.0/standard takes no end image. Set model to"),
        ({"start_image": None, "start_image_url": "C:\\pic.png"}, "starts with https://"),
        ({"start_image": None, "start_image_url": "http://example.org/a.png"}, "https://"),
        (
            {"filename_prefix": "../../out"},
            "filename_prefix '../../out' leaves ComfyUI's output folder",
        ),
        ({"filename_prefix": "x" * 300}, "cannot be a file's name here"),
        ({"filename_prefix": "漢" * 90}, "cannot be a file's name here"),
        ({"filename_prefix": " "}, "filename_prefix is empty"),
        ({"seed": 2**64}, "Set it from 0 to 18446744073709551615"),
        ({"size": (480, 200)}, "480 × 200 px"),
        ({"size": (1000, 300)}, "1000:300"),
    ],
)
def test_refusals_come_before_any_request(engine, api, values, said):
    outcome = engine.run(prompt_of(engine, **values))
    assert not outcome.succeeded
    assert said in outcome.error
    assert api.requests == []


def test_each_fault_is_reported_once_and_all_at_once(engine, api):
    outcome = engine.run(prompt_of(engine, duration=99, cfg_scale=7, prompt=""))
    (error,) = outcome.refused["2"]["errors"]
    assert len(error["details"].splitlines()) == 3


def test_what_is_linked_is_checked_before_any_request(engine, api):
    prompt = prompt_of(engine, duration=["3", 0])
    prompt["3"] = {"class_type": "PrimitiveInt", "inputs": {"value": 99}}
    outcome = engine.run(prompt)
    assert "Duration is 99 s" in outcome.error
    assert api.requests == []


def test_the_same_graph_again_in_a_new_engine_session_costs_nothing(engine, api):
    prompt = prompt_of(engine)
    first = engine.run(prompt)
    second = engine.run(prompt)  # with an executor, and so a cache, of its own
    assert second.succeeded, second.error
    assert second.outputs["2"][2] == first.outputs["2"][2]
    assert "Reused, $0" in second.texts[-1][1]
    assert len(api.submissions) == 1


def test_a_clip_that_was_deleted_comes_back_although_comfyui_has_it_in_its_cache(engine, api):
    executor, prompt = engine.executor(), prompt_of(engine)
    (path,) = engine.run(prompt, executor=executor).outputs["2"][2]
    Path(path).unlink()
    again = engine.run(prompt, executor=executor)
    assert "Fetched again, $0" in again.texts[-1][1]
    assert Path(again.outputs["2"][2][0]).exists()
    assert len(api.submissions) == 1


def test_a_prefix_that_ends_in_a_slash_names_every_clip(engine, api):
    for _ in range(2):
        outcome = engine.run(prompt_of(engine, filename_prefix="slash/"))
        assert outcome.succeeded, outcome.error
    assert len(list(engine.output.glob("slash_*.mp4"))) == 2


def test_two_identical_nodes_are_one_job(engine, api):
    prompt = prompt_of(engine)
    prompt["3"] = prompt["2"]
    outcome = engine.run(prompt)
    assert outcome.outputs["2"][2] == outcome.outputs["3"][2]
    assert len(api.submissions) == 1


def test_another_account_is_another_cache_entry(engine, api, monkeypatch):
    executor, prompt = engine.executor(), prompt_of(engine)
    assert engine.run(prompt, executor=executor).succeeded
    assert engine.run(prompt, executor=executor).texts == []  # ComfyUI's cache answers
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", "another")
    assert "Reused, $0" in engine.run(prompt, executor=executor).texts[-1][1]


def test_the_prefix_decides_folder_and_name_and_the_graph_is_in_the_file(engine, api):
    outcome = engine.run(prompt_of(engine, filename_prefix="takes/%width%/hello"))
    assert outcome.succeeded, outcome.error
    (path,) = outcome.outputs["2"][2]
    assert path == str(engine.output / "takes" / "960" / "hello_00001_.mp4")
    with av.open(path) as container:
        graph = json.loads(container.metadata["prompt"])
    assert graph["2"]["inputs"]["prompt"] == "steam rises"


def test_a_picture_on_the_web_needs_no_wire(engine, api):
    picture = io.BytesIO()
    Image.new("RGB", (400, 400), "teal").save(picture, "PNG")
    with RawServer(answer(200, picture.getvalue(), Content_Type="image/png")) as host:
        url = f"{host.origin}/start.png"
        outcome = engine.run(prompt_of(engine, start_image=None, start_image_url=url))
    assert outcome.succeeded, outcome.error
    assert api.submissions[0].payload["start_image_url"] == url


def test_an_end_image_goes_to_pro(engine, api):
    outcome = engine.run(prompt_of(engine, model="kling-3.0/pro", end_image=["1", 0]))
    assert outcome.succeeded, outcome.error
    assert api.submissions[0].payload["end_image_url"].startswith("data:image/png")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.rand((2160, 3840, 3)), "3840 × 2160 PNG would be"),
        (lambda: torch.rand((400, 400, 4)), "transparent parts are sent on white"),
        (lambda: torch.rand((400, 400, 1)), None),
    ],
    ids=["4K noise", "alpha", "grey"],
)
def test_any_picture_is_sent_and_each_change_is_said(engine, api, make, said):
    outcome = engine.run(with_tensor(engine, make()))
    assert outcome.succeeded, outcome.error
    assert (said or "Saved") in outcome.texts[-1][1]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.rand((1, 400, 3)), "400 × 1 px; Kling wants each side at least 300 px"),
        (torch.full((400, 400, 3), float("nan")), "start_image has pixels that are not numbers"),
        (torch.rand((400, 400, 2)), "start_image has the shape [400, 400, 2]"),
    ],
    ids=["1 pixel high", "NaN", "two channels"],
)
def test_what_is_no_start_image_is_refused_before_any_request(engine, api, image, said):
    outcome = engine.run(with_tensor(engine, image))
    assert said in outcome.error
    assert api.requests == []


def with_tensor(engine, image):
    """A graph whose start image is this very tensor ``[H, W, C]``."""
    engine.nodes.NODE_CLASS_MAPPINGS["TestTensor"] = TensorNode
    TensorNode.image = image
    prompt = prompt_of(engine)
    prompt["1"] = {"class_type": "TestTensor", "inputs": {}}
    return prompt


class TensorNode:
    """Hands out a tensor as an IMAGE."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    image = None

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def run(self):
        return (self.image.unsqueeze(0),)


def test_stop_calls_off_every_node_of_the_graph(engine, api):
    """The quickest node ends the prompt, and ComfyUI cancels the others before they look."""
    for _ in range(3):
        del api.requests[:]
        prompt = prompt_of(engine)
        for node in "3456":
            inputs = {**prompt["2"]["inputs"], "seed": next(SEEDS)}
            prompt[node] = {**prompt["2"], "inputs": inputs}
            api.plan(queue_s=30)
        api.plan(queue_s=30)
        stop_when(engine, api, lambda: sum("/status" in r.path for r in api.requests) >= 5)
        assert engine.run(prompt).interrupted
        end = time.monotonic() + 5
        while sum(r.path.endswith("/cancel") for r in api.requests) < 5:
            assert time.monotonic() < end, "a job was left in the queue"
            time.sleep(0.05)


def test_a_failing_neighbour_ends_no_job(engine, api):
    engine.nodes.NODE_CLASS_MAPPINGS["TestFail"] = FailNode
    before = set((engine.output / "video").glob("*.mp4"))
    prompt = prompt_of(engine)
    prompt["3"] = {"class_type": "TestFail", "inputs": {}}
    outcome = engine.run(prompt)
    assert "meant to fail" in outcome.error
    end = time.monotonic() + 20
    while not set((engine.output / "video").glob("*.mp4")) - before:
        assert time.monotonic() < end, "the clip did not arrive"
        time.sleep(0.05)
    assert not any(r.path.endswith("/cancel") for r in api.requests)


class FailNode:
    """Fails a little after it began, beside others that wait."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    async def run(self):
        await asyncio.sleep(1)
        raise RuntimeError("meant to fail")


def test_the_node_does_not_keep_the_text_of_an_earlier_run(engine, api):
    assert engine.run(prompt_of(engine)).succeeded
    api.plan(Fault(FaultKind.FAILED_JOB, message="too dark"))
    assert "too dark" in engine.run(prompt_of(engine)).texts[-1][1]


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
    server = engine.module("nodes.comfy_bridge")._Shared.rehearsal
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


@pytest.mark.parametrize("identical", [True, False])
def test_each_of_two_stopped_nodes_is_told_the_truth(engine, api, identical):
    prompt = prompt_of(engine)
    inputs = dict(prompt["2"]["inputs"])
    if not identical:
        inputs["seed"] = next(SEEDS)
    prompt["3"] = {**prompt["2"], "inputs": inputs}
    for _ in range(2):
        api.plan(queue_s=30)
    jobs = 1 if identical else 2
    stop_when(engine, api, lambda: sum("/status" in r.path for r in api.requests) >= 2 * jobs)
    assert engine.run(prompt).interrupted
    time.sleep(2)  # the node that did not see the flag is told by the prompt's history
    told = dict(text for event in list(engine._sent) for text in progress_texts(*event))
    assert all("no charge" in told[node] or "is charged" in told[node] for node in "23"), told
    assert not any("cannot be cancelled" in told[node] for node in "23")
    assert sum(request.path.endswith("/cancel") for request in api.requests) == jobs
