"""The node that brings clips of jobs that were sent before into the graph."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from comfy_api.latest import io

from . import comfy_bridge
from .core.errors import InputError
from .kling_inputs import filename_prefix_input
from .kling_outputs import clip_outputs, clip_values
from .waiting import collect_jobs

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")  # as RunComfy's own nodes accept them


class RunComfyKlingCollect(io.ComfyNode):
    """Clips by their request ids, whoever sent the jobs from wherever."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The schema. Ids, names and order are frozen: users' saved workflows hold them."""
        return io.Schema(
            node_id="RunComfyKlingCollect",
            display_name="Kling Collect (RunComfy)",
            category="RunComfy/Kling",
            description="Waits for Kling jobs that were sent before, saves their clips and shows "
            "them. Sends nothing and costs nothing.",
            inputs=[
                io.String.Input(
                    "request_id",
                    multiline=True,
                    tooltip="RunComfy's ids: wired from Kling Submit, or typed, one a line. From "
                    "this machine, another one, or RunComfy's website.",
                ),
                filename_prefix_input(),
            ],
            outputs=clip_outputs(),
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, **values: Any) -> bool:
        """Refuse ids that cannot be any, where they are typed."""
        typed = values.get("request_id") or ()
        if None not in typed:
            _ids(typed)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> list[str]:
        """API and account: ComfyUI's cache must not hand a rehearsal's clip to a live run."""
        return comfy_bridge.account_fingerprint()

    @classmethod
    async def execute(cls, **values: Any) -> io.NodeOutput:
        """Wait for the clips and hand them on."""
        clips = await collect_jobs(
            cls.hidden.unique_id,
            _pairs(values["request_id"], values["filename_prefix"]),
            graph=comfy_bridge.graph_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo),
        )
        return await clip_values(clips)


def _pairs(texts: Sequence[str], prefixes: Sequence[str]) -> list[tuple[str, str]]:
    """Each id with its clip's prefix; the last prefix is repeated."""
    _ids(texts)
    if not prefixes:
        raise InputError(
            "filename_prefix is an empty list, so no clip has a name. Unplug it, or feed it."
        )
    return [
        (one, prefixes[min(n, len(prefixes) - 1)])
        for n, text in enumerate(texts)
        if str(text).strip(" \t\r\n,;")
        for one in _ids([text])
    ]


def _ids(texts: Iterable[str]) -> list[str]:
    """Each id of texts that hold one or several."""
    found = [word for text in texts for word in re.split(r"[\s,;]+", str(text)) if word]
    if not found:
        raise InputError(
            "request_id is empty. Wire Kling Submit to it, or copy an id from RunComfy's "
            "Generations page."
        )
    for word in found:
        if not _REQUEST_ID.fullmatch(word):
            raise InputError(
                f"request_id {word[:80]!r} is none of RunComfy's. An id has letters, digits, - and "
                "_ only, such as 3f2b8c1e-5d0a-4c57-9b1e-0a6d2f7c9e11. Copy it again."
            )
    return found
