"""Clips on disk, against files made here."""

from fractions import Fraction

import av
import numpy as np
import pytest
from pack.nodes.core.errors import MediaError
from pack.nodes.core.media import video


def make_clip(path, *, frames=48, size=(320, 240), gop=12):
    """A clip whose frame i is grey of the value 2 i, with a keyframe every ``gop`` frames."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(24))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "1", "g": str(gop), "bf": "2"}
        for i in range(frames):
            pixels = np.full((size[1], size[0], 3), 2 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_inspect_reads_size_length_and_rate(tmp_path):
    info = video.inspect(make_clip(tmp_path / "a.mp4"))
    assert (info.width, info.height, info.fps, info.has_audio) == (320, 240, 24.0, False)
    assert info.duration_s == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("gop", [1, 12, 250])
def test_the_last_frame_is_the_last_one(tmp_path, gop):
    frame = video.last_frame(make_clip(tmp_path / "a.mp4", gop=gop))
    assert frame.shape == (1, 240, 320, 3)
    assert float(frame.mean()) * 255 == pytest.approx(94, abs=1.5)


def test_what_is_no_clip_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(MediaError, match="not a clip that can be played"):
        video.inspect(path)
    with pytest.raises(MediaError):
        video.last_frame(path)


def test_a_cut_off_clip_is_refused(tmp_path):
    whole = make_clip(tmp_path / "a.mp4").read_bytes()
    path = tmp_path / "b.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError):
        video.inspect(path)
