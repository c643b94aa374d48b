"""Clips for tests, with everything that real ones come with: made here, by PyAV."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def picture(number: int, width: int, height: int) -> np.ndarray:
    """The frame of this number: coloured edges, noise, and a grey that tells the number."""
    dice = np.random.default_rng(number)
    pixels = dice.integers(0, 255, (height, width, 3), np.uint8)
    pixels[: height // 2] = (number * 5) % 250
    pixels[:, : width // 4] = [250, 20, 40] if number % 2 else [10, 30, 250]
    return pixels


def tone(seconds: float, channels: int, rate: int = 44100) -> np.ndarray:
    """``[channels, samples]``, each a pitch of its own, low enough for any, louder as time goes."""
    time = np.arange(round(seconds * rate)) / rate
    waves = [np.sin(2 * np.pi * 30 * (n + 1) * time) * time / seconds for n in range(channels)]
    return np.stack(waves).astype(np.float32)


def make_clip(
    path: Path,
    *,
    frames: int = 48,
    size: tuple[int, int] = (320, 240),
    rate: Fraction | int = 24,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    channels: int = 0,
    sound_s: float | None = None,
    container: str | None = None,
    movflags: str = "",
) -> Path:
    """Write a clip.

    Args:
        times: When frames are shown, in milliseconds; evenly by default.
        channels: Of the sound; 0 is none.
        sound_s: Length of the sound; that of the pictures by default.
    """
    muxer = {"movflags": movflags} if movflags else {}
    opened = av.open(str(path), "w", format=container, options=muxer)
    with opened as file:
        video = file.add_stream(codec, rate=rate)
        video.width, video.height = size
        video.pix_fmt = pix_fmt
        video.options = {"g": "12", **(options or {})}
        if codec == "libx264":
            video.options = {"crf": "12", "bf": "2", "preset": "veryfast", **video.options}
        unit = Fraction(1, 1000) if times else 1 / Fraction(rate)
        video.codec_context.time_base = unit
        sound = file.add_stream("aac", rate=44100, layout=LAYOUTS[channels]) if channels else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = times[number] if times else number, unit
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if sound is not None:
            write_sound(file, sound, tone(sound_s or float(frames / Fraction(rate)), channels))
    return path


def write_sound(file: Any, stream: Any, waves: np.ndarray) -> None:
    """Encode a whole waveform."""
    for start in range(0, waves.shape[1], 1024):
        piece = np.ascontiguousarray(waves[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=LAYOUTS[len(waves)])
        frame.sample_rate, frame.pts = stream.rate, start
        file.mux(stream.encode(frame))
    file.mux(stream.encode())


def shifted(source: Path, target: Path, frames: int) -> Path:
    """A copy whose edit list hides the first frames, which are still in the file."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {s.index: new.add_stream_from_template(s) for s in old.streams}
        back = {
            s.index: round(Fraction(frames) / old.streams.video[0].average_rate / s.time_base)
            for s in old.streams
        }
        for packet in old.demux():
            if packet.dts is not None:
                packet.pts -= back[packet.stream.index]
                packet.dts -= back[packet.stream.index]
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return target


def turned(source: Path, target: Path, degrees: int) -> Path:
    """A copy that says it was filmed turned, as phones do: the matrix in its track header."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0
    data[place : place + 36] = matrix
    target.write_bytes(data)
    return target
