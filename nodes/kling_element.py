"""The node that makes one element: a subject that the clip keeps."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import comfy_bridge
from .core import elements as core
from .core.elements import Element
from .core.errors import InputError
from .core.kling import MAX_ELEMENTS, MAX_REFERENCES
from .kling_inputs import Elements
from .video_input import mp4_file

if TYPE_CHECKING:
    import torch


class RunComfyKlingElement(io.ComfyNode):
    """One subject by pictures or by a video, chained to those before it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema. Ids, names and order are frozen: users' saved workflows hold them."""
        return io.Schema(
            node_id="RunComfyKlingElement",
            display_name="Kling Element (RunComfy)",
            category="RunComfy/Kling",
            description="A subject that the clip keeps: a person, a thing, a place, told by "
            "pictures or by a video. The help page says how the prompt mentions it.",
            inputs=[
                io.Image.Input(
                    "frontal_image",
                    optional=True,
                    tooltip="The subject from the front, at least 300 px a side.",
                ),
                io.Autogrow.Input(
                    "reference_image",
                    template=io.Autogrow.TemplatePrefix(
                        io.Image.Input("reference_image", tooltip="The subject from another side."),
                        prefix="reference_image_",
                        min=0,
                        max=MAX_REFERENCES,
                    ),
                    optional=True,
                    tooltip=f"The subject from other sides, up to {MAX_REFERENCES} pictures.",
                ),
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="The subject in a video instead of pictures: 3 to 10 s, 720 to 2160 px "
                    "a side. One element of a clip can be a video.",
                ),
                Elements.Input(
                    "elements",
                    optional=True,
                    tooltip=f"The elements before this one, {MAX_ELEMENTS} in all.",
                ),
                io.String.Input(
                    "video_url",
                    default="",
                    optional=True,
                    tooltip="Address of a video on the web instead of a wired one. It must start "
                    "with https:// and need no login.",
                ),
            ],
            outputs=[
                Elements.Output(
                    "elements",
                    tooltip="All elements so far, for the next one or for a Kling node.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, video_url: str | None = "", **_: Any) -> bool:
        """Refuse an address that is typed wrong when the graph is queued."""
        if video_url and video_url.strip():
            core.url_element(video_url)
        return True

    @classmethod
    async def execute(
        cls,
        frontal_image: "torch.Tensor | None" = None,
        reference_image: "Mapping[str, torch.Tensor] | None" = None,
        video: Any = None,
        elements: Sequence[Element] = (),
        video_url: str = "",
    ) -> io.NodeOutput:
        """Check the element and chain it. Pictures are ``[B, H, W, C]``."""
        references = [one for batch in (reference_image or {}).values() for one in batch]
        given = {
            "pictures": frontal_image is not None or bool(references),
            "video": video is not None,
            "video_url": bool(video_url.strip()),
        }
        if sum(given.values()) > 1:
            names = " and ".join(name for name, is_given in given.items() if is_given)
            raise InputError(f"An element has {names}; Kling takes one of them. Take out the rest.")
        if video is not None:
            made = core.video_element(await asyncio.to_thread(mp4_file, video))
        elif video_url.strip():
            made = core.url_element(video_url)
        else:
            made = core.image_element(_frontal(frontal_image), references)
        chained = core.chain(elements, made)
        text = "\n".join([f"@Element{len(chained)} in the prompt", *made.notes])
        comfy_bridge.show(cls.hidden.unique_id, text)
        return io.NodeOutput(chained)


def _frontal(batch: "torch.Tensor | None") -> "torch.Tensor | None":
    if batch is None or batch.shape[0] == 1:
        return None if batch is None else batch[0]
    raise InputError(
        f"frontal_image holds {batch.shape[0]} pictures; an element has one. Pick it with Get "
        "Image from Batch, and wire the others to reference_image."
    )
