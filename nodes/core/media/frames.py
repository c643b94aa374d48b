"""A clip's frames as one tensor: decoded straight into it, converted on all cores.

Nothing is held twice. The tensor's memory is asked for once, after it was held against what is
free; each frame is converted into its own place while the next ones are decoded.
"""

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from threading import local
from typing import Any

import av
import numpy as np
import torch

from ..errors import MediaError
from . import clip_file, memory, sound
from .clip_file import ClipFile, Selection, Take
from .pixels import PixelWriter, turns
from .sound import Sound

THREADS = min(os.cpu_count() or 1, 8)  # more of them only wait for memory
MARGIN_BYTES = 256 << 20  # sound, and what the rest of ComfyUI takes in the meantime
DECODER_FRAMES = 24  # in flight inside the decoder and on their way to be converted
ENDS_EARLY = "The clip is damaged or ends early"

Tick = Callable[[int, int], None]
"""Told how many frames of how many are done; what it raises ends the work."""


@dataclass(frozen=True)
class Frames:
    """What was read.

    Attributes:
        images: ``[F, H, W, 3]`` float32, 0 to 1; None where only the ends were asked for.
        first: ``[1, H, W, 3]``, as is ``last``; they share memory with ``images``.
        sound: Of the same time, or None.
        fps: Of these frames: ``every_nth`` is taken into account.
        count: F, also where only the ends were asked for.
        notes: Sentences for the user about what was odd.
    """

    images: torch.Tensor | None
    first: torch.Tensor
    last: torch.Tensor
    sound: Sound | None
    fps: float
    count: int
    notes: tuple[str, ...] = ()


def read(clip: ClipFile, selection: Selection, *, tick: Tick, only_ends: bool = False) -> Frames:
    """Decode the selected frames of a file, and its sound.

    Args:
        clip: The file.
        selection: Which frames, and how large.
        tick: Called for each frame that was decoded.
        only_ends: Decode only what the first and the last frame take.

    Raises:
        MediaError: Not a clip, or no frame of it decodes.
        InputError: The frames do not fit into free memory, or ``start`` is behind the end.
    """
    take = clip_file.find(clip, selection)
    heard = sound.read(clip, take.start_s, take.end_s, look=lambda: tick(0, take.count))
    try:
        images, notes = (_ends if only_ends else _all)(clip, take, selection, tick)
    finally:
        memory.give_back()
    return Frames(
        images=None if only_ends else images,
        first=images[:1],
        last=images[-1:],
        sound=heard,
        fps=take.fps,
        count=take.count if only_ends else len(images),
        notes=(*take.notes, *notes),
    )


def _all(
    clip: ClipFile, take: Take, selection: Selection, tick: Tick
) -> tuple[torch.Tensor, list[str]]:
    images = _Images(take.count, selection)
    with (
        ThreadPoolExecutor(THREADS, "runcomfy-frames") as pool,
        closing(
            _decoded(clip, take, take.first_pts, lambda: tick(images.filled, take.count))
        ) as decoded,
    ):
        pending: deque[Future[None]] = deque()
        try:
            for number, frame in enumerate(decoded):
                if number % selection.every_nth == 0:
                    if len(pending) > THREADS:
                        pending.popleft().result()
                    pending.append(pool.submit(images.write, frame, images.place_for(frame)))
                    if images.filled == take.count:
                        break
            for done in pending:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    if not images.filled:
        raise MediaError(f"No frame of {clip.name} decodes.")
    tick(images.filled, take.count)
    notes = images.notes()
    if images.filled < take.count:
        notes.append(f"{ENDS_EARLY}: {images.filled} of {take.count} frames decode.")
    return images.tensor(), notes


