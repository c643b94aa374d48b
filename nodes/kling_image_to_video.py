"""The node that turns a picture into a clip: waits for it, saves it, shows it."""

import asyncio
from typing import Any

from comfy_api.latest import InputImpl, io, ui

from . import comfy_bridge
from .core import kling
from .core.errors import InputError
from .core.media import video

DEFAULT_PREFIX = "video/runcomfy-kling"


class RunComfyKlingImageToVideo(io.ComfyNode):
    """Kling 3.0 image-to-video on RunComfy."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs in the order of saved workflows: new ones go last."""
        low, high = kling.DURATION_S
        cfg_low, cfg_high = kling.CFG_SCALE
        return io.Schema(
            node_id="RunComfyKlingImageToVideo",
            display_name="Kling Image to Video (RunComfy)",
            category="RunComfy/Kling",
            description="Brings a picture to life with Kling 3.0 on RunComfy. Each run is paid: "
            "10 s with audio on kling-3.0/standard cost about $1.26.",
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="What happens in the clip: subject, motion, camera, sound.",
                ),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="The picture the clip starts from. The clip takes its shape. At least "
                    "300 px a side, no longer than 2.5:1.",
                ),
                io.Int.Input(
                    "duration",
                    default=kling.DEFAULT_DURATION_S,
                    min=low,
                    max=high,
                    tooltip="Length of the clip in seconds. The price is per second.",
                ),
                io.Boolean.Input(
                    "generate_audio",
                    default=kling.DEFAULT_GENERATE_AUDIO,
                    tooltip="Kling adds sound that fits. On standard and pro a silent clip costs "
                    "a third less.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default="",
                    tooltip="What should not appear. May be empty.",
                ),
                io.Float.Input(
                    "cfg_scale",
                    default=kling.DEFAULT_CFG_SCALE,
                    min=cfg_low,
                    max=cfg_high,
                    step=kling.CFG_SCALE_STEP,
                    tooltip="How closely Kling follows the prompt: 0 loosely, 1 strictly.",
                ),
                io.Combo.Input(
                    "model",
                    options=list(kling.MODELS),
                    default=kling.DEFAULT_MODEL,
                    tooltip="Standard, pro or 4K. Per second with audio: $0.126, $0.168, $0.42.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Kling takes no seed. Changing it only asks for a new take, and pays "
                    "for it. Keep it on fixed.",
                ),
            ],
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
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    async def execute(cls, prompt: str, start_image: Any = None, **values: Any) -> io.NodeOutput:
        """Check, run the job, and hand the clip on. See ``define_schema`` for the inputs."""
        request = kling.KlingRequest(
            prompt=prompt,
            model=values["model"],
            duration_s=values["duration"],
            generate_audio=values["generate_audio"],
            negative_prompt=values["negative_prompt"],
            cfg_scale=values["cfg_scale"],
        )
        if start_image is None:
            raise InputError("No start image. Wire a picture to start_image.")
        if start_image.shape[0] != 1:
            raise InputError(
                f"start_image holds {start_image.shape[0]} pictures, this node takes one. Pick one "
                "with Get Image from Batch."
            )
        clip = await comfy_bridge.run_job(
            cls.hidden.unique_id, request, start_image[0], DEFAULT_PREFIX
        )
        last_frame = await asyncio.to_thread(video.last_frame, clip.path)
        filename, subfolder = comfy_bridge.relative_to_output(clip.path)
        return io.NodeOutput(
            [InputImpl.VideoFromFile(str(clip.path))],
            [last_frame],
            [str(clip.path)],
            [clip.request_id],
            ui=ui.PreviewVideo([ui.SavedResult(filename, subfolder, io.FolderType.output)]),
        )
