"""The node that puts pictures where RunComfy can fetch them, and hands out their addresses."""

from typing import Any

from comfy_api.latest import io

from . import uploading
from .core import upload_settings
from .core.errors import InputError
from .core.uploaders.choose import NO_ADDRESS

HOSTS = [host for host in upload_settings.HOSTS if host != upload_settings.INLINE]


class RunComfyUploadImage(io.ComfyNode):
    """Pictures to addresses, on a host of the user's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema. Ids, names and order are frozen: users' saved workflows hold them."""
        return io.Schema(
            node_id="RunComfyUploadImage",
            display_name="Upload Image (RunComfy)",
            category="RunComfy/Kling",
            description="Puts pictures on a host of your own and gives their web addresses, for "
            "start_image_url. Free; needs a bucket or a public address, see the README.",
            inputs=[
                io.Image.Input(
                    "images", tooltip="The pictures. A batch gives one address a picture."
                ),
                io.Combo.Input(
                    "host",
                    options=HOSTS,
                    default=upload_settings.AUTO,
                    tooltip="Where to: auto is what the settings say. With temporary_host anyone "
                    "who has the address sees the picture until it ends.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "url",
                    is_output_list=True,
                    tooltip="One address a picture. It works for a time: the node says until when.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool:
        """Refuse a host that gives no address when the graph is queued."""
        host = values.get("host")
        if host == upload_settings.INLINE:
            raise InputError(NO_ADDRESS)
        if host is not None and host not in HOSTS:
            raise InputError(f"host is {host!r}. Choose one of {', '.join(HOSTS)}.")
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> list[str]:
        """The hosts as set up, and which addresses have ended: ComfyUI's cache keeps those."""
        return uploading.fingerprint()

    @classmethod
    async def execute(cls, **values: Any) -> io.NodeOutput:
        """Upload what is not uploaded yet, and say until when the addresses work."""
        urls = await uploading.run_upload(cls.hidden.unique_id, values["images"], values["host"])
        return io.NodeOutput(list(urls))
