"""Frames and sound of clips, against ComfyUI's own decoder and against what was put in."""

from __future__ import annotations

import io
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from clip_maker import make_clip, shifted, tone, turned
from pack.nodes.core.errors import InputError, MediaError
from pack.nodes.core.media import frames, held, memory, video
from pack.nodes.core.media.clip_file import ClipFile, Selection
from pack.nodes.core.media.sound import Sound


def quiet(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def read(
    path: Any, *, part: tuple[float, float] = (0, 0), only_ends: bool = False, **selection: Any
):
    """Frames of a file."""
    clip = ClipFile(path, *part)
    return frames.read(clip, Selection(**selection), tick=quiet, only_ends=only_ends)


@pytest.fixture(scope="module")
def comfy(engine: Any) -> Any:
    """ComfyUI's VideoFromFile."""
    from comfy_api.latest import InputImpl

    return InputImpl.VideoFromFile


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 frames at 24 a second with B-frames, and stereo sound."""
    return make_clip(tmp_path_factory.mktemp("clips") / "plain.mp4", channels=2)


SAME = {
    "720p": {"size": (1280, 720), "frames": 6},
    "portrait, width no multiple of 32": {"size": (540, 960), "frames": 6},
    "odd sizes": {"size": (333, 251), "frames": 6, "pix_fmt": "yuv444p"},
    "10 bit": {"pix_fmt": "yuv420p10le", "frames": 12},
    "full range": {"pix_fmt": "yuvj420p", "frames": 12, "codec": "mjpeg"},
    "4:2:2": {"pix_fmt": "yuv422p", "frames": 12},
    "no B-frames": {"options": {"bf": "0"}},
    "many B-frames, open groups": {"options": {"bf": "8", "x264-params": "open-gop=1:b-adapt=0"}},
    "rgb": {"codec": "libx264rgb", "pix_fmt": "rgb24", "frames": 6},
    "uneven times": {"times": [int(40 * n + (n % 3) * 11) for n in range(48)]},
    "NTSC": {"rate": Fraction(30000, 1001)},
    "mono": {"channels": 1},
    "5.1": {"channels": 6},
    "sound ends early": {"channels": 2, "sound_s": 1.0},
    "sound ends late": {"channels": 2, "sound_s": 3.0},
}


@pytest.mark.parametrize("kind", SAME)
def test_whole_clips_are_bit_for_bit_comfyuis(tmp_path: Path, comfy: Any, kind: str) -> None:
    path = make_clip(tmp_path / "a.mp4", **SAME[kind])
    check_same(read(path), comfy(str(path)).get_components())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mkv", {"channels": 2}),
        ("a.webm", {"codec": "libvpx-vp9", "frames": 20, "options": {"deadline": "realtime"}}),
        ("a.avi", {"codec": "mpeg4", "options": {"bf": "0"}}),
        ("alpha.webm", {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "frames": 10}),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8", "frames": 10}),
    ],
)
def test_other_containers_are_bit_for_bit_comfyuis(
    tmp_path: Path, comfy: Any, name: str, settings: dict[str, Any]
) -> None:
    path = make_clip(tmp_path / name, **settings)
    check_same(read(path), comfy(str(path)).get_components())


def test_sound_before_the_first_frame_is_left_out(tmp_path: Path, comfy: Any) -> None:
    """In a fragmented file the encoder's run-up stays in; ComfyUI plays it, and all else late."""
    path = make_clip(tmp_path / "a.mp4", movflags="frag_keyframe+empty_moov", channels=2)
    ours, theirs = read(path), comfy(str(path)).get_components()
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.sound.waveform, theirs.audio["waveform"][:, :, 1024:])
    put_in = torch.from_numpy(tone(2.0, 2))[:, 40000:80000]
    assert float((ours.sound.waveform[0, :, 40000:80000] - put_in).abs().max()) < 0.05


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_clips_filmed_turned_come_upright_as_comfyuis_do(
    tmp_path: Path, comfy: Any, degrees: int
) -> None:
    flat = make_clip(tmp_path / "a.mp4", frames=5)
    path = turned(flat, tmp_path / "b.mp4", degrees)
    found = read(path)
    check_same(found, comfy(str(path)).get_components())
    assert found.images.shape[1:3] == ((320, 240) if degrees % 180 else (240, 320))
    assert read(path, max_side=160).images.shape[1:3] == (
        (160, 120) if degrees % 180 else (120, 160)
    )


