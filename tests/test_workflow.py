"""Saved workflows become prompts, and what is not understood is refused by name."""

from typing import Any

import pytest
from pack.dev.workflow import WorkflowError, to_prompt

INFO: dict[str, Any] = {
    "Load": {
        "input": {"required": {"image": [["a.png"], {"image_upload": True}]}},
        "input_order": {"required": ["image"]},
    },
    "Take": {
        "input": {
            "required": {
                "text": ["STRING", {"multiline": True}],
                "seed": ["INT", {"control_after_generate": "fixed"}],
                "wired_text": ["STRING", {"forceInput": True}],
            },
            "optional": {"image": ["IMAGE"], "size": ["COMBO", {"options": ["s", "m"]}]},
        },
        "input_order": {"required": ["text", "seed", "wired_text"], "optional": ["image", "size"]},
    },
    "Grow": {
        "input": {"required": {"images": ["COMFY_AUTOGROW_V3", {}]}},
        "input_order": {"required": ["images"]},
    },
    "Change": {
        "input": {
            "required": {"text": ["STRING", {}]},
            "optional": {
                "shots": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "off", "inputs": {}},
                            {"key": "one", "inputs": {"required": {"a": ["STRING"], "b": ["INT"]}}},
                        ]
                    },
                ]
            },
        },
        "input_order": {"required": ["text"], "optional": ["shots"]},
    },
    "Slot": {
        "input": {"required": {"x": ["COMFY_DYNAMICSLOT_V3", {}]}},
        "input_order": {"required": ["x"]},
    },
}


def node(
    node_id: int, kind: str, values: list[Any], mode: int = 0, **links: int | None
) -> dict[str, Any]:
    """A saved node; links by input name."""
    inputs = [{"name": name, "link": link} for name, link in links.items()]
    return {"id": node_id, "type": kind, "mode": mode, "inputs": inputs, "widgets_values": values}


def convert(*nodes: dict[str, Any]) -> dict[str, Any]:
    """The prompt of these nodes, with link 7 from node 1's first output."""
    return to_prompt({"nodes": list(nodes), "links": [[7, 1, 0, 2, 0, "IMAGE"]]}, INFO)


def test_widgets_are_named_by_position_and_links_override() -> None:
    prompt = convert(
        node(1, "Load", ["a.png", "image"]),
        node(2, "Take", ["hello", 3, "fixed", "m"], image=7),
    )
    assert prompt == {
        "1": {"class_type": "Load", "inputs": {"image": "a.png"}},
        "2": {
            "class_type": "Take",
            "inputs": {"text": "hello", "seed": 3, "size": "m", "image": ["1", 0]},
        },
    }


def test_upload_button_may_have_no_value() -> None:
    assert convert(node(1, "Load", ["a.png"]))["1"]["inputs"] == {"image": "a.png"}


def test_notes_are_left_out() -> None:
    assert list(convert(node(1, "Load", ["a.png"]), node(3, "MarkdownNote", ["hi"]))) == ["1"]


def test_sockets_that_grow_keep_their_full_names() -> None:
    prompt = convert(
        node(1, "Load", ["a.png"]), node(2, "Grow", [], **{"images.a0": 7, "images.a1": None})
    )
    assert prompt["2"]["inputs"] == {"images.a0": ["1", 0]}


@pytest.mark.parametrize(
    ("values", "inputs"),
    [
        (["x"], {"text": "x"}),
        (["x", "off"], {"text": "x", "shots": "off"}),
        (["x", "one", "p", 5], {"text": "x", "shots": "one", "shots.a": "p", "shots.b": 5}),
    ],
    ids=["saved before it was there", "off", "on"],
)
def test_a_dynamic_combo_adds_what_its_choice_has(values: list[Any], inputs: Any) -> None:
    prompt = convert(node(1, "Load", ["a.png"]), node(2, "Change", values))
    assert prompt["2"]["inputs"] == inputs


def test_muted_node_and_its_links_are_left_out() -> None:
    prompt = convert(
        node(1, "Load", ["a.png"], mode=2), node(2, "Take", ["x", 3, "fixed", "m"], image=7)
    )
    assert list(prompt) == ["2"]
    assert "image" not in prompt["2"]["inputs"]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node(1, "Load", ["a", "image"], mode=4), node(2, "Take", [1, 2, 3, 4], image=7)], "byp"),
        ([node(2, "Take", ["x", 3, "m"])], "3 widget values"),
        ([node(2, "Unheard", [])], "Unheard"),
        ([node(2, "Slot", ["off"])], "dynamic"),
        ([node(2, "Change", ["x", "two"])], "none of a dynamic combo's choices"),
        ([node(2, "Change", ["x", "one", "a"])], "3 widget values"),
    ],
)
def test_what_is_not_understood_is_refused(nodes: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        convert(*nodes)
