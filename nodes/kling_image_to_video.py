"""The node that turns pictures into clips: waits for them, saves them, shows them."""

from typing import Any

from comfy_api.latest import io

from . import comfy_bridge
from .kling_inputs import check_typed, kling_inputs, orders
from .kling_outputs import clip_outputs, clip_values
from .waiting import run_jobs


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
            outputs=clip_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool:
        """Refuse what is typed wrong when the graph is queued."""
        return check_typed(values)

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> list[str]:
        """API and account: ComfyUI's cache must not hand a rehearsal's clip to a live run."""
        return comfy_bridge.account_fingerprint()

    @classmethod
    async def execute(cls, **values: Any) -> io.NodeOutput:
        """Check, run the jobs, and hand the clips on. See ``kling_inputs`` for the inputs."""
        return await clip_values(await run_jobs(cls.hidden.unique_id, orders(values, cls.hidden)))
