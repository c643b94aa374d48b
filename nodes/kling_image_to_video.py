"""The node that turns a picture into a clip: waits for it, saves it, shows it."""

import asyncio
from typing import Any

from comfy_api.latest import InputImpl, io, ui

from . import comfy_bridge
from .core.errors import InputError
from .core.media import video
from .kling_inputs import kling_inputs, order, typed_faults


class RunComfyKlingImageToVideo(io.ComfyNode):
    """Kling 3.0 image-to-video on RunComfy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema. Ids, names and order are frozen: users' saved workflows hold them."""
        return io.Schema(
            node_id="RunComfyKlingImageToVideo",
            display_name="Kling Image to Video (RunComfy)",
            category="RunComfy/Kling",
            description="Brings a picture to life with Kling 3.0 on RunComfy. Each run is paid: "
            "10 s with audio on kling-3.0/standard cost about $1.26.",
            inputs=kling_inputs(),
            outputs=[
                io.Video.Output("video", is_output_list=True, tooltip="The saved clip."),
                io.Image.Output(
                    "last_frame",
                    is_output_list=True,
                    tooltip="The clip's last frame, to start the next clip from.",
                ),
                io.String.Output(
                    "video_path", is_output_list=True, tooltip="Where the clip is on disk."
                ),
                io.String.Output(
                    "request_id", is_output_list=True, tooltip="RunComfy's id of the job."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool:
        """Refuse what is typed wrong when the graph is queued.

        Raised, not returned: ComfyUI repeats a returned text once for every input of the node.
        """
        found = typed_faults(values)
        if found:
            raise InputError("\n".join(found))
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> list[str]:
        """API and account: ComfyUI's cache must not hand a rehearsal's clip to a live run."""
        return comfy_bridge.account_fingerprint()

    @classmethod
    async def execute(cls, **values: Any) -> io.NodeOutput:
        """Check, run the job, and hand the clip on. See ``kling_inputs`` for the inputs."""
        graph = comfy_bridge.graph_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        clip = await comfy_bridge.run_job(cls.hidden.unique_id, order(values, graph))
        last_frame = await asyncio.to_thread(video.last_frame, clip.path)
        place = comfy_bridge.place_in_output(clip.path)
        return io.NodeOutput(
            [InputImpl.VideoFromFile(str(clip.path))],
            [last_frame],
            [str(clip.path)],
            [clip.request_id],
            ui=ui.PreviewVideo([ui.SavedResult(*place, io.FolderType.output)]) if place else None,
        )
