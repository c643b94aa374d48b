"""The example workflow through a real ComfyUI server, over /prompt and the websocket."""

import asyncio
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import av
import pytest
from conftest import CANARY_TOKEN
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "example_workflows" / "image_to_video.json"
NODE = "RunComfyKlingImageToVideo"
HELP_PAGES = sorted((ROOT / "web").glob("docs/*/*.md"))
LOCALES = sorted(path.name for path in (ROOT / "locales").glob("*/nodeDefs.json"))


@dataclass(frozen=True)
class ExampleRun:
    """One run of the example workflow, and where its clip should be."""

    history: dict[str, Any]
    node_id: str
    texts: list[tuple[str, str]]
    submissions: int

    @property
    def shown(self) -> list[dict[str, str]]:
        """The files that the node shows on itself."""
        shown: list[dict[str, str]] = self.history["outputs"][self.node_id]["images"]
        return shown


@pytest.fixture(scope="module")
def run(comfyui_server: Any) -> ExampleRun:
    """The example workflow, run once for all tests here."""
    with Image.open(WORKFLOW.with_suffix(".jpg")) as picture:
        picture.save(comfyui_server.base / "input" / "example.png")
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    to_prompt = importlib.import_module("pack.dev.workflow").to_prompt
    run_prompt = importlib.import_module("pack.dev.prompt").run_prompt
    prompt = to_prompt(workflow, comfyui_server.server.get_json("/object_info"))
    texts: list[tuple[str, str]] = []
    before = len(comfyui_server.rehearsal.submissions)  # other modules share the server
    finished = asyncio.run(
        run_prompt(
            comfyui_server.server.origin,
            prompt,
            workflow=workflow,
            on_text=lambda node_id, text: texts.append((node_id, text)),
            timeout_s=120,
        )
    )
    node_id = next(key for key, node in prompt.items() if node["class_type"] == NODE)
    submissions = len(comfyui_server.rehearsal.submissions) - before
    return ExampleRun(finished.history, node_id, texts, submissions)


def clip_path(comfyui_server: Any, run: ExampleRun) -> Path:
    """The saved clip, found as the web interface finds it."""
    (shown,) = run.shown
    return Path(comfyui_server.base, shown["type"], shown["subfolder"], shown["filename"])


def test_clip_is_saved_where_the_contract_says(comfyui_server: Any, run: ExampleRun) -> None:
    path = clip_path(comfyui_server, run)
    relative = path.relative_to(comfyui_server.base).as_posix()
    assert re.fullmatch(r"output/video/runcomfy-kling_\d{5}_\.mp4", relative)
    assert path.is_file()
    assert not list(comfyui_server.base.rglob("*.part"))


def test_clip_plays(comfyui_server: Any, run: ExampleRun) -> None:
    """5 s as asked, in the picture's shape, with sound, every frame readable."""
    with av.open(str(clip_path(comfyui_server, run))) as clip:
        video = clip.streams.video[0]
        frames = list(clip.decode(video))
        assert (clip.duration or 0) / av.time_base == pytest.approx(5, abs=0.1)
        assert len(frames) == pytest.approx(5 * float(video.average_rate or 0), abs=2)
        assert frames[0].width / frames[0].height == pytest.approx(600 / 400, rel=0.01)
        assert clip.streams.audio


def test_clip_is_served_to_the_browser(comfyui_server: Any, run: ExampleRun) -> None:
    """The node's preview asks for it by these three names."""
    (shown,) = run.shown
    query = "&".join(f"{key}={shown[key]}" for key in ("filename", "subfolder", "type"))
    opened = comfyui_server.server.open(f"/view?{query}")
    with opened:
        assert opened.headers["Content-Type"] == "video/mp4"
        assert len(opened.read()) == clip_path(comfyui_server, run).stat().st_size


def test_progress_is_told_on_the_node(run: ExampleRun) -> None:
    assert {node_id for node_id, _ in run.texts} == {run.node_id}
    told = "\n".join(text for _, text in run.texts).lower()
    assert "queue" in told
    assert "rendering" in told
    assert "saved" in told


