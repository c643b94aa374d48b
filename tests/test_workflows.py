"""The example workflows as they are saved, run in the real engine, in this process."""

import base64
import importlib
import io
import json
import re
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "example_workflows"
KLING = "RunComfyKlingImageToVideo"
SUBMIT = "RunComfyKlingSubmit"
COLLECT = "RunComfyKlingCollect"


def saved(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def node_info(engine, name):
    """What ``GET /object_info`` says of a node, as far as a prompt needs it."""
    node = engine.nodes.NODE_CLASS_MAPPINGS[name]
    if hasattr(node, "GET_NODE_INFO_V1"):
        return node.GET_NODE_INFO_V1()
    inputs = node.INPUT_TYPES()
    return {"input": inputs, "input_order": {group: list(inputs[group]) for group in inputs}}


def prompt_of(engine, workflow):
    with Image.open(FOLDER / "image_to_video.jpg") as picture:
        picture.save(engine.input / "example.png")
    to_prompt = importlib.import_module("pack.dev.workflow").to_prompt
    known = engine.nodes.NODE_CLASS_MAPPINGS
    types = {node["type"] for node in workflow["nodes"]} & set(known)
    return to_prompt(workflow, {name: node_info(engine, name) for name in types})


def id_of(prompt, class_type):
    (found,) = [key for key, node in prompt.items() if node["class_type"] == class_type]
    return found


def price_in_note(workflow):
    (note,) = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    return re.findall(r"\$\d+\.\d\d\b", note["widgets_values"][0])[0]


def shown(outcome, node_id):
    return "\n".join(text for shown_on, text in outcome.texts if shown_on == node_id)


def test_batch_of_stills_makes_a_clip_of_each_picture(engine, api):
    workflow = saved("batch_of_stills")
    prompt = prompt_of(engine, workflow)
    kling = id_of(prompt, KLING)
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    videos, last_frames, paths, request_ids = outcome.outputs[kling]
    assert len(videos) == len(last_frames) == 3
    assert len({Path(path) for path in paths if Path(path).is_file()}) == 3
    assert {sent.request_id for sent in api.submissions} == set(request_ids)
    assert len(outcome.ui[kling]["images"]) == 3
    assert f"about {price_in_note(workflow)}" in shown(outcome, kling)


def test_submit_now_sends_its_job_and_collect_later_brings_the_clip(engine, api):
    workflow = saved("submit_now")
    prompt = prompt_of(engine, workflow)
    submit = id_of(prompt, SUBMIT)
    sent = engine.run(prompt)
    assert sent.succeeded, sent.error
    ((request_id,),) = sent.outputs[submit]
    assert [one.request_id for one in api.submissions] == [request_id]
    assert sent.ui[id_of(prompt, "PreviewAny")]["text"] == [request_id]
    assert f"about {price_in_note(workflow)}" in shown(sent, submit)

    prompt = prompt_of(engine, saved("collect_later"))
    collect = id_of(prompt, COLLECT)
    prompt[collect]["inputs"]["request_id"] = request_id
    collected = engine.run(prompt)
    assert collected.succeeded, collected.error
    (path,) = collected.outputs[collect][2]
    assert Path(path).is_file()
    assert len(api.submissions) == 1


def test_collect_later_asks_for_its_id(engine, api):
    outcome = engine.run(prompt_of(engine, saved("collect_later")))
    assert "request_id is empty" in outcome.error
    assert api.requests == []


def test_storyboard_sends_its_three_shots(engine, api):
    workflow = saved("storyboard")
    prompt = prompt_of(engine, workflow)
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    (payload,) = [sent.payload for sent in api.submissions]
    shots = payload["multi_prompt"]
    assert [shot["duration"] for shot in shots] == [3, 4, 3]
    assert payload["duration"] == 10
    assert payload["shot_type"] == "customize"
    typed = workflow["nodes"][1]["widgets_values"]
    assert [payload["prompt"], *(shot["prompt"] for shot in shots)] == [typed[0], *typed[11::2]]
    assert f"about {price_in_note(workflow)}" in shown(outcome, id_of(prompt, KLING))


def colour_of(data_uri):
    """The one colour of a picture that is inside a request."""
    with Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2]))) as picture:
        ((_, colour),) = picture.getcolors()
    return colour


def test_elements_sends_each_picture_where_its_title_says(engine, api):
    workflow = saved("elements")
    prompt = prompt_of(engine, workflow)
    colours = {}
    for node in workflow["nodes"]:
        if node["type"] == "LoadImage":
            colours[node["title"]] = (40 * node["id"], 90, 60)
            name = f"{node['id']}.png"
            Image.new("RGB", (400, 400), colours[node["title"]]).save(engine.input / name)
            prompt[str(node["id"])]["inputs"]["image"] = name
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    (payload,) = [sent.payload for sent in api.submissions]
    assert colour_of(payload["start_image_url"]) == colours["Start picture"]
    first, second = [
        (
            colour_of(one["frontal_image_url"]),
            [colour_of(reference) for reference in one["reference_image_urls"]],
        )
        for one in payload["elements"]
    ]
    assert first == (colours["Element 1 from the front"], [colours["Element 1 from the side"]])
    assert second == (colours["Element 2 from the front"], [colours["Element 2 from the front"]])
    assert "@Element1" in payload["prompt"] and "@Element2" in payload["prompt"]
    kling = id_of(prompt, KLING)
    assert "mentioned nowhere" not in shown(outcome, kling)
    assert f"about {price_in_note(workflow)}" in shown(outcome, kling)
