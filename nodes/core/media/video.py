"""Clips on disk: is it a clip, how long, how large; its metadata, and its last frame."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import torch

from ..errors import MediaError

log = logging.getLogger("runcomfy")


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


def add_metadata(
    path: Path, *, prompt: Mapping[str, Any] | None, workflow: Mapping[str, Any] | None
) -> None:
    """Write the graph into an MP4, as ComfyUI does, so that dropping the file there reopens it.

    The streams are copied packet by packet, never encoded again. If that does not come out whole,
    the file keeps its original bytes.
    """
    given = {"prompt": prompt, "workflow": workflow}
    texts = {key: json.dumps(value) for key, value in given.items() if value is not None}
    if not texts:
        return
    tagged = path.with_name(f"{path.name}.tagged")
    try:
        _copy_streams(path, tagged, texts)
        if inspect(tagged) != inspect(path):
            raise MediaError("the copy differs from the original")
        with tagged.open("rb+") as file:
            os.fsync(file.fileno())
        tagged.replace(path)
    except (av.FFmpegError, MediaError, OSError, ValueError) as error:
        log.warning("the workflow is not in the clip's metadata: %s", error)
    finally:
        tagged.unlink(missing_ok=True)


def _copy_streams(source: Path, target: Path, texts: Mapping[str, str]) -> None:
    options = {"movflags": "use_metadata_tags+faststart"}
    with (
        av.open(str(source)) as old,
        av.open(str(target), "w", format="mp4", options=options) as new,
    ):
        new.metadata.update({**old.metadata, **texts})
        streams = {s.index: new.add_stream_from_template(s, opaque=True) for s in old.streams}
        for packet in old.demux():
            if packet.dts is not None:  # the flushing packet at the end of each stream has none
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


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
