"""Upload Image in the real engine, and its example workflow through a real server."""

import asyncio
import importlib
import json
import threading
from pathlib import Path

import pytest
import requests
import torch
from conftest import CANARY_TOKEN
from pack.nodes.core.uploaders.assets import PATH, Assets
from pack.nodes.rehearsal import RehearsalServer
from PIL import Image
from raw_server import RawServer, answer
from s3_server import BUCKET
from test_image_to_video import SEEDS, with_tensor
from test_temporary_host import StandIn

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / "example_workflows" / "uploaded_image.json"


def prompt_of(engine, host="auto", amount=1, colour="teal", **kling):
    Image.new("RGB", (480, 360), colour).save(engine.input / "start.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        "2": {"class_type": "RepeatImageBatch", "inputs": {"image": ["1", 0], "amount": amount}},
        "3": {"class_type": "RunComfyUploadImage", "inputs": {"images": ["2", 0], "host": host}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}},
    }
    if kling:
        inputs = {
            "prompt": "steam rises",
            "duration": 3,
            "generate_audio": False,
            "negative_prompt": "",
            "cfg_scale": 0.5,
            "model": "kling-3.0/standard",
            "start_image_url": ["3", 0],
            "filename_prefix": "video/runcomfy-kling",
            **kling,
        }
        prompt["4"] = {"class_type": "RunComfyKlingImageToVideo", "inputs": inputs}
    return prompt


def urls_of(outcome):
    assert outcome.succeeded, outcome.error
    (urls,) = outcome.outputs["3"]
    return urls


def text_of(outcome):
    return [text for node, text in outcome.texts if node == "3"][-1]


@pytest.fixture
def temporary(monkeypatch):
    with StandIn() as server:
        monkeypatch.setenv("RUNCOMFY_TEMPORARY_HOST_URL", f"{server.origin}/api.php")
        yield server
        server.shutdown()


@pytest.fixture
def bucket(s3, monkeypatch):
    for name, value in s3.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RUNCOMFY_OBJECT_STORE_URL", f"s3://{BUCKET}/node")
    return s3


def test_the_uploaded_picture_is_the_start_of_the_clip(engine, api):
    outcome = engine.run(prompt_of(engine, seed=next(SEEDS)))
    (url,) = urls_of(outcome)
    assert api.submissions[0].payload["start_image_url"] == url
    frames = outcome.outputs["4"][0][0].get_components().images
    teal = torch.tensor([0, 128, 128]) / 255
    assert torch.allclose(frames[0, 100:110, 300:310].mean((0, 1)), teal, atol=0.06)


def test_a_batch_gives_one_address_a_picture_and_the_text_says_until_when(engine, api, bucket):
    outcome = engine.run(prompt_of(engine, amount=3, colour="plum"))
    urls = urls_of(outcome)
    assert len(urls) == 3
    assert len(set(urls)) == 1, "equal pictures are one object"
    assert urls[0].startswith(f"{bucket.endpoint}/{BUCKET}/node/")
    assert requests.get(urls[0], timeout=9).status_code == 200
    lines = text_of(outcome).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["1", "2", "3"]
    assert all(" at object_store until " in line and line.endswith("UTC") for line in lines)


def test_the_host_is_that_of_the_widget(engine, api, bucket, temporary):
    outcome = engine.run(prompt_of(engine, host="temporary_host"))
    assert urls_of(outcome)[0].startswith(temporary.origin)
    assert "the picture is public at 127.0.0.1" in text_of(outcome)
    shown = [text for node, text in outcome.texts if node == "3"]
    assert "the picture is public at 127.0.0.1" in shown[0], "said before it goes up"


def test_a_picture_goes_up_once(engine, api, temporary):
    for _ in range(2):  # each with an executor, and so a cache, of its own
        urls_of(engine.run(prompt_of(engine, host="temporary_host", colour="khaki")))
    assert len(temporary.posts) == 1


def test_the_cache_keeps_an_address_only_while_it_is_good(engine, api):
    executor, prompt = engine.executor(), prompt_of(engine, colour="navy")
    first = urls_of(engine.run(prompt, executor=executor))
    assert urls_of(engine.run(prompt, executor=executor)) == first
    runner = next(iter(engine.module("nodes.comfy_bridge")._Shared.runners.values()))
    runner.uploads._forget(first[0])
    assert urls_of(engine.run(prompt, executor=executor)) != first


def test_a_new_address_of_the_same_picture_is_not_paid_again(engine, api):
    prompt = prompt_of(engine, seed=next(SEEDS))
    first, second = engine.run(prompt), engine.run(prompt)
    assert urls_of(first) != urls_of(second)
    assert "Reused, $0" in second.texts[-1][1]
    assert len(api.submissions) == 1


def test_inline_is_refused_with_the_reason(engine, api):
    outcome = engine.run(prompt_of(engine, host="inline"))
    assert "inline, the default, puts it into the request itself" in outcome.error


def test_no_host_is_refused_with_the_reason(engine, monkeypatch):
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", CANARY_TOKEN)  # live, so nothing here would do
    outcome = engine.run(prompt_of(engine))
    assert "No host is set up that gives a picture an address" in outcome.error
    assert "RUNCOMFY_OBJECT_STORE_URL or RUNCOMFY_PUBLIC_ADDRESS" in outcome.error
    assert text_of(outcome) in outcome.error


