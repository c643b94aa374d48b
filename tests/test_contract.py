"""The frozen contract: ids, sockets and widgets that users' saved workflows hold.

A difference here breaks somebody's workflow. New widgets go last; everything else stays.
"""

import json
from pathlib import Path

FROZEN = json.loads((Path(__file__).parent / "contract.json").read_text(encoding="utf-8"))
KEPT = ("default", "min", "max", "step", "options", "multiline", "control_after_generate")


def contract_of(node):
    """What workflows depend on, of one node class."""
    schema = node.GET_SCHEMA()
    info = node.GET_NODE_INFO_V1()
    inputs = []
    for one in schema.inputs:
        kind = "optional" if one.optional else "required"
        io_type, options = info["input"][kind][one.id]
        kept = {key: options[key] for key in KEPT if options.get(key) not in (None, False)}
        inputs.append([one.id, io_type, kind, json.loads(json.dumps(kept))])
    return {
        "inputs": inputs,
        "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)],
        "output_is_list": list(info["output_is_list"]),
        "is_input_list": schema.is_input_list,
        "is_output_node": schema.is_output_node,
        "is_api_node": schema.is_api_node,
        "category": schema.category,
        "display_name": schema.display_name,
    }


def test_the_nodes_are_those_of_the_frozen_contract(engine):
    found = {
        name: contract_of(node)
        for name, node in engine.nodes.NODE_CLASS_MAPPINGS.items()
        if name.startswith("RunComfy")
    }
    assert found == FROZEN


def test_no_text_is_missing(engine):
    """Every input and output has a tooltip that an artist can read."""
    for name in FROZEN:
        schema = engine.nodes.NODE_CLASS_MAPPINGS[name].GET_SCHEMA()
        for one in [*schema.inputs, *schema.outputs]:
            assert one.tooltip and one.tooltip.endswith("."), f"{name}.{one.id}"


def test_prompts_are_not_dynamic(engine):
    """The frontend would pick {a|b} anew at each queue, and a re-queue would be paid again."""
    for name in FROZEN:
        for one in engine.nodes.NODE_CLASS_MAPPINGS[name].GET_SCHEMA().inputs:
            assert not getattr(one, "dynamic_prompts", None)