@pytest.mark.parametrize("part", [(0.5, 0), (0.5, 1.0), (0, 0.75), (1.3, 0.4), (-0.5, 0)])
def test_trimmed_videos_are_comfyuis(plain: Path, comfy: Any, part: tuple[float, float]) -> None:
    theirs = comfy(str(plain), start_time=part[0], duration=part[1]).get_components()
    start = 1.5 if part[0] < 0 else part[0]
    ours = read(plain, part=(start, part[1]))
    assert torch.equal(ours.images, theirs.images)
    if part[0] == 0.5:  # a frame's own time, so pictures and sound start together in theirs too
        assert samples(ours) == samples(theirs)


def test_a_file_in_memory_is_read_and_left_as_it_was(plain: Path) -> None:
    file = io.BytesIO(plain.read_bytes())
    file.seek(7)
    found = read(file, max_frames=3)
    assert torch.equal(found.images, read(plain, max_frames=3).images)
    assert file.tell() == 7


def test_every_selection_is_exactly_that_of_the_whole_clip(tmp_path: Path) -> None:
    """With groups of pictures that lean on their neighbours, so that seeking has to be right."""
    path = make_clip(
        tmp_path / "a.mp4",
        frames=60,
        size=(96, 64),
        options={"bf": "4", "x264-params": "open-gop=1:keyint=9:min-keyint=9"},
        channels=2,
    )
    whole = read(path)
    dice = random.Random(8)  # noqa: S311
    for _ in range(25):
        start, nth, most = dice.randrange(60), dice.randint(1, 7), dice.choice([0, 0, 1, 2, 5, 40])
        found = read(path, start_s=round(start / 24, 3), every_nth=nth, max_frames=most)
        wanted = whole.images[start::nth][: most or None]
        case = f"{start} {nth} {most}"
        assert torch.equal(found.images, wanted), case
        assert found.fps == pytest.approx(24 / nth)
        assert found.count == len(wanted)
        assert torch.equal(found.first, wanted[:1])
        assert torch.equal(found.last, wanted[-1:])
        first = round(start / 24 * 44100)
        if most and start + len(wanted) * nth < 60:
            assert found.sound.waveform.shape[2] == round(len(wanted) * nth / 24 * 44100)
        pairs = zip(
            whole.sound.waveform[0, 0, first:], found.sound.waveform[0, 0, :20000], strict=False
        )
        assert max(abs(float(a - b)) for a, b in pairs) < 1e-4, case
        ends = read(
            path, start_s=round(start / 24, 3), every_nth=nth, max_frames=most, only_ends=True
        )
        assert ends.images is None
        assert ends.count == len(wanted)
        assert torch.equal(ends.first, wanted[:1]), case
        assert torch.equal(ends.last, wanted[-1:]), case
        assert found.notes == ends.notes == ()


def test_the_sound_far_into_a_clip_is_the_same_as_when_it_is_read_from_the_start(
    tmp_path: Path,
) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=240, size=(64, 48), channels=2)
    whole, part = read(path), read(path, start_s=8.0)
    assert part.sound.waveform.shape[2] == whole.sound.waveform.shape[2] - 8 * 44100
    assert torch.allclose(part.sound.waveform, whole.sound.waveform[:, :, 8 * 44100 :], atol=1e-4)


def test_start_is_the_first_frame_at_or_after_it(plain: Path) -> None:
    whole = read(plain).images
    for start, frame in ((0.042, 1), (0.041, 1), (0.043, 2), (0.5, 12), (0.51, 13), (1.958, 47)):
        assert torch.equal(read(plain, start_s=start).first[0], whole[frame]), start


def test_a_start_behind_the_end_is_refused(plain: Path) -> None:
    with pytest.raises(InputError, match=r"start is 5 s, but the clip is 2.00 s long"):
        read(plain, start_s=5)


def test_frames_that_an_edit_list_hides_stay_hidden(tmp_path: Path, comfy: Any) -> None:
    plain = make_clip(tmp_path / "a.mp4", channels=2)
    path = shifted(plain, tmp_path / "b.mp4", 7)
    found = read(path)
    assert torch.equal(found.images, read(plain).images[7:])
    assert torch.equal(found.images, comfy(str(path)).get_components().images)
    assert read(path, start_s=0.5, max_frames=1).count == 1
    assert torch.equal(read(path, start_s=0.5).images, found.images[12:])
    assert found.notes == ()