def test_one_run_is_one_paid_job(run: ExampleRun) -> None:
    assert run.submissions == 1


def test_every_call_carried_the_token(comfyui_server: Any, run: ExampleRun) -> None:
    """So that the canary below could have leaked."""
    assert run.submissions
    assert comfyui_server.rehearsal.token == CANARY_TOKEN


def test_token_is_in_no_log(comfyui_server: Any, run: ExampleRun) -> None:
    assert comfyui_server.server.read_log()
    assert CANARY_TOKEN not in comfyui_server.server.read_log()


@pytest.mark.parametrize("path", ["/history", "/object_info", "/settings", "/queue", "/api/i18n"])
def test_token_is_in_no_answer(comfyui_server: Any, run: ExampleRun, path: str) -> None:
    assert CANARY_TOKEN not in json.dumps(comfyui_server.server.get_json(path))


def test_token_is_in_no_progress_text(run: ExampleRun) -> None:
    assert CANARY_TOKEN not in str(run.texts)


def test_token_is_in_no_file(comfyui_server: Any, run: ExampleRun) -> None:
    """User folder, outputs and their metadata, log: all that ComfyUI keeps."""
    files = list(own_files(comfyui_server.base))
    assert clip_path(comfyui_server, run) in files
    assert [path for path in files if CANARY_TOKEN.encode() in path.read_bytes()] == []


def own_files(base: Path) -> Iterator[Path]:
    """All files of a base directory but the repository, which is linked in."""
    for path in base.rglob("*"):
        if path.is_file() and "custom_nodes" not in path.relative_to(base).parts:
            yield path


def test_a_widget_out_of_range_is_refused_before_it_costs(comfyui_server: Any) -> None:
    prompt_module = importlib.import_module("pack.dev.prompt")
    before = len(comfyui_server.rehearsal.submissions)
    inputs = {
        "prompt": "waves",
        "duration": 99,
        "generate_audio": True,
        "negative_prompt": "",
        "cfg_scale": 0.5,
        "model": "kling-3.0/standard",
        "seed": 0,
    }
    prompt = {"1": {"class_type": NODE, "inputs": inputs}}
    with pytest.raises(prompt_module.PromptFailed, match="15"):
        asyncio.run(prompt_module.run_prompt(comfyui_server.server.origin, prompt, timeout_s=30))
    assert len(comfyui_server.rehearsal.submissions) == before


def test_example_workflows_are_offered_as_templates(comfyui_server: Any) -> None:
    templates = comfyui_server.server.get_json("/workflow_templates")
    ours = {path.stem for path in WORKFLOW.parent.glob("*.json")}
    assert set(templates["runcomfy-kling"]) == ours


@pytest.mark.parametrize("page", HELP_PAGES, ids=lambda page: "/".join(page.parts[-2:]))
def test_help_pages_are_served(comfyui_server: Any, page: Path) -> None:
    path = page.relative_to(ROOT / "web").as_posix()
    with comfyui_server.server.open(f"/extensions/runcomfy-kling/{path}") as opened:
        assert opened.read() == page.read_bytes()


@pytest.mark.skipif(not LOCALES, reason="the pack has no locales")
def test_locales_are_served(comfyui_server: Any) -> None:
    texts = comfyui_server.server.get_json("/api/i18n")
    for path in (ROOT / "locales").glob("*/nodeDefs.json"):
        ours = json.loads(path.read_text(encoding="utf-8"))
        assert texts[path.parent.name]["nodeDefs"].items() >= ours.items()


def test_no_route_of_the_server_tells_the_settings_file(comfyui_server: Any) -> None:
    """The pack's folder below `user` is a system one, which ComfyUI keeps to itself."""
    secret = comfyui_server.base / "user" / "__runcomfy_kling" / "secret.txt"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("not for the browser")
    path = "__runcomfy_kling%2Fsecret.txt"
    for route in (f"/userdata/..%2F{path}", f"/user/{path}", f"/view?filename=..%2Fuser%2F{path}"):
        with pytest.raises(HTTPError):
            comfyui_server.server.open(route)
    secret.unlink()
