"""Queue one prompt on a ComfyUI server and follow it to its end, as the web interface does.

Over the same websocket: progress texts, then the prompt's own entry in the server's history.
"""

from __future__ import annotations

import asyncio
import struct
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

Json = dict[str, Any]

BINARY_EVENT_TEXT = 3  # ComfyUI's BinaryEventTypes.TEXT


class PromptFailed(Exception):
    """ComfyUI refused the prompt or a node failed; the text is what it said."""


@dataclass(frozen=True)
class Finished:
    """A prompt that ran to its end: its id, its entry in the history, and its seconds."""

    prompt_id: str
    history: Json
    seconds: float


async def run_prompt(
    origin: str,
    prompt: Json,
    *,
    workflow: Json | None = None,
    on_text: Callable[[str, str], None] = lambda node_id, text: None,
    timeout_s: float = 3900.0,
) -> Finished:
    """Queue `prompt` and wait for its end.

    workflow: the saved workflow it came from, for the metadata of the files it writes.
    on_text: called with a node's id and each progress text that it sends.
    Raises PromptFailed, or asyncio.TimeoutError after `timeout_s` seconds.
    """
    began = time.monotonic()
    client_id = uuid.uuid4().hex
    extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else {}
    body = {"prompt": prompt, "client_id": client_id, "extra_data": extra}
    async with (
        aiohttp.ClientSession(origin) as session,
        session.ws_connect("/ws", params={"clientId": client_id}, max_msg_size=0) as socket,
    ):
        async with session.post("/prompt", json=body) as answer:
            queued = await answer.json()
        if "prompt_id" not in queued:
            raise PromptFailed(refusal_text(queued))
        prompt_id = queued["prompt_id"]
        await asyncio.wait_for(follow(socket, prompt_id, on_text), timeout_s)
        async with session.get(f"/history/{prompt_id}") as answer:
            history = (await answer.json())[prompt_id]
    if history["status"]["status_str"] != "success":
        raise PromptFailed(failure_text(history))
    return Finished(prompt_id, history, time.monotonic() - began)


async def follow(
    socket: aiohttp.ClientWebSocketResponse, prompt_id: str, on_text: Callable[[str, str], None]
) -> None:
    """Read events until the prompt has ended, well or not."""
    ended = {"node": None, "prompt_id": prompt_id}
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            text = progress_text(message.data)
            if text:
                on_text(*text)
        elif message.type is aiohttp.WSMsgType.TEXT:
            event = message.json()
            # Sent after the history entry is written, whatever the outcome.
            if event["type"] == "executing" and event["data"] == ended:
                return
    raise PromptFailed("ComfyUI closed the connection before the prompt had ended.")


def progress_text(frame: bytes) -> tuple[str, str] | None:
    """Node id and text of a progress text frame; None for other frames (previews)."""
    (event_type,) = struct.unpack_from(">I", frame)
    if event_type != BINARY_EVENT_TEXT:
        return None
    (id_length,) = struct.unpack_from(">I", frame, 4)
    node_id = frame[8 : 8 + id_length].decode()
    return node_id, frame[8 + id_length :].decode(errors="replace")


def refusal_text(answer: Json) -> str:
    """Why `POST /prompt` was refused, in ComfyUI's words."""
    lines = [(answer.get("error") or {}).get("message", "ComfyUI refused the prompt")]
    for node_id, node in (answer.get("node_errors") or {}).items():
        for error in node["errors"]:
            lines.append(f"node {node_id}: {error['message']} {error['details']}".strip())
    return "\n".join(lines)


def failure_text(history: Json) -> str:
    """The failing node's message, from the prompt's history entry."""
    for name, data in history["status"]["messages"]:
        if name == "execution_error":
            said = data["exception_message"].strip()
            return f"{data['node_type']} (node {data['node_id']}): {said}"
        if name == "execution_interrupted":
            return f"Stopped at {data['node_type']} (node {data['node_id']})."
    return "The prompt failed, and ComfyUI gave no reason."