def _ends(
    clip: ClipFile, take: Take, selection: Selection, tick: Tick
) -> tuple[torch.Tensor, list[str]]:
    def look() -> None:
        tick(0, 1)

    images = _Images(2, selection)
    notes = []
    for wanted in (take.first_pts, take.last_pts):
        with closing(_decoded(clip, take, wanted, look)) as decoded:
            frame = next(decoded, None)
        if frame is None:
            with closing(_decoded(clip, take, take.first_pts, look)) as decoded:
                frame = next(iter(deque(decoded, maxlen=1)), None)
            notes = [f"{ENDS_EARLY}: last_frame is the last one that decodes."]
        if frame is None:
            raise MediaError(f"No frame of {clip.name} decodes.")
        images.write(frame, images.place_for(frame))
    tick(1, 1)
    return images.tensor(), images.notes() + notes


class _Images:
    """The tensor, filled frame by frame; its size is that of the first frame."""

    def __init__(self, count: int, selection: Selection) -> None:
        self._count, self._selection = count, selection
        self._coded: tuple[int, int] | None = None
        self._own = local()  # each thread's writer
        self.filled = 0
        self._odd: dict[str, str] = {}

    def place_for(self, frame: Any) -> np.ndarray:
        """Where the next frame belongs, ``[H, W, 3]``. For one thread only."""
        size = frame.width, frame.height
        if self._coded is None:
            self._coded = size
            self._allocate(frame)
        elif size != self._coded:
            text = "Frames of {} × {} among them were scaled to the first one's size."
            self._odd.setdefault("size", text.format(*size))
        if frame.is_corrupt:
            text = f"Frames are damaged in the file, the first is number {self.filled + 1}."
            self._odd.setdefault("damage", text)
        self.filled += 1
        place: np.ndarray = self._tensor[self.filled - 1].numpy()
        return place

    def write(self, frame: Any, target: np.ndarray) -> None:
        """Convert one frame to its place. From any thread."""
        if not hasattr(self._own, "writer"):
            self._own.writer = PixelWriter(*self._size, self._turned)
        self._own.writer.write(frame, target)

    def tensor(self) -> torch.Tensor:
        """What was filled, sharing memory."""
        return self._tensor[: self.filled]

    def notes(self) -> list[str]:
        """Sentences about what was odd."""
        return list(self._odd.values())

    def _allocate(self, frame: Any) -> None:
        self._turned = turns(frame)
        self._size = width, height = self._selection.size(frame.width, frame.height)
        if self._turned % 2:
            width, height = height, width
        memory.check_fit(
            self._count,
            width,
            height,
            every_nth=self._selection.every_nth,
            working_bytes=MARGIN_BYTES
            + THREADS * width * height * memory.BYTES_PER_PIXEL
            + DECODER_FRAMES * 2 * frame.width * frame.height,
        )
        # torch's, not numpy's: that asks Linux for large pages, which are quicker where memory is
        # at hand (0.2 s for 2.7 GB, these 1.1 s), but where a virtual machine has to be given it
        # first they took 3 to 7 s, and these still 1.1
        self._tensor = torch.empty((self._count, height, width, 3))


def _decoded(
    clip: ClipFile, take: Take, from_pts: int, look: Callable[[], None]
) -> Generator[Any, None, None]:
    """Frames from a time on, up to the end of the clip's part; ``look`` is called for each."""
    can_seek = take.step is None and from_pts > take.origin_pts
    for seek in (True, False) if can_seek else (False,):
        arrived = False
        with clip.open() as container:
            stream = clip_file.video_stream(container, clip)
            stream.thread_type = "AUTO"
            if seek:
                with suppress(av.FFmpegError):
                    container.seek(from_pts, stream=stream)
            for number, frame in enumerate(clip_file.decode(container, stream)):
                look()
                pts = frame.pts if take.step is None else round(number * take.step)
                pts = from_pts if pts is None else pts  # one without a time is one of them
                if seek and not arrived and pts > from_pts:
                    break  # the file's index is wrong: from the start, then
                arrived = True
                if take.end_pts is not None and pts >= take.end_pts:
                    return
                if pts >= from_pts:
                    yield frame
        if arrived:
            return
