"""Clips on disk: is it a clip, how long, how large; and its last frame."""

from dataclasses import dataclass
from pathlib import Path

import av
import torch

from ..errors import MediaError


@dataclass(frozen=True)
class ClipInfo:
    """What a clip's headers say, after its first frame has been decoded."""

    width: int
    height: int
    duration_s: float
    fps: float
    has_audio: bool


def inspect(path: Path) -> ClipInfo:
    """Open a clip and decode its first frame.

    Raises:
        MediaError: Not a video, or it does not decode.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path.name} has no video in it.")
            stream = container.streams.video[0]
            frame = next(container.decode(stream))
            duration_s = float(container.duration or 0) / av.time_base
            if stream.duration and stream.time_base:
                duration_s = float(stream.duration * stream.time_base)
            return ClipInfo(
                width=frame.width,
                height=frame.height,
                duration_s=duration_s,
                fps=float(stream.average_rate or 0),
                has_audio=bool(container.streams.audio),
            )
    except (av.FFmpegError, StopIteration) as error:
        raise MediaError(f"{path.name} is not a clip that can be played ({error}).") from None


def last_frame(path: Path) -> torch.Tensor:
    """The clip's last frame as ``[1, H, W, 3]``, float 0 to 1.

    Decoding starts at the last keyframe. Raises MediaError if nothing decodes.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if stream.duration:
                container.seek(stream.duration + (stream.start_time or 0), stream=stream)
            frame = None
            for frame in container.decode(stream):  # noqa: B007 - the last one is wanted
                pass
            if frame is None:
                raise MediaError(f"{path.name} has no frame at its end.")
            rgb = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            return (rgb.to(torch.float32) / 255).unsqueeze(0)
    except av.FFmpegError as error:
        raise MediaError(f"The last frame of {path.name} cannot be read ({error}).") from None
