"""A video file, and which of its frames are wanted: decided from its packets, before decoding.

Headers may lie about the number of frames (edit lists, cut files, variable rates); packets do not.
"""

import io
import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av

from ..errors import InputError, MediaError

START_SLACK_S = 0.0005  # a start typed in milliseconds still means the frame it was rounded from
UNEVEN_S = 0.0015  # frame times are rounded, to 1 ms in Matroska


@dataclass(frozen=True)
class ClipFile:
    """A file on disk or in memory; only ``duration_s`` from ``start_s`` counts, 0 is all of it."""

    file: str | os.PathLike[str] | io.BytesIO
    start_s: float = 0.0
    duration_s: float = 0.0

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The container, open. Several may be open at once. Raises MediaError."""
        file = self.file
        if isinstance(file, io.BytesIO):
            file = io.BytesIO(file.getvalue())  # shares the bytes, has a position of its own
        elif isinstance(file, os.PathLike):
            file = os.fspath(file)
        try:
            container = av.open(file, metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise MediaError(f"{self.name} is not a clip that can be opened ({error}).") from None
        with container:
            yield container

    @property
    def name(self) -> str:
        """What to call it in texts."""
        if isinstance(self.file, io.BytesIO):
            return "The video"
        return os.path.basename(self.file)  # noqa: PTH119 - of a path of any system


@dataclass(frozen=True)
class Selection:
    """Which frames, and how large.

    ``start_s``: from the clip's first frame on. ``max_frames``: 0 is all. ``every_nth``: 1 is each.
    ``max_side``: pixels, larger frames are scaled down; 0 keeps them.
    """

    start_s: float = 0.0
    max_frames: int = 0
    every_nth: int = 1
    max_side: int = 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a picture comes out with; even where it is scaled."""
        longest = max(width, height)
        if not self.max_side or longest <= self.max_side:
            return width, height
        longer = max(2, self.max_side // 2 * 2)
        shorter = max(2, 2 * round(longer * min(width, height) / longest / 2))
        return (longer, shorter) if width >= height else (shorter, longer)


@dataclass(frozen=True)
class Take:
    """The frames that a selection means, of one file.

    ``first_pts``, ``last_pts`` are frame times in the stream's own units, ``end_pts`` is one that
    no frame reaches (None: the file's end), ``start_s`` and ``end_s`` the same for the sound.
    ``origin_pts`` is the file's own first frame. ``step`` is None, or how far apart frames are
    taken to be where the file tells no times.
    """

    count: int
    first_pts: int
    last_pts: int
    end_pts: int | None
    origin_pts: int
    step: Fraction | None
    fps: float
    start_s: Fraction
    end_s: Fraction | None
    notes: tuple[str, ...]


def find(clip: ClipFile, selection: Selection) -> Take:
    """Read the packets, decode nothing.

    Raises:
        MediaError: No video in it, or it cannot be opened.
        InputError: The selection starts behind the clip's end.
    """
    with clip.open() as container:
        stream = video_stream(container, clip)
        unit = Fraction(stream.time_base)
        rate = Fraction(stream.average_rate) if stream.average_rate else None
        times, step = _times(container, stream, (1 / rate if rate else Fraction(1)) / unit)
    begin = int(clip.start_s / unit)  # as ComfyUI trims
    end = int((clip.start_s + clip.duration_s) / unit) if clip.duration_s else None
    known = times[bisect_left(times, begin) : None if end is None else bisect_left(times, end)]
    if not known:
        raise MediaError(f"{clip.name} has no frames between its ends.")
    chosen = known
    if selection.start_s:
        wanted = known[0] + (selection.start_s - START_SLACK_S) / unit
        chosen = known[bisect_left(known, wanted) :]
    if not chosen:
        length_s = float((known[-1] - known[0] + (_mean_step(known) or 0)) * unit)
        raise InputError(
            f"start is {selection.start_s:g} s, but the clip is {length_s:.2f} s long. Set start "
            "to less than that."
        )
    taken = chosen[:: selection.every_nth][: selection.max_frames or None]
    behind = len(taken) * selection.every_nth  # the first frame that is not the taken ones' time
    cut_off = bool(selection.max_frames) and behind < len(chosen)
    span = chosen[: behind + 1] if cut_off else chosen
    fps, notes = rate, []
    if fps is None or (len(span) < len(times) and _is_uneven(times, unit)):
        fps = 1 / ((_mean_step(span) or _mean_step(times) or 1 / unit) * unit)
    if _is_uneven(span, unit):
        notes.append(
            f"The frames are not evenly spaced in time; fps {float(fps / selection.every_nth):.3f} "
            "is their average."
        )
    end_s = Fraction(clip.start_s + clip.duration_s) if clip.duration_s else None
    if cut_off:
        end_s = chosen[behind] * unit
    return Take(
        count=len(taken),
        first_pts=taken[0],
        last_pts=taken[-1],
        end_pts=end,
        origin_pts=times[0],
        step=step,
        fps=float(fps / selection.every_nth),
        start_s=taken[0] * unit,
        end_s=end_s,
        notes=tuple(notes),
    )


def video_stream(container: Any, clip: ClipFile) -> Any:
    """The first video stream; raises MediaError where there is none."""
    if not container.streams.video:
        raise MediaError(f"{clip.name} has no video in it.")
    return container.streams.video[0]


def decode(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of a stream; packets that do not decode are left out."""
    packets = container.demux(stream)
    while True:
        try:
            frames = next(packets).decode()
        except StopIteration:
            return
        except av.FFmpegError:
            continue  # if it was the file that broke off, the next step is the end
        yield from frames


def _times(container: Any, stream: Any, step: Fraction) -> tuple[list[int], Fraction | None]:
    """The times of all frames that are to be shown, in order; ``step`` if they are only counted."""
    found: list[int | None] = []
    with suppress(av.FFmpegError):  # cut off or damaged: what is there counts
        # is_discard: an edit list leaves them out, they are there for others to decode from
        found += (p.pts for p in container.demux(stream) if p.size and not p.is_discard)
    told = [pts for pts in found if pts is not None]
    if len(told) == len(found):
        return sorted(told), None
    return [round(number * step) for number in range(len(found))], step


def _mean_step(times: list[int]) -> Fraction | None:
    return Fraction(times[-1] - times[0], len(times) - 1) if times[-1] > times[0] else None


def _is_uneven(times: list[int], unit: Fraction) -> bool:
    steps = [after - before for before, after in pairwise(times)]
    return bool(steps) and (max(steps) - min(steps)) * unit > UNEVEN_S
