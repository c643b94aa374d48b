"""What the registry, the manager and a reader of the repository rely on."""

import importlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FULL_VERSION = r"\d+\.\d+\.\d+"
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml; tomli comes with pytest where Python has no tomllib of its own."""
    try:
        toml = importlib.import_module("tomllib")
    except ModuleNotFoundError:
        toml = importlib.import_module("tomli")
    loaded: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return loaded


def test_version_bounds_are_full_versions(project: dict[str, Any]) -> None:
    """ComfyUI drops shorter ones with no more than a warning."""
    assert re.fullmatch(f">={FULL_VERSION}", project["tool"]["comfy"]["requires-comfyui"])
    frontend = [d for d in project["project"]["dependencies"] if "comfyui-frontend-package" in d]
    assert re.fullmatch(f"comfyui-frontend-package>={FULL_VERSION}", frontend[0])


def test_web_folder_is_named_once(project: dict[str, Any]) -> None:
    """[tool.comfy] web beside WEB_DIRECTORY would load every script twice."""
    assert "web" not in project["tool"]["comfy"]


def test_changelog_is_of_this_version(project: dict[str, Any]) -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == project["project"]["version"]


def test_requirements_agree_with_the_project(project: dict[str, Any]) -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line and line[0] != "#"] == project["project"]["dependencies"]


def test_license_is_mit() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_example_workflow_has_its_picture(workflow: Path) -> None:
    assert workflow.with_suffix(".jpg").is_file()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_start_with_a_fixed_seed(workflow: Path) -> None:
    """A seed that changes by itself would pay for each click on Run."""
    nodes = json.loads(workflow.read_text(encoding="utf-8"))["nodes"]
    paid = [node for node in nodes if node["type"].startswith("RunComfyKling")]
    assert paid
    for node in paid:
        assert not {"randomize", "increment", "decrement"} & set(map(str, node["widgets_values"]))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_load_only_the_picture_that_comes_with_comfyui(workflow: Path) -> None:
    nodes = json.loads(workflow.read_text(encoding="utf-8"))["nodes"]
    loaded = {node["widgets_values"][0] for node in nodes if node["type"] == "LoadImage"}
    assert loaded <= {"example.png"}


def tracked_files() -> list[Path]:
    """Files that git has or would have; all of them where this is no checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


def test_no_path_of_a_machine_is_in_the_repository() -> None:
    """Such as a home folder: somebody's machine, and nobody else's."""
    homes = re.compile(rb"(?<![\w.])/(?:home|root|Users|work)[/]")
    found = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.suffix not in {".jpg", ".png", ".mp4"} and homes.search(path.read_bytes())
    ]
    assert found == []