def test_an_unknown_host_and_a_picture_that_kling_does_not_take(engine, api, temporary):
    assert "host is 'ftp'. Choose one of auto" in engine.run(prompt_of(engine, host="ftp")).error
    prompt = {**with_tensor(engine, torch.rand((200, 400, 3))), **{}}
    prompt = {"1": prompt["1"], "3": prompt_of(engine)["3"], "4": prompt_of(engine)["4"]}
    prompt["3"]["inputs"] = {"images": ["1", 0], "host": "temporary_host"}
    assert "The picture is 400 × 200 px" in engine.run(prompt).error
    assert temporary.posts == []


def test_a_host_that_fails_is_named_on_the_node(engine, api, temporary):
    temporary.replies = [(403, b"banned")]
    outcome = engine.run(prompt_of(engine, host="temporary_host", colour="olive"))
    assert "127.0.0.1 (temporary_host) did not take the picture: HTTP 403" in outcome.error
    assert "Nothing was charged" in text_of(outcome)


def test_stop_ends_the_waiting_for_a_host_that_does_not_answer(engine, api, monkeypatch):
    asked, over = threading.Event(), threading.Event()

    def silent(conn):
        asked.set()
        over.wait(30)

    def press():
        asked.wait(30)
        engine.stop()

    with RawServer(silent) as server:
        monkeypatch.setenv("RUNCOMFY_TEMPORARY_HOST_URL", f"{server.origin}/api.php")
        threading.Thread(target=press, daemon=True).start()
        outcome = engine.run(prompt_of(engine, host="temporary_host", amount=2, colour="lime"))
        assert not over.is_set()
        over.set()
    assert outcome.interrupted
    assert server.connections == 1


def test_rehearsal_needs_no_host_at_all(engine, monkeypatch):
    monkeypatch.setenv("RUNCOMFY_REHEARSAL", "1")
    outcome = engine.run(prompt_of(engine, seed=next(SEEDS)))
    assert urls_of(outcome)[0].startswith("http://127.0.0.1:")
    assert "rehearsal, nothing charged" in outcome.texts[-1][1]


def test_a_wired_picture_goes_over_the_host_that_is_set_up(engine, api, bucket):
    prompt = prompt_of(engine, seed=next(SEEDS), start_image=["1", 0], start_image_url="")
    prompt = {"1": prompt["1"], "4": prompt["4"]}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    sent = api.submissions[0].payload["start_image_url"]
    assert sent.startswith(f"{bucket.endpoint}/{BUCKET}/node/")
    assert bucket.environ()["AWS_SECRET_ACCESS_KEY"] not in str(outcome)


def test_a_login_proxy_is_said_on_the_node_and_the_address_comes(engine, api, monkeypatch):
    with RawServer(answer(302, Location="https://login.example.org/")) as proxy:
        monkeypatch.setenv("RUNCOMFY_PUBLIC_ADDRESS", proxy.origin)
        prompt = prompt_of(engine, colour="pink")
        outcome = engine.run(prompt)
        assert urls_of(outcome)[0].startswith(proxy.origin)
        text = text_of(outcome)
    print(f"\n  text: {text}")
    assert "RunComfy may not be able to fetch the picture" in text
    assert "tried from here: a redirect to login.example.org" in text


# Through a real server


def test_comfyui_serves_assets_and_nothing_beside_them(comfyui_server):
    folder = comfyui_server.base / "user" / "__runcomfy_kling" / "assets"
    data = bytes(range(256)) * 8
    token = Assets(folder).add(data, "image/png", 4e9)
    url = f"{comfyui_server.server.origin}{PATH}/{token}"
    whole = requests.get(url, timeout=9)
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["Content-Type"] == "image/png"
    assert whole.headers["Cache-Control"] == "no-store"
    part = requests.get(url, headers={"Range": "bytes=5-9"}, timeout=9)
    assert (part.status_code, part.content) == (206, data[5:10])
    assert requests.head(url, timeout=9).headers["Content-Length"] == str(len(data))
    for name in ("x", "..%2Fledger.db", "%2e%2e%2fsettings.json", f"{token}x", ""):
        asked = requests.get(f"{comfyui_server.server.origin}{PATH}/{name}", timeout=9)
        assert asked.status_code == 404, name
    assert requests.post(url, timeout=9).status_code == 405


def test_the_example_workflow_runs(comfyui_server):
    with Image.open(WORKFLOW.with_suffix(".jpg")) as picture:
        picture.save(comfyui_server.base / "input" / "example.png")
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    to_prompt = importlib.import_module("pack.dev.workflow").to_prompt
    run_prompt = importlib.import_module("pack.dev.prompt").run_prompt
    prompt = to_prompt(workflow, comfyui_server.server.get_json("/object_info"))
    before = len(comfyui_server.rehearsal.submissions)
    texts = []
    origin = comfyui_server.server.origin
    run = run_prompt(
        origin,
        prompt,
        workflow=workflow,
        on_text=lambda node, text: texts.append(text),
        timeout_s=120,
    )
    history = asyncio.run(run).history
    (sent,) = comfyui_server.rehearsal.submissions[before:]
    assert sent.payload["start_image_url"].startswith("http://127.0.0.1:")
    assert PATH in sent.payload["start_image_url"]
    assert any(" at public_address until " in text for text in texts)
    node_id = next(key for key, node in prompt.items() if "Kling" in node["class_type"])
    assert history["outputs"][node_id]["images"]
    assert isinstance(comfyui_server.rehearsal, RehearsalServer)
