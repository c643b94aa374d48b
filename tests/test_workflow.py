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
    "Choose": {
        "input": {
            "required": {
                "codec": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "auto", "inputs": {"required": {}, "optional": {}}},
                            {"key": "own", "inputs": {"required": {"crf": ["INT", {}]}}},
                        ]
                    },
                ]
            }
        },
        "input_order": {"required": ["codec"]},
    },
    "Grow": {
        "input": {"required": {"images": ["COMFY_AUTOGROW_V3", {}]}},
        "input_order": {"required": ["images"]},
    },
}


def node(node_id: int, kind: str, values: list[Any], mode: int = 0, **links: int) -> dict[str, Any]:
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


def test_a_combo_whose_choice_brings_no_more_inputs_is_a_widget() -> None:
    assert convert(node(1, "Choose", ["auto"]))["1"]["inputs"] == {"codec": "auto"}


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
        ([node(2, "Grow", [])], "dynamic"),
        ([node(2, "Choose", ["own"])], "dynamic"),
    ],
)
def test_what_is_not_understood_is_refused(nodes: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        convert(*nodes)
