"""Clips on disk, against files made here."""

import json
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from pack.nodes.core.errors import MediaError
from pack.nodes.core.media import video


def make_clip(path, *, frames=48, size=(320, 240), gop=12, faststart=False):
    """A clip whose frame i is grey of the value 2 i, with a keyframe every ``gop`` frames."""
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", format="mp4", options=options) as container:
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


def test_a_clip_with_whole_headers_in_front_and_half_its_packets_is_refused(tmp_path):
    whole = make_clip(tmp_path / "a.mp4", faststart=True).read_bytes()
    path = tmp_path / "b.mp4"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(MediaError):
        video.inspect(path)


def test_the_last_frame_of_a_damaged_end_is_the_last_that_decodes(tmp_path):
    whole = make_clip(tmp_path / "a.mp4", faststart=True, gop=12).read_bytes()
    path = tmp_path / "b.mp4"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    assert 0 < float(video.last_frame(path).mean()) * 255 < 94


def test_only_the_last_group_of_pictures_is_decoded_for_the_last_frame(tmp_path):
    path = make_clip(tmp_path / "a.mp4", gop=12)
    frame = video._last_decoded(path, from_keyframe=True)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(stream.duration, stream=stream)
        decoded = list(container.decode(stream))
    assert len(decoded) <= 12
    assert np.array_equal(frame.to_ndarray(format="rgb24"), decoded[-1].to_ndarray(format="rgb24"))


def test_the_graph_goes_into_the_file_and_the_streams_stay(tmp_path):
    path = make_clip(tmp_path / "a.mp4")
    before = packets(path)
    video.add_metadata(path, prompt={"1": "é"}, workflow={"nodes": []})
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["prompt"]) == {"1": "é"}
        assert json.loads(container.metadata["workflow"]) == {"nodes": []}
    assert packets(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_tagged_file_is_synced_to_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    path = make_clip(tmp_path / "a.mp4")
    synced, fsync = [], os.fsync

    def noted(file):
        synced.append((os.fstat(file).st_ino, [p.name for p in tmp_path.glob("*.tagged")]))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    video.add_metadata(path, prompt={"1": 1}, workflow=None)
    assert synced == [(path.stat().st_ino, ["a.mp4.tagged"])]


def test_a_file_that_cannot_be_tagged_keeps_its_bytes(tmp_path, monkeypatch):
    path = make_clip(tmp_path / "a.mp4")
    before = path.read_bytes()

    def broken(*_, **__):
        raise ValueError("no such template")

    monkeypatch.setattr(video, "_copy_streams", broken)
    video.add_metadata(path, prompt={"1": 1}, workflow=None)
    assert path.read_bytes() == before
    video.add_metadata(path, prompt=None, workflow=None)
    assert path.read_bytes() == before


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux() if packet.size]
