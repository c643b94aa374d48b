"""Texts by language: English is the schema's own, and no other language lacks one of them."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("en", "es", "zh")


def texts(language):
    path = ROOT / "locales" / language / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8"))


def schema_texts(engine):
    """What the node classes say, in the form of ``nodeDefs.json``."""
    found = {}
    for name, node in engine.nodes.NODE_CLASS_MAPPINGS.items():
        if not name.startswith("RunComfy"):
            continue
        schema = node.GET_SCHEMA()
        outputs = enumerate(schema.outputs)
        found[name] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {i.id: {"name": i.id, "tooltip": i.tooltip} for i in schema.inputs},
            "outputs": {
                str(n): {"name": o.id or o.display_name, "tooltip": o.tooltip} for n, o in outputs
            },
        }
    return found


def keys(value, at=""):
    if not isinstance(value, dict):
        assert value.strip(), f"{at} is empty"
        return {at}
    return {key for name, inner in value.items() for key in keys(inner, f"{at}/{name}")}


def test_english_is_the_schemas_own(engine):
    assert texts("en") == schema_texts(engine)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_text(language):
    assert keys(texts(language)) == keys(texts("en"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_that_explains_every_input_and_output(language):
    for node, spec in texts(language).items():
        place = f"{node}.md" if language == "en" else f"{node}/{language}.md"
        page = (ROOT / "web" / "docs" / place).read_text(encoding="utf-8")
        for one in [*spec["inputs"].values(), *spec["outputs"].values()]:
            assert f"**{one['name']}**" in page, f"{place} does not explain {one['name']}"
