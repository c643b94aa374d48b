"""Imports point down only, so that what is below can be read and tested without what is above."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NODES = ROOT / "nodes"

# From the bottom up. A module may import from lower rows; from its own row only where ALLOWED.
LAYERS = [
    {"core.errors", "core.states", "core.owner", "core.backoff", "core.places", "rehearsal"},
    {"core.upload_settings"},
    {"core.settings", "core.answers", "core.submit_body"},
    {"core.kling", "core.transport"},
    {"core.identity", "core.ledger_schema", "core.plain_http"},
    {"core.rows", "core.budget"},
    {"core.client", "core.download", "core.uploaders", "core.media", "core.ledger"},
    {"core.prices", "core.elements", "core.uploads"},
    {"core.job", "core.upload_images"},
    {"core.collect", "core.draft", "core.live", "core.slots", "core.stop"},
    {"core.again", "core.send"},
    {"core.jobs"},
    {"comfy_bridge"},
    {"waiting", "uploading", "kling_inputs", "kling_outputs", "video_input"},
    {
        "kling_element",
        "kling_image_to_video",
        "kling_submit",
        "kling_collect",
        "upload_image",
        "video_frames",
        "routes",
    },
    {"extension"},
]
ALLOWED_BESIDE: set[tuple[str, str]] = set()
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}

# What is heavy or talks to the world, and the only units that may import it.
OWNERS = {
    "psutil": {"core.owner", "core.media"},
    "sqlalchemy": {"core.budget", "core.ledger", "core.ledger_schema", "core.uploads"},
    "obstore": {"core.uploaders"},
    "torch": {"core.media"},
    "numpy": {"core.media", "rehearsal"},
    "PIL": {"core.media", "rehearsal"},
    "av": {"core.media", "rehearsal"},
    "requests": {"core.transport", "core.plain_http", "rehearsal"},
    "comfy": {"comfy_bridge"},
    "comfy_execution": {"comfy_bridge"},
    "execution": {"comfy_bridge"},
    "folder_paths": {"comfy_bridge"},
    "server": {"comfy_bridge"},
}

FILES = sorted(path for path in NODES.rglob("*.py") if path.parent != NODES or path.stem[0] != "_")


def unit_of(module: tuple[str, ...]) -> str:
    """The unit that layers are made of: a package such as core.media counts as one."""
    if module[:1] == ("rehearsal",):
        return "rehearsal"
    return ".".join(module[:2] if module[:1] == ("core",) else module[:1])


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Units of ours that a file imports, and top-level names of everything else."""
    ours: set[str] = set()
    others: set[str] = set()
    package = path.relative_to(NODES).parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    type_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            assert node.level - 1 <= len(package), f"{path} imports from outside nodes/"
            base = above + tuple(node.module.split(".") if node.module else ())
            for alias in node.names:
                named = (*base, alias.name)
                is_module = (NODES.joinpath(*named)).with_suffix(".py").is_file() or (
                    NODES.joinpath(*named).is_dir()
                )
                ours.add(unit_of(named if is_module else base))
        elif id(node) in type_only:
            continue
        elif isinstance(node, ast.ImportFrom):
            others.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.partition(".")[0] for alias in node.names}
    return ours, others


def unit_of_file(path: Path) -> str:
    """The unit a file belongs to."""
    module = path.relative_to(NODES).with_suffix("").parts
    return unit_of(module[:-1] if module[-1] == "__init__" else module)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(NODES)))
def test_imports_point_down(path: Path) -> None:
    unit = unit_of_file(path)
    if unit == "core":
        assert imports(path)[0] == set(), "core/__init__.py is a docstring only"
        return
    assert unit in RANK, f"{unit} has no layer yet: give it one in LAYERS"
    for target in imports(path)[0] - {unit}:
        below = RANK[target] < RANK[unit]
        assert below or (unit, target) in ALLOWED_BESIDE, f"{unit} must not import {target}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(NODES)))
def test_heavy_and_outside_modules_have_owners(path: Path) -> None:
    unit = unit_of_file(path)
    for name in imports(path)[1] & set(OWNERS):
        assert unit in OWNERS[name], f"only {OWNERS[name]} may import {name}, {unit} does too"


def test_the_rehearsal_knows_nothing_of_the_client() -> None:
    """It reads the API page by itself: a wrong belief of the client must show as a refusal."""
    for path in FILES:
        if unit_of_file(path) == "rehearsal":
            assert imports(path)[0] <= {"rehearsal"}


def test_core_knows_nothing_above_itself() -> None:
    for path in (NODES / "core").rglob("*.py"):
        assert all(unit.startswith("core") for unit in imports(path)[0]), path