def test_sound_that_starts_later_gets_silence_in_front(tmp_path: Path) -> None:
    """ComfyUI would play it at once, too early for the pictures."""
    plain = make_clip(tmp_path / "a.mp4", channels=2)
    late = tmp_path / "b.mkv"
    with av.open(str(plain)) as old, av.open(str(late), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        for packet in old.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                packet.pts += 22050
                packet.dts += 22050
            packet.stream = streams[packet.stream.index]
            new.mux(packet)
    waveform = read(late).sound.waveform
    assert waveform[:, :, :21000].abs().max() < 0.001
    before = read(plain).sound.waveform
    lag = waveform.shape[2] - before.shape[2]
    assert lag == pytest.approx(22050, abs=1100)
    assert torch.allclose(
        waveform[:, :, 30000:40000], before[:, :, 30000 - 22050 : 40000 - 22050], atol=0.02
    )


def test_sound_is_what_was_put_in(tmp_path: Path) -> None:
    found = read(make_clip(tmp_path / "a.mp4", channels=6)).sound
    put_in = tone(2.0, 6)
    assert found.waveform.shape[:2] == (1, 6)
    assert found.waveform.dtype == torch.float32
    assert found.sample_rate == 44100
    heard = found.waveform[0, :, 40000:80000].numpy()
    order = [np.argmax([abs(np.corrcoef(w, p[40000:80000])[0, 1]) for p in put_in]) for w in heard]
    assert sorted(order) == list(range(6))


def test_no_sound_is_none(tmp_path: Path) -> None:
    assert read(make_clip(tmp_path / "a.mp4", frames=3)).sound is None


def test_uneven_frames_over_a_part_get_their_own_average_rate(tmp_path: Path) -> None:
    """So that they and the sound of the same time stay together."""
    times = [*range(0, 1000, 20), *range(1000, 3000, 100)]
    path = make_clip(tmp_path / "a.mp4", frames=len(times), times=times, channels=2, sound_s=3)
    slow = read(path, start_s=1.0, max_frames=10)
    assert slow.fps == pytest.approx(10, rel=0.01)
    assert slow.sound.waveform.shape[2] == pytest.approx(44100, abs=5)
    assert "evenly" not in str(slow.notes)
    assert "not evenly spaced" in read(path).notes[0]


def test_max_side_scales_down_and_never_up(plain: Path) -> None:
    small = read(plain, max_side=100)
    assert small.images.shape == (48, 76, 100, 3)
    assert read(plain, max_side=320).images.shape == (48, 240, 320, 3)
    assert torch.equal(read(plain, max_side=4000).images, read(plain).images)
    whole = read(plain).images.permute(0, 3, 1, 2)
    ideal = torch.nn.functional.interpolate(whole, (76, 100), mode="bicubic", antialias=True)
    error = (small.images.permute(0, 3, 1, 2) - ideal.clamp(0, 1)).abs().mean()
    assert float(error) < 0.02


@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1920), (1281, 719), (1000, 1), (700, 700)])
@pytest.mark.parametrize("max_side", [2, 64, 643, 999])
def test_scaled_sizes_are_even_in_shape_and_never_above_max_side(
    size: tuple[int, int], max_side: int
) -> None:
    wide, high = Selection(max_side=max_side).size(*size)
    if max(size) <= max_side:
        assert (wide, high) == size
        return
    assert wide % 2 == high % 2 == 0
    assert max_side - 1 <= max(wide, high) <= max_side
    assert min(wide, high) == pytest.approx(max_side * min(size) / max(size), abs=2)


def test_the_kling_nodes_last_frame_is_the_same_one(plain: Path, tmp_path: Path) -> None:
    assert torch.equal(video.last_frame(plain), read(plain).last)
    lying = turned(plain, tmp_path / "b.mp4", 90)
    assert torch.equal(video.last_frame(lying), read(lying).last)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_scaled_frames_are_the_same_each_time(tmp_path: Path, pix_fmt: str) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=10, size=(334, 250), pix_fmt=pix_fmt)
    first = read(path, max_side=217)
    for _ in range(3):
        assert torch.equal(read(path, max_side=217).images, first.images)


def test_a_cut_off_file_gives_what_is_there_and_says_so(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "a.mp4", channels=2, movflags="faststart")
    path = tmp_path / "b.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    found = read(path)
    assert 0 < found.count < 48
    assert found.images.shape[0] == found.count
    assert torch.equal(found.images[: found.count - 4], read(whole).images[: found.count - 4])
    assert "ends early" in "\n".join(found.notes)


def test_holes_in_the_file_are_said_and_the_rest_is_read(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "a.mp4")
    data = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    for position, size in places[20:24]:
        data[position : position + size] = bytes(size)
    path = tmp_path / "b.mp4"
    path.write_bytes(data)
    found = read(path)
    assert 20 < found.count <= 48
    assert found.notes
    last = read(path, only_ends=True).last
    assert torch.equal(last[0], read(whole).images[47]) or found.count < 48


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(MediaError, match=r"a.mp4 is not a clip that can be opened"):
        read(path)
    with pytest.raises(MediaError, match="not a clip"):
        read(tmp_path / "none.mp4")


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.int16), layout="mono")
        frame.sample_rate = 44100
        file.mux(stream.encode(frame))
    with pytest.raises(MediaError, match=r"a.wav has no video in it"):
        read(path)


