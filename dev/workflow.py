"""A workflow as the web interface saves it, made into the prompt that `POST /prompt` takes.

The web interface does this in the browser; this is the part of it that our example workflows need.
What it does not understand (subgraphs, reroutes, dynamic inputs, a bypassed node in the middle) it
refuses by name rather than sending a guess.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CHANGING_COMBO = "COMFY_DYNAMICCOMBO_V3"
NOTES = {"Note", "MarkdownNote"}
MODE_MUTED, MODE_BYPASSED = 2, 4


class WorkflowError(ValueError):
    """The workflow holds something that cannot be turned into a prompt."""


def to_prompt(workflow: Json, object_info: Json) -> Json:
    """The API prompt `{node id: {class_type, inputs}}` of a saved workflow.

    object_info: the server's own answer to `GET /object_info`.
    Raises WorkflowError for what is unknown to the server or not understood here.
    """
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] not in NOTES}
    links = {link[0]: link for link in workflow["links"]}
    prompt: Json = {}
    for node_id, node in nodes.items():
        if node["mode"] in (MODE_MUTED, MODE_BYPASSED):
            continue
        if node["type"] not in object_info:
            raise WorkflowError(f"node {node_id} is a {node['type']}, which this server lacks")
        inputs = widget_inputs(node, object_info[node["type"]])
        for slot in node.get("inputs", []):
            if slot.get("link") is None:
                continue
            _, source_id, source_slot, *_ = links[slot["link"]]
            source_mode = nodes[source_id]["mode"]
            if source_mode == MODE_BYPASSED:
                raise WorkflowError(f"node {node_id} is fed by node {source_id}, a bypassed one")
            if source_mode == MODE_MUTED:
                inputs.pop(slot["name"], None)
            else:
                inputs[slot["name"]] = [str(source_id), source_slot]
        prompt[str(node_id)] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_inputs(node: Json, info: Json) -> Json:
    """Widget values by input name, from the list that a saved node keeps by position."""
    names = widget_slots(node["type"], info)
    values = list(node.get("widgets_values") or [])
    # The upload button is a widget too, and not every frontend version saves a value for it.
    without_button = [name for name in names if name != UPLOAD_BUTTON]
    if len(values) == len(without_button):
        names = without_button
    if len(values) != len(names):
        raise WorkflowError(
            f"node {node['id']} ({node['type']}) has {len(values)} widget values, "
            f"and the server's node has {len(names)} widgets"
        )
    pairs = zip(names, values, strict=True)
    inputs = {name: value for name, value in pairs if name not in (None, UPLOAD_BUTTON)}
    refuse_inner_widgets(node["type"], info, inputs)
    return inputs


def refuse_inner_widgets(node_type: str, info: Json, inputs: Json) -> None:
    """A combo with inputs of its own for each choice is understood while the choice has none."""
    for name, (kind, *rest) in (info["input"].get("required") or {}).items():
        options = rest[0].get("options", []) if rest and kind == CHANGING_COMBO else []
        plain = [one["key"] for one in options if not any(one["inputs"].values())]
        if kind == CHANGING_COMBO and inputs.get(name) not in plain:
            raise WorkflowError(f"{node_type}.{name} is a dynamic input with more inputs inside")


UPLOAD_BUTTON = "upload"


def widget_slots(node_type: str, info: Json) -> list[str | None]:
    """Input names in the order of their widgets; None stands for a widget that is no input."""
    slots: list[str | None] = []
    has_upload = False
    for group in ("required", "optional"):
        specs = info["input"].get(group, {})
        for name in info["input_order"].get(group, []):
            kind, options = specs[name][0], (specs[name][1:] or [{}])[0]
            if isinstance(kind, str) and kind.startswith("COMFY_") and kind != CHANGING_COMBO:
                raise WorkflowError(f"{node_type}.{name} is a dynamic input ({kind})")
            is_widget = isinstance(kind, list) or kind in {*WIDGET_TYPES, CHANGING_COMBO}
            if not is_widget or options.get("forceInput"):
                continue
            slots.append(name)
            if options.get("control_after_generate"):
                slots.append(None)
            has_upload |= any(key.endswith("_upload") and options[key] for key in options)
    return [*slots, UPLOAD_BUTTON] if has_upload else slots
