"""Clips on disk: is it a clip, how long, how large; its metadata, and its last frame."""

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from ..errors import MediaError
from .pixels import PixelWriter, turns

log = logging.getLogger("runcomfy")

REORDERED = 32  # packets; frames come at most 16 away from the place they are shown
MISSING_S = 0.3  # streams may end a little before the time in the header


@dataclass(frozen=True)
class ClipInfo:
    """What a clip's headers say."""

    width: int
    height: int
    duration_s: float
    fps: float
    has_audio: bool


def headers(path: Path) -> ClipInfo:
    """What a video's headers say, without decoding any of it; raises MediaError for no video."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise MediaError(f"{path.name} has no video in it.")
            stream = container.streams.video[0]
            duration_s = float(container.duration or 0) / av.time_base
            if stream.duration and stream.time_base:
                duration_s = float(stream.duration * stream.time_base)
            return ClipInfo(
                width=stream.codec_context.width,
                height=stream.codec_context.height,
                duration_s=duration_s,
                fps=float(stream.average_rate or 0),
                has_audio=bool(container.streams.audio),
            )
    except av.FFmpegError as error:
        raise MediaError(f"{path.name} is not a video that can be read ({error}).") from None


def inspect(path: Path) -> ClipInfo:
    """Read a clip's packets to the end and decode its first frame.

    A file that was cut off may have whole headers in front: only its packets tell.

    Raises:
        MediaError: Not a video, it does not decode, or it ends before its time.
    """
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise MediaError(f"{path.name} has no video in it.")
            stream = container.streams.video[0]
            frame = next(container.decode(stream))
            promised_s = 0.0  # where the video's own length is not told, nothing can be missing
            if stream.duration and stream.time_base:
                promised_s = float(stream.duration * stream.time_base)
            duration_s = promised_s or float(container.duration or 0) / av.time_base
            container.seek(0)
            ends = [
                float((packet.pts + (packet.duration or 0)) * packet.time_base)
                for packet in container.demux(stream)
                if packet.pts is not None and packet.size
            ]
            if not ends or max(ends) < promised_s - MISSING_S:
                raise MediaError(
                    f"{path.name} ends at {max(ends, default=0):.1f} s of {duration_s:.1f} s."
                )
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
        av.open(str(source), metadata_errors="replace") as old,
        av.open(str(target), "w", format="mp4", options=options) as new,
    ):
        new.metadata.update({**old.metadata, **texts})
        streams = {s.index: new.add_stream_from_template(s, opaque=True) for s in old.streams}
        for packet in old.demux():
            if packet.dts is not None:  # the flushing packet at the end of each stream has none
                packet.stream = streams[packet.stream.index]
                new.mux(packet)


def last_frame(path: Path) -> torch.Tensor:
    """The clip's last frame as ``[1, H, W, 3]``, float 0 to 1, as Video Frames has it.

    Decoding starts at the last keyframe. Where nothing decodes from there, the last frame that does
    decode is taken. Raises MediaError if none does.
    """
    frame = _last_decoded(path, from_keyframe=True) or _last_decoded(path, from_keyframe=False)
    if frame is None:
        raise MediaError(f"{path.name} has no frame that decodes.")
    turned = turns(frame)
    height, width = (frame.width, frame.height) if turned % 2 else (frame.height, frame.width)
    pixels = np.empty((1, height, width, 3), np.float32)
    PixelWriter(frame.width, frame.height, turned).write(frame, pixels[0])
    return torch.from_numpy(pixels)


def _last_decoded(path: Path, *, from_keyframe: bool) -> av.VideoFrame | None:
    frame = None
    with (
        suppress(av.FFmpegError, EOFError),
        av.open(str(path), metadata_errors="replace") as container,
    ):
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if from_keyframe and stream.duration:
            container.seek(stream.duration + (stream.start_time or 0), stream=stream)
        packets = list(container.demux(stream))
        for number, packet in enumerate(packets):
            # frames that no other is made from need no decoding, until the end is near
            is_near = not from_keyframe or number >= len(packets) - REORDERED
            stream.codec_context.skip_frame = "DEFAULT" if is_near else "NONREF"
            for frame in packet.decode():  # noqa: B007 - the last one is wanted
                pass
    return frame
