"""The node in the real engine: what its outputs hold, what it says, and how it ends."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_maker import make_clip

NODE = "RunComfyVideoFrames"
WIDGETS = {"start": 0.0, "max_frames": 0, "every_nth": 1, "max_side": 0}


@pytest.fixture(scope="module")
def clip(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A clip's name in ComfyUI's input folder: 2 s at 24 frames a second, with sound."""
    engine.input.mkdir(exist_ok=True)
    made = make_clip(tmp_path_factory.mktemp("clips") / "plain.mp4", channels=2)
    shutil.copy(made, engine.input / "plain.mp4")
    return "plain.mp4"


def graph(clip: str, *, wired: tuple[int, ...] = (0, 4, 5), **widgets: Any) -> dict[str, Any]:
    """Load Video, the node, and a preview for each image output that is to be wired."""
    prompt: dict[str, Any] = {
        "1": {"class_type": "LoadVideo", "inputs": {"file": clip}},
        "2": {"class_type": NODE, "inputs": {"video": ["1", 0], **WIDGETS, **widgets}},
    }
    for slot in wired:
        prompt[str(10 + slot)] = {"class_type": "PreviewImage", "inputs": {"images": ["2", slot]}}
    return prompt


def test_outputs_are_comfyuis_own_and_the_node_says_what_they_are(engine: Any, clip: str) -> None:
    prompt = graph(clip, start=0.5, max_frames=12, every_nth=2)
    prompt["3"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}}
    prompt["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    theirs, _, _ = (values[0] for values in outcome.outputs["3"][:3])
    images, audio, fps, count, first, last = (values[0] for values in outcome.outputs["2"])
    assert torch.equal(images, theirs[12:36:2])
    assert torch.equal(first, theirs[12:13])
    assert torch.equal(last, theirs[34:35])
    assert (fps, count) == (12.0, 12)
    assert (tuple(audio["waveform"].shape), audio["sample_rate"]) == ((1, 2, 44100), 44100)
    assert dict(outcome.texts)["2"] == "12 frames, 320 × 240, 12 fps, 0.01 GB"


def test_a_trimmed_video_and_one_in_memory_are_taken(engine: Any, clip: str) -> None:
    prompt = graph(clip)
    prompt["3"] = {
        "class_type": "Video Slice",
        "inputs": {"video": ["1", 0], "start_time": 1.0, "duration": 0.5, "strict_duration": False},
    }
    prompt["2"]["inputs"]["video"] = ["3", 0]
    prompt["5"] = {
        "class_type": "CreateVideo",
        "inputs": {"images": ["2", 0], "fps": ["2", 2], "audio": ["2", 1]},
    }
    prompt["6"] = {
        "class_type": NODE,
        "inputs": {"video": ["5", 0], **WIDGETS, "start": 0.25, "max_frames": 3},
    }
    prompt["7"] = {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    trimmed, held = outcome.outputs["2"], outcome.outputs["6"]
    assert trimmed[3] == [12]
    assert trimmed[1][0]["waveform"].shape[2] == 22050
    assert torch.equal(held[0][0], trimmed[0][0][6:9])
    assert held[1][0]["waveform"].shape[2] == pytest.approx(44100 * 3 / 24, abs=1)


def test_without_frames_wired_only_the_ends_are_decoded(engine: Any, clip: str) -> None:
    """And wiring them afterwards is not answered from the cache."""
    executor = engine.executor()
    bare = engine.run(graph(clip, wired=(4, 5)), executor=executor)
    assert bare.succeeded, bare.error
    images, audio, fps, count, first, last = (values[0] for values in bare.outputs["2"])
    assert images is None
    assert (fps, count, audio["sample_rate"]) == (24.0, 48, 44100)
    whole = engine.run(graph(clip), executor=executor)
    assert whole.succeeded, whole.error
    images = whole.outputs["2"][0][0]
    assert len(images) == 48
    assert torch.equal(first, images[:1])
    assert torch.equal(last, images[-1:])
    again = engine.run(graph(clip), executor=executor)
    assert "2" in str([data for name, data in again.events if name == "execution_cached"])


def test_what_does_not_fit_is_refused_in_words(
    engine: Any, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = engine.module("nodes.core.media.memory")
    frames = engine.module("nodes.core.media.frames")
    monkeypatch.setattr(memory, "available_bytes", lambda: frames.MARGIN_BYTES + 20_000_000)
    outcome = engine.run(graph(clip))
    assert outcome.error.startswith("48 frames of 320 × 240 take 0.0 GB of memory, and 0.0 GB")
    assert "Set every_nth to" in outcome.error


def test_stop_ends_the_decoding(engine: Any, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressed at the fifth frame, it is not the last that is seen but one of the next."""
    pixels = engine.module("nodes.core.media.pixels")
    written: list[int] = []
    write = pixels.PixelWriter.write

    def noted(self: Any, frame: Any, target: Any) -> None:
        written.append(1)
        if len(written) == 5:
            engine.stop()
        write(self, frame, target)

    monkeypatch.setattr(pixels.PixelWriter, "write", noted)
    outcome = engine.run(graph(clip))
    assert outcome.interrupted
    assert len(written) < 30
    assert not [t for t in threading.enumerate() if t.name.startswith("runcomfy-frames")]
    monkeypatch.undo()
    assert engine.run(graph(clip)).succeeded


def test_a_failed_neighbour_ends_the_decoding(
    engine: Any, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is wanted by the next prompt."""
    from comfy_api.latest import InputImpl

    clip_file = engine.module("nodes.core.media.clip_file")
    decode = clip_file.decode
    began, failed, ended = (threading.Event() for _ in range(3))

    def slow(container: Any, stream: Any) -> Any:
        try:
            for frame in decode(container, stream):
                if stream.type == "video":
                    began.set()
                    failed.wait(20)
                yield frame
        finally:
            ended.set()

    def fail(*_: Any, **__: Any) -> None:
        assert began.wait(20)

    monkeypatch.setattr(clip_file, "decode", slow)
    monkeypatch.setattr(InputImpl.VideoFromFile, "as_trimmed", fail)
    prompt = graph(clip, wired=(0,))
    # two steps from an output, so that ComfyUI starts it after the node, which is one step away
    prompt["4"] = {
        "class_type": "Video Slice",
        "inputs": {"video": ["1", 0], "start_time": 0.0, "duration": 9.0, "strict_duration": True},
    }
    prompt["5"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["4", 0]}}
    prompt["6"] = {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}}
    outcome = engine.run(prompt)
    assert "Failed to slice video" in outcome.error
    ended.clear()  # the sound was decoded before
    failed.set()
    assert ended.wait(10)


def test_several_clips_are_decoded_one_after_the_other(
    engine: Any, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, each would see the same free memory, and together they would not fit."""
    frames = engine.module("nodes.core.media.frames")
    read, inside, most = frames.read, [0], [0]

    def counted(*args: Any, **options: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        try:
            return read(*args, **options)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(frames, "read", counted)
    prompt = graph(clip)
    for number in range(3):
        key = str(20 + number)
        prompt[key] = {
            "class_type": NODE,
            "inputs": {"video": ["1", 0], **WIDGETS, "max_frames": 10 + number},
        }
        prompt[f"9{number}"] = {"class_type": "PreviewImage", "inputs": {"images": [key, 0]}}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    assert [outcome.outputs[str(20 + n)][3][0] for n in range(3)] == [10, 11, 12]
    assert most == [1]


def test_a_file_that_is_no_clip_fails_with_its_name(engine: Any, tmp_path: Path) -> None:
    (engine.input / "broken.mp4").write_bytes(b"nothing of a clip")
    outcome = engine.run(graph("broken.mp4"))
    assert "broken.mp4 is not a clip that can be opened" in outcome.error
