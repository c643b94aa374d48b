"""Decoded video frames to floats, bit for bit as ComfyUI makes them.

ComfyUI's (0.30) conversions are kept: 16-bit precision and interpolated colour for limited-range
video, 8-bit for full-range and RGB, a rim of repeated pixels where the width is no multiple of 32
(without it the last columns are not the same each time). ComfyUI 0.18 rounded everything to 8 bit
and did not turn clips that say they were filmed upright; those frames differ from these.
"""

from itertools import pairwise
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

EIGHT_BIT = {"yuvj420p", "yuvj422p", "yuvj444p", "rgb24", "rgba", "pal8"}
ROWS = 64  # written channel by channel while they are still in the processor's cache
# conversions run on threads of ours; newer PyAV would start some more inside each
ONE_THREAD = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}


def turns(frame: Any) -> int:
    """Quarter turns, counter-clockwise, that a decoded frame wants before it is shown: 0 to 3."""
    return int(round(frame.rotation / 90) % 4)


class PixelWriter:
    """Writes frames into a tensor's memory. Not for several threads at once.

    Args:
        width: Of the frames before they are turned, in pixels; others are scaled to it.
        height: Likewise.
        turned: Quarter turns, counter-clockwise, to give them.
    """

    def __init__(self, width: int, height: int, turned: int) -> None:
        self._size, self._turned = (width, height), turned
        self._reformatter, self._scaler = VideoReformatter(), VideoReformatter()
        self._rim: tuple[Any, ...] | None = None

    def write(self, frame: Any, target: np.ndarray) -> None:
        """Convert one frame into ``target``, ``float32 [H, W, 3]``, 0 to 1, turned upright."""
        width, height = self._size
        target = np.rot90(target, -self._turned)
        has_alpha = frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components)
        if frame.format.name in EIGHT_BIT:
            picture = self._scaled(frame, "rgba" if has_alpha else "rgb24")
            rows = np.frombuffer(memoryview(picture.planes[0]), np.uint8).reshape(height, -1)
            channels = 4 if has_alpha else 3
            pixels = rows[:, : width * channels].reshape(height, width, channels)[:, :, :3]
            np.divide(pixels, np.float32(255), out=target, dtype=np.float32)
            return
        picture = self._rimmed(self._scaled(frame, frame.format.name))
        picture = self._reformatter.reformat(
            picture, format="gbrapf32le" if has_alpha else "gbrpf32le", **ONE_THREAD
        )
        green, blue, red = (
            np.frombuffer(memoryview(picture.planes[n]), np.float32).reshape(picture.height, -1)
            for n in range(3)
        )
        for row in range(0, height, ROWS):
            some = slice(row, min(row + ROWS, height))
            for channel, plane in enumerate((red, green, blue)):
                target[some, :, channel] = plane[some, :width]

    def _scaled(self, frame: Any, name: str) -> Any:
        if (frame.width, frame.height) == self._size and frame.format.name == name:
            return frame
        # as ComfyUI's where the size stays, for the same bits; bicubic keeps a smaller one sharp
        stays = (frame.width, frame.height) == self._size
        return self._scaler.reformat(
            frame,
            *self._size,
            format=name,
            interpolation=None if stays else Interpolation.BICUBIC,
            **ONE_THREAD,
        )

    def _rimmed(self, frame: Any) -> Any:
        if frame.width % 32 == 0:
            return frame
        if self._rim is None or self._rim[0] != frame.format.name:
            self._rim = frame.format.name, *_rim_graph(frame)
        _, _, source, sink = self._rim
        source.push(frame)
        return sink.pull()


def _rim_graph(frame: Any) -> tuple[Any, Any, Any]:
    wide, high = (-(-side // 32) * 32 for side in (frame.width, frame.height))
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format.name,
        time_base=frame.time_base,
    )
    steps = [
        source,
        graph.add("pad", f"{wide}:{high}:0:0"),
        graph.add(
            "fillborders",
            f"left=0:right={wide - frame.width}:top=0:bottom={high - frame.height}:mode=smear",
        ),
        graph.add("buffersink"),
    ]
    for before, after in pairwise(steps):
        before.link_to(after)
    graph.configure()
    return graph, source, steps[-1]
