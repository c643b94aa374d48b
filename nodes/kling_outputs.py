"""What every node that hands out clips gives on: the outputs, and the clips as their values."""

import asyncio
from collections.abc import Sequence

from comfy_api.latest import InputImpl, io, ui

from . import comfy_bridge
from .core.job import Clip
from .core.media import video


def clip_outputs() -> list[io.Output]:
    """In the order of saved workflows, which wire them by position. Each is a list."""
    return [
        io.Video.Output("video", is_output_list=True, tooltip="The saved clip."),
        io.Image.Output(
            "last_frame",
            is_output_list=True,
            tooltip="The clip's last frame, to start the next clip from.",
        ),
        io.String.Output("video_path", is_output_list=True, tooltip="Where the clip is on disk."),
        io.String.Output("request_id", is_output_list=True, tooltip="RunComfy's id of the job."),
    ]


async def clip_values(clips: Sequence[Clip]) -> io.NodeOutput:
    """The values for ``clip_outputs``, and the clips shown on the node."""
    last_frames = await asyncio.gather(
        *(asyncio.to_thread(video.last_frame, clip.path) for clip in clips)
    )
    places = [place for clip in clips if (place := comfy_bridge.place_in_output(clip.path))]
    shown = [ui.SavedResult(*place, io.FolderType.output) for place in places]
    return io.NodeOutput(
        [InputImpl.VideoFromFile(str(clip.path)) for clip in clips],
        list(last_frames),
        [str(clip.path) for clip in clips],
        [clip.request_id for clip in clips],
        ui=ui.PreviewVideo(shown) if shown else None,
    )
