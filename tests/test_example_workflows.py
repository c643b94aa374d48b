"""Example workflows through a real ComfyUI server: what comes out, and what it costs."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clip_maker import make_clip
from pack.nodes.core.media import video
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
KLING = "RunComfyKlingImageToVideo"


class Examples:
    """Runs workflows and prompts on the shared server."""

    def __init__(self, under_test: Any) -> None:
        self.base, self.server, self.api = (
            under_test.base,
            under_test.server,
            under_test.rehearsal,
        )

    def open(self, name: str) -> dict[str, Any]:
        """An example as the API prompt that the web interface would send."""
        workflow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8"))
        to_prompt = importlib.import_module("pack.dev.workflow").to_prompt
        return to_prompt(workflow, self.server.get_json("/object_info"))

    def run(self, prompt: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
        """What the nodes show, and the last text on each, by node id."""
        run_prompt = importlib.import_module("pack.dev.prompt").run_prompt
        texts: dict[str, str] = {}
        done = asyncio.run(
            run_prompt(self.server.origin, prompt, on_text=texts.__setitem__, timeout_s=120)
        )
        return done.history["outputs"], texts

    def saved(self, shown: dict[str, Any]) -> Path:
        """The one file that a node shows."""
        (file,) = shown["images"]
        return Path(self.base, file["type"], file["subfolder"], file["filename"])


@pytest.fixture(scope="module")
def examples(comfyui_server: Any) -> Examples:
    """With the picture that they load."""
    with Image.open(ROOT / "example_workflows" / "image_to_video.jpg") as picture:
        picture.save(comfyui_server.base / "input" / "example.png")
    return Examples(comfyui_server)


def node_ids(prompt: dict[str, Any], kind: str) -> list[str]:
    """Ids of the nodes of a class."""
    return [key for key, node in prompt.items() if node["class_type"] == kind]


def test_a_clip_comes_apart_and_back_together_with_its_sound(examples: Examples) -> None:
    prompt = examples.open("clip_to_frames")
    before = len(examples.api.submissions)
    shown, texts = examples.run(prompt)
    assert len(examples.api.submissions) == before + 1
    clip = examples.saved(shown[node_ids(prompt, KLING)[0]])
    made = examples.saved(shown[node_ids(prompt, "SaveVideo")[0]])
    old, new = facts(clip), facts(made)
    assert new["frames"] == old["frames"] == 72
    assert new["rate"] == old["rate"] == 24
    assert new["size"] == old["size"]
    assert new["sound_s"] == pytest.approx(old["sound_s"], abs=0.05)
    assert new["loudness"] == pytest.approx(old["loudness"], rel=0.1)
    assert new["detail"] > 1.05 * old["detail"]
    assert texts[node_ids(prompt, "RunComfyVideoFrames")[0]].startswith("72 frames")


def test_the_second_clip_starts_on_the_last_frame_of_the_first(examples: Examples) -> None:
    prompt = examples.open("chain_two_clips")
    before = len(examples.api.submissions)
    shown, _ = examples.run(prompt)
    first, second = node_ids(prompt, KLING)
    assert len(examples.api.submissions) == before + 2
    sent = examples.api.submissions[-1].payload["start_image_url"]
    picture = Image.open(io.BytesIO(base64.b64decode(sent.partition(",")[2])))
    last = video.last_frame(examples.saved(shown[first]))[0]
    assert np.array_equal(np.asarray(picture), np.rint(last.numpy() * 255))
    assert facts(examples.saved(shown[second]))["frames"] == 72
    examples.run(prompt)
    assert len(examples.api.submissions) == before + 2


def test_with_only_the_last_frame_wired_the_clip_is_not_decoded(examples: Examples) -> None:
    """On the server, which knows the wires; and a wire that is added later gets its frames."""
    make_clip(examples.base / "input" / "long.mp4", frames=100)
    widgets = {"start": 0.0, "max_frames": 0, "every_nth": 1, "max_side": 0}
    prompt: dict[str, Any] = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": "long.mp4"}},
        "2": {"class_type": "RunComfyVideoFrames", "inputs": {"video": ["1", 0], **widgets}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 5]}},
    }
    shown, texts = examples.run(prompt)
    assert texts["2"] == "100 frames, 320 × 240, 24 fps, no sound"
    assert len(shown["3"]["images"]) == 1
    prompt["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    shown, texts = examples.run(prompt)
    assert texts["2"] == "100 frames, 320 × 240, 24 fps, 0.09 GB, no sound"
    assert len(shown["4"]["images"]) == 100


def facts(path: Path) -> dict[str, Any]:
    """What a clip holds, every frame decoded."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video)]
        rate = video.average_rate
    with av.open(str(path)) as container:
        sound = [frame.to_ndarray() for frame in container.decode(audio=0)]
        sample_rate = container.streams.audio[0].rate
    waves = np.concatenate(sound, axis=1)
    middle = frames[len(frames) // 2].astype(float)
    return {
        "frames": len(frames),
        "rate": rate,
        "size": frames[0].shape,
        "sound_s": waves.shape[1] / sample_rate,
        "loudness": float(np.sqrt((waves**2).mean())),
        "detail": float(np.abs(np.diff(middle)).mean()),
    }
