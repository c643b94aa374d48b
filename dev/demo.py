"""`make demo`: one picture through the real ComfyUI and this pack to a clip on disk.

Rehearsed, so free and offline, unless LIVE=1: then the same workflow runs against RunComfy, and
what it will cost is said first. Ends with the clip's path, seconds, size and resolution, after
every frame of it was decoded; exit code 1 and the reason when anything fails.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import av
from comfyui import NODE, ComfyUI, ServerFailed
from ending import end_in_order
from PIL import Image
from prompt import PromptFailed, run_prompt
from setup import ROOT, engine_dir
from workflow import to_prompt

BASE = ROOT / ".demo"
WORKFLOW = ROOT / "example_workflows" / "image_to_video.json"
PICTURE = WORKFLOW.with_suffix(".jpg")
YES = ("1", "true", "yes", "on")
NO = ("", "0", "false", "no", "off")


class DemoFailed(Exception):
    """The demo cannot go on; the text says why."""


def main() -> int:
    """Run the demo; the exit code."""
    began = time.monotonic()
    end_in_order()
    try:
        live = is_live()
        environment = child_environment(live)
        save_picture()
        with ComfyUI(engine_dir(), BASE, environment=environment) as server:
            say(began, f"ComfyUI with this pack is up at {server.origin}")
            clip = generate(server, began, live)
        say(began, "Playing the clip back")
        report(clip, time.monotonic() - began)
    except (DemoFailed, ServerFailed, PromptFailed, asyncio.TimeoutError) as error:
        print(f"\nThe demo failed: {error or 'no end within its time limit'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return 0


def is_live() -> bool:
    """LIVE=1 asks for a real, paid run. Raises DemoFailed for a word that is no clear answer."""
    said = os.environ.get("LIVE", "")
    word = said.strip().lower()
    if word not in (*YES, *NO):
        raise DemoFailed(
            f"LIVE is {said!r}. Set it to 1 for a real, paid run, or leave it out to rehearse."
        )
    return word in YES


def child_environment(live: bool) -> dict[str, str]:
    """The server's environment. A rehearsal knows neither a token nor RunComfy's address."""
    settings = pack_module("nodes.core.settings")
    environment = dict(os.environ)
    if live:
        environment.pop("RUNCOMFY_REHEARSAL", None)
        if not any(environment.get(name) for name in settings.TOKEN_VARIABLES):
            raise DemoFailed(
                "LIVE=1 needs a RunComfy API token, from the profile page of your account, in "
                f"one of these environment variables: {', '.join(settings.TOKEN_VARIABLES)}."
            )
        return environment
    for name in (*settings.TOKEN_VARIABLES, "RUNCOMFY_API_BASE_URL"):
        environment.pop(name, None)
    return {**environment, "RUNCOMFY_REHEARSAL": "1"}


def pack_module(name: str) -> ModuleType:
    """A module of this pack, without running the pack's ComfyUI entry point."""
    pack = sys.modules.setdefault("pack", ModuleType("pack"))
    pack.__path__ = [str(ROOT)]
    return importlib.import_module(f"pack.{name}")


def save_picture() -> None:
    """The example picture, under the name that the workflow loads."""
    folder = BASE / "input"
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(PICTURE) as picture:
        picture.save(folder / "example.png")


def generate(server: ComfyUI, began: float, live: bool) -> Path:
    """Queue the example workflow, show its progress, and return the saved clip's path."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, server.get_json("/object_info"))
    node_id = next(key for key, node in prompt.items() if node["class_type"] == NODE)
    say(began, f"Queueing {WORKFLOW.relative_to(ROOT)}: {price_text(prompt[node_id], live)}")
    shown: set[str] = set()

    def show(_: str, text: str) -> None:
        if text not in shown:
            shown.add(text)
            say(began, text)

    run = asyncio.run(run_prompt(server.origin, prompt, workflow=workflow, on_text=show))
    saved = run.history["outputs"].get(node_id, {}).get("images")
    if not saved:
        raise DemoFailed(f"the node named no saved clip: {run.history['outputs']}")
    return BASE / saved[0]["type"] / saved[0]["subfolder"] / saved[0]["filename"]


def price_text(node: dict[str, Any], live: bool) -> str:
    """What this run costs."""
    kling = pack_module("nodes.core.kling")
    inputs = node["inputs"]
    request = kling.KlingRequest(
        inputs["prompt"],
        model=inputs["model"],
        duration_s=inputs["duration"],
        generate_audio=inputs["generate_audio"],
    )
    listed = f"${request.price_usd():.2f} for {request.duration_s} s by RunComfy's list price"
    return f"this will cost {listed}" if live else f"rehearsal, $0 (live: {listed})"


def report(clip: Path, run_s: float) -> None:
    """Print what was made, with every frame decoded. Raises DemoFailed if it does not play."""
    try:
        with av.open(str(clip)) as container:
            video = container.streams.video[0]
            frames = sum(1 for _ in container.decode(video))
            seconds = float((container.duration or 0) / av.time_base)
            size = f"{video.codec_context.width} x {video.codec_context.height}"
            codecs = " + ".join(stream.codec_context.name for stream in container.streams)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DemoFailed(f"{clip} does not play: {error}") from error
    if not frames:
        raise DemoFailed(f"{clip} holds no frames")
    print(f"\n  clip        {clip}")
    print(f"  seconds     {seconds:.2f} s of clip ({frames} frames), made in {run_s:.0f} s")
    print(f"  size        {clip.stat().st_size / 1e6:.2f} MB, {codecs}")
    print(f"  resolution  {size}")


def say(began: float, text: str) -> None:
    """A progress text with the seconds since the start; further lines stand below its first."""
    stamp = f"[{time.monotonic() - began:6.1f} s] "
    print(stamp + text.replace("\n", "\n" + " " * len(stamp)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
