"""The node that sends jobs and does not wait for their clips."""

from typing import Any

from comfy_api.latest import io

from . import comfy_bridge
from .kling_inputs import check_typed, kling_inputs, orders
from .waiting import submit_jobs


class RunComfyKlingSubmit(io.ComfyNode):
    """Kling 3.0 image-to-video on RunComfy, without waiting."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema. Ids, names and order are frozen: users' saved workflows hold them."""
        return io.Schema(
            node_id="RunComfyKlingSubmit",
            display_name="Kling Submit, do not wait (RunComfy)",
            category="RunComfy/Kling",
            description="Sends Kling 3.0 jobs to RunComfy and goes on at once. The clips are saved "
            "when they are ready; Kling Collect brings them into a graph. Each job is paid.",
            inputs=kling_inputs(),
            outputs=[
                io.String.Output(
                    "request_id",
                    is_output_list=True,
                    tooltip="RunComfy's ids of the jobs, for Kling Collect.",
                ),
            ],
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
        """API and account: ComfyUI's cache must not hand a rehearsal's id to a live run."""
        return comfy_bridge.account_fingerprint()

    @classmethod
    async def execute(cls, **values: Any) -> io.NodeOutput:
        """Check, send, and hand the ids on. See ``kling_inputs`` for the inputs."""
        return io.NodeOutput(await submit_jobs(cls.hidden.unique_id, orders(values, cls.hidden)))
