"""The workflow with Upload Image in a real browser, as a user opens and runs it."""

import json

import requests
from test_browser import FIND_NODE, ROOT
from test_browser import browser as browser  # the fixtures
from test_browser import page as page

WORKFLOW = json.loads((ROOT / "example_workflows" / "uploaded_image.json").read_text("utf-8"))


def test_the_address_is_wired_to_the_kling_node_and_shown_on_upload_image(page, comfyui_server):
    before = len(comfyui_server.rehearsal.submissions)
    # a node that ComfyUI answers from its cache says nothing anew
    requests.post(f"{comfyui_server.server.origin}/free", json={"free_memory": True}, timeout=9)
    page.open(WORKFLOW)
    prompt = page.ask("async () => (await window.app.graphToPrompt()).output")
    assert prompt["2"]["inputs"]["start_image_url"] == ["4", 0]
    assert prompt["4"]["inputs"] == {"images": ["1", 0], "host": "auto"}
    # a take that no other test has asked for
    seed = f"seed => {{ {FIND_NODE}.widgets.find(w => w.name === 'seed').value = seed }}"
    page.ask(seed, 7000 + before)
    page.ask("() => window.app.queuePrompt(0)")
    page.page.wait_for_selector("video", state="attached", timeout=60_000)
    shown = page.ask(
        "() => window.app.graph._nodes.find(n => n.type === 'RunComfyUploadImage')"
        ".widgets.map(w => String(w.value)).join(' ')"
    )
    assert "1: at public_address until " in shown
    (sent,) = comfyui_server.rehearsal.submissions[before:]
    assert sent.payload["start_image_url"].startswith("http://127.0.0.1:")
    assert page.failed == []
