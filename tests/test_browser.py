"""The real frontend in a real browser, on the real server: what a user sees."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NODE = "RunComfyKlingImageToVideo"
WORKFLOWS = {
    path.stem: json.loads(path.read_text("utf-8"))
    for path in sorted((ROOT / "example_workflows").glob("*.json"))
}
WORKFLOW = WORKFLOWS["image_to_video"]
SAVED = next(node for node in WORKFLOW["nodes"] if node["type"] == NODE)["widgets_values"]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FIND_NODE = f"window.app.graph._nodes.find(n => n.type === '{NODE}')"
# what this engine's set-up does not install, and what a new user does not have yet
KNOWN_404 = ("user.css", "templates", "userdata", "/docs/", "mask")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, headless."""
    sync_api = importlib.import_module("playwright.sync_api")
    program = importlib.import_module("pack.dev.setup").browser()
    assert program, "no Chromium: run `make test`, which installs it"
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


class Page:
    """ComfyUI's page, opened and ready, and what went wrong on it."""

    def __init__(self, browser: Any, origin: str) -> None:
        self.page = browser.new_page(viewport={"width": 1600, "height": 1100})
        self.failed: list[str] = []
        self.page.on("pageerror", lambda error: self.failed.append(str(error)))
        self.page.on("response", self._note)
        self.page.goto(origin)
        # the page's own first graph comes late, and would replace one that was opened before
        started = "window.app?.extensionManager?.workflow?.activeWorkflow"
        self.page.wait_for_function(f"!!{started}", timeout=60_000)

    def _note(self, response: Any) -> None:
        if response.status >= 400 and not any(known in response.url for known in KNOWN_404):
            self.failed.append(f"{response.status} {response.url}")

    def ask(self, script: str, argument: Any = None) -> Any:
        """Evaluate JavaScript in the page."""
        return self.page.evaluate(script, argument)

    def open(self, workflow: Any) -> None:
        """Load a workflow as dropping its file does."""
        self.ask("workflow => window.app.loadGraphData(workflow)", workflow)
        self.page.wait_for_function(
            "count => window.app.graph._nodes.length === count", arg=len(workflow["nodes"])
        )

    def choose(self, shots: str) -> None:
        """Choose a number of shots as both ways to draw nodes do: value, then callback."""
        self.ask(
            f"choice => {{ const shots = {FIND_NODE}.widgets.find(w => w.name === 'shots');"
            " shots.value = choice; shots.callback?.(choice) }",
            shots,
        )

    def type(self, name: str, value: Any) -> None:
        """Put a value into one of the node's widgets."""
        find = f"{FIND_NODE}.widgets.find(w => w.name === name)"
        self.ask(f"([name, value]) => {{ {find}.value = value }}", [name, value])

    def save(self) -> Any:
        """The workflow as its file would be."""
        return self.ask("() => JSON.parse(JSON.stringify(window.app.graph.serialize()))")

    def inputs(self) -> dict[str, dict[str, Any]]:
        """Node id -> the inputs that Run would send."""
        nodes = self.ask("async () => (await window.app.graphToPrompt()).output")
        return {key: node["inputs"] for key, node in nodes.items()}

    def widgets(self) -> dict[str, Any]:
        """The node's widget values by name, in order."""
        pairs = self.ask(f"{FIND_NODE}.widgets.map(w => [w.name, w.value])")
        after_seed = 1 + [name for name, _ in pairs].index("seed")
        pairs[after_seed][0] = "control"  # its name differs between frontend versions
        return dict(pairs)


@pytest.fixture(params=[False, True], ids=["canvas nodes", "Vue nodes"])
def page(request: Any, browser: Any, comfyui_server: Any) -> Iterator[Page]:
    """The page in each of the frontend's two ways to draw nodes."""
    from PIL import Image

    with Image.open(ROOT / "example_workflows" / "image_to_video.jpg") as picture:
        picture.save(comfyui_server.base / "input" / "example.png")
    opened = Page(browser, comfyui_server.server.origin)
    opened.ask(
        "on => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)",
        request.param,
    )
    yield opened
    opened.page.close()


def test_the_examples_open_with_every_value_and_link_in_its_place(
    page: Page, comfyui_server: Any
) -> None:
    to_prompt = importlib.import_module("pack.dev.workflow").to_prompt
    known = comfyui_server.server.get_json("/object_info")
    for name, workflow in WORKFLOWS.items():
        page.open(workflow)
        prompt = to_prompt(workflow, known)
        inputs = page.inputs()
        assert inputs.keys() == prompt.keys(), name
        for key, node in prompt.items():  # older frontends send what a preview shows, too
            assert inputs[key].items() >= node["inputs"].items(), name
    assert page.failed == []


def test_a_workflow_saved_before_the_newer_inputs_opens_with_their_defaults(page: Page) -> None:
    older = json.loads(json.dumps(WORKFLOW))
    node = next(node for node in older["nodes"] if node["type"] == NODE)
    node["widgets_values"] = node["widgets_values"][:8]
    newer = ("start_image_url", "filename_prefix", "end_image")
    node["inputs"] = [slot for slot in node["inputs"] if slot["name"] not in newer]
    page.open(older)
    assert list(page.widgets().values()) == [*SAVED[:8], "", "video/runcomfy-kling", "off"]
    assert page.ask(f"{FIND_NODE}.inputs.find(i => i.name === 'start_image').link") is not None


