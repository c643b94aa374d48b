"""Texts by language: English is the schema's own, and no other language lacks one of them."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = ("en", "es", "zh")


def texts(language):
    path = ROOT / "locales" / language / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8"))


def inputs_of(schema):
    """Every input by the key that the page looks up: a dynamic input's parts have its id before.

    Seen in the page of 1.47: Autogrow's slots keep their English name and a DynamicCombo's widgets
    their English tooltip whatever the locale says; the rest is looked up.
    """
    found = {}
    for one in schema.inputs:
        for part in one.get_all():
            found[one.id if part is one else f"{one.id}_{part.id}"] = part
    return found


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
            "inputs": {
                key: {"name": one.id, "tooltip": one.tooltip}
                for key, one in inputs_of(schema).items()
            },
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


def leaves(value):
    if isinstance(value, str):
        return [value]
    return [text for inner in value.values() for text in leaves(inner)]


def test_english_is_the_schemas_own(engine):
    assert texts("en") == schema_texts(engine)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_text(language):
    assert keys(texts(language)) == keys(texts("en"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_holds_what_the_page_takes_for_its_own_syntax(language):
    """One stray at sign in a description, and ComfyUI's page of 1.41 does not open at all."""
    assert [text for text in leaves(texts(language)) if set(text) & set("@{}|%")] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_that_explains_every_input_and_output(engine, language):
    for node, spec in texts(language).items():
        place = f"{node}.md" if language == "en" else f"{node}/{language}.md"
        page = (ROOT / "web" / "docs" / place).read_text(encoding="utf-8")
        own = {one.id for one in engine.nodes.NODE_CLASS_MAPPINGS[node].GET_SCHEMA().inputs}
        inputs = [one for key, one in spec["inputs"].items() if key in own]
        for one in [*inputs, *spec["outputs"].values()]:
            assert f"**{one['name']}**" in page, f"{place} does not explain {one['name']}"
