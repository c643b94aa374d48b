"""The pack loads as ComfyUI does it, from a folder with a hyphen in its name, and lightly."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# ComfyUI's own loader does this, with a module name that is the folder's path.
PROBE = """
import importlib.util, json, sys, types

events = []
before = set(sys.modules)
folder = sys.argv[1]

class ComfyExtension:
    pass

latest = types.ModuleType("comfy_api.latest")
latest.ComfyExtension = ComfyExtension
latest.io = types.SimpleNamespace(ComfyNode=object)
sys.modules["comfy_api"] = types.ModuleType("comfy_api")
sys.modules["comfy_api.latest"] = latest

def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.mkdir"):
        events.append(f"{event} {args}")
    if event == "open" and isinstance(args[0], str):
        code = args[0].endswith((".py", ".pyc")) or ".pyc." in args[0]
        if not code or any(letter in str(args[1]) for letter in "wax") and ".pyc." not in args[0]:
            events.append(f"open {args[0]}")

name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, folder + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
sys.addaudithook(watch)
spec.loader.exec_module(module)
done = list(events)
print(json.dumps({
    "events": done,
    "modules": sorted(set(sys.modules) - before),
    "names": sorted(n for n in vars(module) if not n.startswith("__")),
    "web": getattr(module, "WEB_DIRECTORY", None),
}))
"""

HEAVY = {
    "PIL",
    "aiohttp",
    "av",
    "numpy",
    "pydantic",
    "requests",
    "sqlalchemy",
    "sqlite3",
    "torch",
    "urllib3",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened in a fresh Python that loaded the pack, with only a stub of comfy_api."""
    folder = tmp_path_factory.mktemp("custom_nodes") / "runcomfy-kling"
    folder.symlink_to(ROOT, target_is_directory=True)
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert probe.returncode == 0, probe.stderr
    result: dict[str, Any] = json.loads(probe.stdout)
    return result


def test_importing_the_pack_does_nothing(loaded: dict[str, Any]) -> None:
    """No network, no file read or written, no process."""
    assert loaded["events"] == []


def test_importing_the_pack_is_light(loaded: dict[str, Any]) -> None:
    assert {name.partition(".")[0] for name in loaded["modules"]} & HEAVY == set()


def test_only_the_v3_entry_point_is_exported(loaded: dict[str, Any]) -> None:
    """Beside NODE_CLASS_MAPPINGS ComfyUI would never call comfy_entrypoint."""
    assert "comfy_entrypoint" in loaded["names"]
    assert "NODE_CLASS_MAPPINGS" not in loaded["names"]


def test_web_directory_exists(loaded: dict[str, Any]) -> None:
    assert (ROOT / loaded["web"]).is_dir()


def test_comfyui_loads_the_nodes(engine: Any) -> None:
    assert "-" in engine.pack_folder.name
    node = engine.nodes.NODE_CLASS_MAPPINGS["RunComfyKlingImageToVideo"]
    assert node.RELATIVE_PYTHON_MODULE == "custom_nodes.runcomfy-kling"


def test_example_workflow_fits_the_node(engine: Any) -> None:
    """Every saved widget value has its widget, in the order in which ComfyUI builds them."""
    to_prompt = importlib.import_module("pack.dev.workflow").to_prompt
    name = "RunComfyKlingImageToVideo"
    info = {name: engine.nodes.NODE_CLASS_MAPPINGS[name].GET_NODE_INFO_V1()}
    workflow = json.loads((ROOT / "example_workflows" / "image_to_video.json").read_text())
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] == name]
    workflow["nodes"][0]["inputs"] = []  # Load Image is ComfyUI's own, and left out here
    inputs = to_prompt(workflow, info)["2"]["inputs"]
    assert list(inputs) == [
        "prompt",
        "duration",
        "generate_audio",
        "negative_prompt",
        "cfg_scale",
        "model",
        "seed",
        "start_image_url",
        "filename_prefix",
    ]
    assert (inputs["duration"], inputs["model"], inputs["seed"]) == (5, "kling-3.0/standard", 0)
