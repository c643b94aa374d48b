"""A video that is in memory already: the selection is a view of it, and nothing is decoded."""

import math

import torch
from torch.nn.functional import interpolate

from ..errors import InputError, MediaError
from . import memory
from .clip_file import START_SLACK_S, Selection
from .frames import MARGIN_BYTES, Frames, Tick
from .sound import Sound


def select(
    images: torch.Tensor, heard: Sound | None, fps: float, selection: Selection, *, tick: Tick
) -> Frames:
    """Select frames of a tensor, and the sound of the same time.

    Args:
        images: ``[F, H, W, C]`` float, 0 to 1. Shared with the result unless it is scaled.
        heard: Its sound from the first frame on, or None.
        fps: Frames per second.
        selection: Which frames, and how large.
        tick: Called for each frame that was scaled.

    Raises:
        MediaError: No frame in it.
        InputError: ``start`` is behind the end, or the scaled frames do not fit into free memory.
    """
    total = images.shape[0]
    if not total:
        raise MediaError("The video has no frames.")
    first = max(0, math.ceil((selection.start_s - START_SLACK_S) * fps))
    if first >= total:
        raise InputError(
            f"start is {selection.start_s:g} s, but the clip is {total / fps:.2f} s long. Set "
            "start to less than that."
        )
    taken = images[first :: selection.every_nth][: selection.max_frames or None, :, :, :3]
    behind = first + len(taken) * selection.every_nth
    if heard is not None:
        rate = heard.sample_rate / fps
        cut_off = selection.max_frames and behind < total
        heard = heard.cut(round(first * rate), round(behind * rate) if cut_off else None)
    taken = _scaled(taken, selection, tick)
    return Frames(
        images=taken,
        first=taken[:1],
        last=taken[-1:],
        sound=heard if heard is not None and heard.waveform.shape[2] else None,
        fps=fps / selection.every_nth,
        count=len(taken),
    )


def _scaled(images: torch.Tensor, selection: Selection, tick: Tick) -> torch.Tensor:
    count, old_height, old_width, _ = images.shape
    width, height = selection.size(old_width, old_height)
    if (width, height) == (old_width, old_height):
        return images
    memory.check_fit(
        count, width, height, every_nth=selection.every_nth, working_bytes=MARGIN_BYTES
    )
    scaled = torch.empty((count, height, width, 3))
    for number, image in enumerate(images):
        tick(number, count)
        planes = image.float().permute(2, 0, 1).unsqueeze(0)
        small = interpolate(planes, (height, width), mode="bicubic", antialias=True)
        scaled[number] = small[0].permute(1, 2, 0).clamp_(0, 1)
    tick(count, count)
    return scaled