def test_a_stream_without_times_is_counted(tmp_path: Path) -> None:
    """Such as bare H.264, on which ComfyUI's own decoder fails."""
    path = make_clip(tmp_path / "a.h264", container="h264")
    found = read(path)
    assert found.count == 48
    assert read(path, max_frames=5, every_nth=3).count == 5
    ends = read(path, only_ends=True)
    assert torch.equal(ends.first[0], found.images[0])
    assert torch.equal(ends.last[0], found.images[47])


def test_the_decoder_stops_when_told(plain: Path) -> None:
    class Stopped(Exception):
        pass

    seen = []

    def tick(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        frames.read(ClipFile(plain), Selection(), tick=tick)
    assert seen[-1] == (5, 48)


def test_progress_counts_the_frames(plain: Path) -> None:
    seen: list[tuple[int, int]] = []
    frames.read(ClipFile(plain), Selection(every_nth=2), tick=lambda *now: seen.append(now))
    done = [now for now, _ in seen]
    assert done == sorted(done)
    assert {total for _, total in seen} == {24}
    assert len(set(done)) == 25


def test_only_the_wanted_frames_are_decoded(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=240, size=(64, 48))
    looks: list[int] = []

    def tick(done: int, total: int) -> None:
        looks.append(done)

    frames.read(ClipFile(path), Selection(max_frames=3), tick=tick)
    assert len(looks) <= 5
    looks.clear()
    frames.read(ClipFile(path), Selection(start_s=9.0, max_frames=3), tick=tick)
    assert len(looks) <= 12 + 5
    looks.clear()
    frames.read(ClipFile(path), Selection(), tick=tick, only_ends=True)
    assert len(looks) <= 12 + 2


def test_frames_that_would_not_fit_are_refused_with_what_would(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = frames.MARGIN_BYTES + 20_000_000
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    with pytest.raises(InputError, match="48 frames of 320 × 240 take 0.0 GB") as refused:
        read(plain)
    text = str(refused.value)
    for name in ("every_nth", "max_side", "max_frames"):
        value = int(text.partition(f"{name} to ")[2].split(",")[0].split(".")[0].split()[0])
        assert read(plain, **{name: value}).count > 0, name
    ends = read(plain, only_ends=True)
    assert ends.count == 48


def test_what_is_free_is_asked_before_anything_is_decoded_into(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 0)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(InputError, match="Close what else uses memory"):
        read(plain)


def test_a_video_in_memory_is_selected_without_a_copy() -> None:
    images = torch.rand((20, 8, 10, 3))
    heard = Sound(torch.arange(2000.0).reshape(1, 1, 2000), 1000)
    found = held.select(
        images, heard, 10.0, Selection(start_s=0.5, every_nth=2, max_frames=3), tick=quiet
    )
    assert torch.equal(found.images, images[5:11:2])
    assert found.images.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
    assert found.fps == 5.0
    assert found.sound.waveform.flatten().tolist() == list(range(500, 1100))
    whole = held.select(images, heard, 10.0, Selection(), tick=quiet)
    assert torch.equal(whole.images, images)
    assert whole.sound.waveform.shape[2] == 2000
    with pytest.raises(InputError, match="start is 2 s, but the clip is 2.00 s long"):
        held.select(images, None, 10.0, Selection(start_s=2), tick=quiet)


def test_a_video_in_memory_is_scaled_and_loses_its_alpha() -> None:
    images = torch.rand((4, 90, 120, 4))
    found = held.select(images, None, 10.0, Selection(max_side=60), tick=quiet)
    assert found.images.shape == (4, 44, 60, 3) or found.images.shape == (4, 46, 60, 3)
    assert float(found.images.mean()) == pytest.approx(float(images[..., :3].mean()), abs=0.01)


def check_same(ours: frames.Frames, theirs: Any) -> None:
    """Frames, rate and sound are ComfyUI's, to the last bit."""
    assert ours.images.shape == theirs.images.shape
    assert torch.equal(ours.images, theirs.images)
    assert ours.images.dtype == torch.float32
    assert ours.fps == pytest.approx(float(theirs.frame_rate))
    assert ours.count == len(theirs.images)
    assert samples(ours) == samples(theirs)


def samples(found: Any) -> Any:
    """The sound in a form that compares."""
    if isinstance(found, frames.Frames):
        heard = found.sound
        return None if heard is None else (heard.sample_rate, heard.waveform.numpy().tobytes())
    audio = found.audio
    return None if audio is None else (audio["sample_rate"], audio["waveform"].numpy().tobytes())