@pytest.mark.parametrize("name", ["image_to_video", "batch_of_stills"])
def test_a_workflow_saved_before_shots_opens_with_every_value_in_its_place(
    page: Page, name: str
) -> None:
    (node,) = [node for node in WORKFLOWS[name]["nodes"] if node["type"] == NODE]
    assert "shots" not in [slot["name"] for slot in node["inputs"]]
    page.open(WORKFLOWS[name])
    widgets = page.widgets()
    assert list(widgets.values()) == [*node["widgets_values"], "off"]
    assert list(widgets)[-1] == "shots"
    page.open(page.save())
    assert page.widgets() == widgets


def four_texts() -> list[Any]:
    """What the four shots hold: prompt, length, prompt, length…"""
    return [part for n in range(1, 5) for part in (f"text {n}", n + 2)]


def four_shots() -> Any:
    """The storyboard, saved with four shots."""
    workflow = json.loads(json.dumps(WORKFLOWS["storyboard"]))
    node = next(node for node in workflow["nodes"] if node["type"] == NODE)
    node["widgets_values"] = [*node["widgets_values"][:10], "4 shots", *four_texts()]
    node["size"][1] = 1333
    return workflow


def test_four_shots_stay_in_their_places_through_two_and_back(page: Page) -> None:
    page.open(four_shots())
    four = page.widgets()
    assert list(four.values())[10:] == ["4 shots", *four_texts()]
    sent = page.inputs()

    page.choose("2 shots")
    two = page.widgets()
    assert list(two.items())[:10] == list(four.items())[:10]
    assert list(two.values())[10:] == ["2 shots", *four_texts()[:4]]

    page.choose("4 shots")
    assert page.widgets() == four
    assert list(page.widgets()) == list(four)
    assert page.inputs() == sent

    page.open(page.save())
    assert page.widgets() == four
    assert page.inputs() == sent
    assert page.failed == []


def test_what_was_typed_last_comes_back_when_the_number_of_shots_changes(page: Page) -> None:
    page.open(four_shots())
    page.choose("2 shots")
    page.type("shots.shot_1_prompt", "typed later")
    page.choose("off")
    page.choose("3 shots")
    assert list(page.widgets().values())[11::2] == ["typed later", "text 2", "text 3"]


def test_a_workflow_saved_with_fewer_shots_than_before_opens_with_those(page: Page) -> None:
    page.open(four_shots())
    page.choose("2 shots")
    saved = page.save()
    (node,) = [node for node in saved["nodes"] if node["type"] == NODE]
    assert node["widgets_values"][10:] == ["2 shots", *four_texts()[:4]]
    page.open(WORKFLOW)
    page.open(saved)
    assert list(page.widgets().values())[10:] == ["2 shots", *four_texts()[:4]]


def test_a_node_with_shots_opens_at_the_height_it_was_saved_with(page: Page) -> None:
    page.open(four_shots())
    assert page.ask(f"{FIND_NODE}.size[1]") == 1333


def test_a_new_node_starts_with_seed_on_fixed(page: Page) -> None:
    page.ask(
        "type => { window.app.graph.clear();"
        " window.app.graph.add(window.LiteGraph.createNode(type)) }",
        NODE,
    )
    widgets = page.widgets()
    assert (widgets["seed"], widgets["control"]) == (0, "fixed")
    assert (widgets["duration"], widgets["generate_audio"]) == (10, True)


def test_the_example_runs_and_shows_its_clip(page: Page, comfyui_server: Any) -> None:
    before = len(comfyui_server.rehearsal.submissions)
    page.open(WORKFLOW)
    new_take = f"seed => {{ {FIND_NODE}.widgets.find(w => w.name === 'seed').value = seed }}"
    page.ask(new_take, before + 1)
    page.ask("() => window.app.queuePrompt(0)")
    page.page.wait_for_selector("video", state="attached", timeout=60_000)
    video = page.page.locator("video").first
    page.page.wait_for_function("document.querySelector('video').duration > 0", timeout=30_000)
    assert video.evaluate("v => v.duration") == pytest.approx(5, abs=0.2)
    assert "runcomfy-kling_" in video.evaluate("v => v.currentSrc || v.src")
    assert len(comfyui_server.rehearsal.submissions) == before + 1
    assert page.failed == []


def test_dropping_the_clip_on_the_page_brings_the_graph_back(
    page: Page, comfyui_server: Any
) -> None:
    clip = sorted((comfyui_server.base / "output" / "video").glob("*.mp4"))[-1]
    page.ask("() => window.app.graph.clear()")
    page.ask(
        "async name => { const reply = await fetch('/view?subfolder=video&filename=' + name);"
        " const file = new File([await reply.blob()], name, {type: 'video/mp4'});"
        " await window.app.handleFile(file) }",
        clip.name,
    )
    page.page.wait_for_function(FIND_NODE, timeout=30_000)
    assert page.widgets()["prompt"] == SAVED[0]
