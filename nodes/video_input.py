"""A VIDEO input as a file that can be sent."""

import uuid
from pathlib import Path
from typing import Any

from comfy_api.latest import InputImpl, Types

from . import comfy_bridge
from .core.download import sha256_of
from .core.elements import VideoFile
from .core.errors import InputError
from .core.media.video import headers


def mp4_file(video: Any) -> VideoFile:
    """A VIDEO as an MP4 on disk: its own file where it is one, else written out once. Blocks.

    A trimmed video, one in memory, or one of another container is written to ComfyUI's temporary
    folder, under a name made of its content.
    """
    # one in memory would be encoded for the question alone
    in_memory = isinstance(video, InputImpl.VideoFromComponents)
    source = None if in_memory else video.get_stream_source()
    if isinstance(source, str):
        headers(Path(source))  # says in our words what is no video
    if isinstance(source, str) and _is_mp4(Path(source)) and _is_untrimmed(video, source):
        return VideoFile(Path(source), sha256_of(Path(source)))
    folder = comfy_bridge.temp_folder() / "runcomfy-kling"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{uuid.uuid4().hex}.part.mp4"
    try:
        _write(video, part)
        digest = sha256_of(part)
        part.replace(folder / f"{digest}.mp4")
    finally:
        part.unlink(missing_ok=True)
    return VideoFile(folder / f"{digest}.mp4", digest)


def _write(video: Any, path: Path) -> None:
    width, height = video.get_dimensions()
    if width % 2 or height % 2:
        raise InputError(
            f"The video is {width} × {height} px; to be written as MP4 it needs even sides. Scale "
            f"or crop it to {width - width % 2} × {height - height % 2} first."
        )
    try:
        video.save_to(str(path), format=Types.VideoContainer.MP4, codec=Types.VideoCodec.H264)
    except (OSError, ValueError) as error:  # PyAV's errors are among them
        text = f"The video cannot be written as MP4: {error}. Save it anew first."
        raise InputError(text) from None


def _is_mp4(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] != b"qt  "  # QuickTime files have the same boxes


def _is_untrimmed(video: Any, source: str) -> bool:
    return bool(video.get_duration() == InputImpl.VideoFromFile(source).get_duration())
