"""The rehearsal clip: the submitted picture under a slow camera push, marked REHEARSAL.

Real H.264 and AAC in an mp4, so that everything after the download is tried too. It must not
slow a demo down: the picture becomes YUV planes once, and a frame is then three cheap crops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .media import Abandoned

FPS = 24
SAMPLE_RATE = 44_100
PUSH = 1.15
FADE_SHARE = 0.25
BT709, LIMITED_RANGE = 1, 1  # FFmpeg's numbers for both


@dataclass(frozen=True)
class Clip:
    """What to render. `shots` holds the shots' lengths in seconds, () for a single take."""

    start: Image.Image
    duration_s: int
    short_side_px: int
    audio: bool
    end: Image.Image | None = None
    shots: Sequence[int] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Even width and height in pixels, in the start image's aspect."""
        width, height = self.start.size
        scale = self.short_side_px / min(width, height)
        return 2 * round(width * scale / 2), 2 * round(height * scale / 2)


def render(clip: Clip, path: Path, give_up: Callable[[], bool]) -> None:
    """Write the clip to `path`, complete or not at all; raises Abandoned if `give_up` says so."""
    part = path.with_suffix(".part")
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as file:
            _encode(clip, file, give_up)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _encode(clip: Clip, file: av.container.OutputContainer, give_up: Callable[[], bool]) -> None:
    video = file.add_stream("libx264", rate=FPS, options={"preset": "superfast", "crf": "26"})
    video.width, video.height = clip.size
    video.pix_fmt = "yuv420p"
    context = video.codec_context
    context.time_base = Fraction(1, FPS)
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED_RANGE
    audio = file.add_stream("aac", rate=SAMPLE_RATE, layout="stereo") if clip.audio else None

    picture = _Picture(clip)
    for second in range(clip.duration_s):
        if audio:
            file.mux(audio.encode(_tone(second, clip.duration_s)))
        mark = _mark(clip, second)
        for index in range(second * FPS, (second + 1) * FPS):
            if give_up():
                raise Abandoned
            frame = picture.frame(index / (clip.duration_s * FPS - 1), mark)
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            file.mux(video.encode(frame))
    file.mux(video.encode(None))
    if audio:
        file.mux(audio.encode(None))


class _Picture:
    """Makes the frame of any moment; keeps the planes and one frame's memory."""

    def __init__(self, clip: Clip) -> None:
        self.width, self.height = clip.size
        # A little larger than the frame: the push then shows detail instead of enlarging.
        large = tuple(2 * round(side * PUSH / 2) for side in clip.size)
        self._start = _planes(clip.start, large)
        self._end = _planes(clip.end, large) if clip.end else None
        luma, chroma = self.width * self.height, self.width * self.height // 4
        self._memory = np.empty(luma + 2 * chroma, np.uint8)
        halves = (self.height // 2, self.width // 2)
        y, u, v = np.split(self._memory, [luma, luma + chroma])
        self._frame = (y.reshape(self.height, self.width), u.reshape(halves), v.reshape(halves))

    def frame(self, progress: float, mark: np.ndarray) -> av.VideoFrame:
        """The frame at `progress` (0 first, 1 last); `mark` is the band's text in luma."""
        fade = max(0.0, 1 - (1 - progress) / FADE_SHARE) if self._end else 0.0
        for number, target in enumerate(self._frame):
            plane = _pushed(self._start[number], target.shape, progress)
            if self._end and fade:
                over = _pushed(self._end[number], target.shape, progress)
                plane = Image.blend(plane, over, fade)
            target[:] = np.asarray(plane)
        y, u, v = self._frame
        rows = mark.shape[0]
        y[-rows:] = (y[-rows:] >> 2) + mark
        for chroma in (u, v):
            band = chroma[-rows // 2 :]
            band[:] = (band >> 2) + 96  # a quarter of the colour around the neutral 128
        image = self._memory.reshape(self.height * 3 // 2, self.width)
        return av.VideoFrame.from_ndarray(image, format="yuv420p")


def _planes(image: Image.Image, size: tuple[int, int]) -> list[Image.Image]:
    fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC)
    frame = av.VideoFrame.from_image(fitted).reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709
    )
    width, height = size
    flat = frame.to_ndarray().reshape(-1)
    y, u, v = np.split(flat, [width * height, width * height * 5 // 4])
    halves = (height // 2, width // 2)
    return [
        Image.fromarray(plane.reshape(shape))
        for plane, shape in ((y, (height, width)), (u, halves), (v, halves))
    ]


def _pushed(plane: Image.Image, shape: tuple[int, ...], progress: float) -> Image.Image:
    zoom = 1 + (PUSH - 1) * progress
    width, height = plane.width / zoom, plane.height / zoom
    left, top = (plane.width - width) / 2, (plane.height - height) / 2
    return plane.resize(
        (shape[1], shape[0]), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )


def _mark(clip: Clip, second: int) -> np.ndarray:
    """The band's luma, added to a quarter of the picture's: at most 12 + 165 + 58 = 235."""
    width = clip.size[0]
    rows = 2 * round(clip.short_side_px / 24)
    text = f"REHEARSAL   {second} / {clip.duration_s} s"
    if clip.shots:
        ends = [sum(clip.shots[: n + 1]) for n in range(len(clip.shots))]
        shot = 1 + sum(end <= second for end in ends)
        text += f"   shot {shot} of {len(clip.shots)}"
    band = Image.new("L", (width, rows))
    ImageDraw.Draw(band).text(
        (rows // 2, rows // 2), text, 255, ImageFont.load_default(rows * 0.55), anchor="lm"
    )
    return (12 + np.asarray(band, np.float32) * (165 / 255)).astype(np.uint8)


def _tone(second: int, duration_s: int) -> av.AudioFrame:
    """One second of two quiet notes that swell slowly, a little apart left and right."""
    t = second + np.arange(SAMPLE_RATE) / SAMPLE_RATE
    edges = np.clip(np.minimum(t, duration_s - t) / 0.3, 0, 1)
    swell = 0.05 * edges * (1 + 0.4 * np.sin(2 * np.pi * t / 4))
    low, high = (np.sin(2 * np.pi * hertz * t) for hertz in (196.0, 293.7))
    sound = np.stack([swell * (low + 0.4 * high), swell * (low * 0.8 + 0.6 * high)])
    frame = av.AudioFrame.from_ndarray(sound.astype(np.float32), format="fltp", layout="stereo")
    frame.sample_rate = SAMPLE_RATE
    frame.pts, frame.time_base = second * SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
    return frame
