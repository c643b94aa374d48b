"""The real server killed, stopped and ended while a paid job is under way."""

import importlib
import json
import os
import shutil
import signal
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import CANARY_TOKEN, clean_environment
from pack.nodes.core.media import video
from pack.nodes.rehearsal import RehearsalServer
from PIL import Image

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """The stand-in outlives every ComfyUI here, as RunComfy would."""
    with RehearsalServer(tmp_path_factory.mktemp("clips"), token=CANARY_TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """One base directory: its ledger is what a restart finds."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "input").mkdir()
    (folder / "custom_nodes").mkdir()
    Image.new("RGB", (480, 360), "teal").save(folder / "input" / "start.png")
    shutil.copy(HERE / "server_nodes.py", folder / "custom_nodes" / "server_nodes.py")
    return folder


def comfyui(engine_dir, base, api):
    environment = clean_environment(
        RUNCOMFY_API_BASE_URL=api.origin,
        RUNCOMFY_API_TOKEN=CANARY_TOKEN,
        RUNCOMFY_POLL_SECONDS="1",
    )
    return importlib.import_module("pack.dev.comfyui").ComfyUI(
        engine_dir, base, environment=environment
    )


def graph(seed, **more):
    inputs = {
        "prompt": "steam",
        "start_image": ["1", 0],
        "duration": 3,
        "generate_audio": False,
        "negative_prompt": "",
        "cfg_scale": 0.5,
        "model": "kling-3.0/standard",
        "seed": seed,
        "start_image_url": "",
        "filename_prefix": f"killed/take{seed}",
    }
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        "2": {"class_type": "RunComfyKlingImageToVideo", "inputs": inputs},
        **more,
    }


def post(server, path, body):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(
        server.origin + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with opener.open(request, timeout=30) as reply:
        return json.loads(reply.read() or b"{}")


def run(server, prompt, seconds=60):
    prompt_id = post(server, "/prompt", {"prompt": prompt})["prompt_id"]
    return until(lambda: server.get_json(f"/history/{prompt_id}").get(prompt_id), seconds)


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    return found


def seen(api, count, ending):
    """Whether so many requests of this kind came since ``count``."""
    return any(request.path.endswith(ending) for request in api.requests[count:])


def clips(base, seed):
    return list((base / "output" / "killed").glob(f"take{seed}_*.mp4"))


@pytest.mark.parametrize(
    ("seed", "queue_s", "run_s", "ending"),
    [(1, 4, 0, "/status"), (2, 0, 4, "/result"), (3, 0, 0, "/output.mp4")],
    ids=["in the queue", "rendering", "downloading"],
)
def test_a_killed_comfyui_collects_by_itself_when_it_is_back(
    engine_dir, base, api, seed, queue_s, run_s, ending
):
    sent, asked = len(api.submissions), len(api.requests)
    api.plan(queue_s=queue_s, run_s=run_s)
    server = comfyui(engine_dir, base, api)
    with server:
        post(server, "/prompt", {"prompt": graph(seed)})
        until(lambda: seen(api, asked, ending))
        os.kill(server._process.pid, signal.SIGKILL)
        until(lambda: server.exit_code() is not None)
    with comfyui(engine_dir, base, api) as back:
        (clip,) = until(lambda: [c for c in clips(base, seed) if c.stat().st_size])
        assert video.inspect(clip).duration_s == pytest.approx(3, abs=0.1)
        history = run(back, graph(seed))
        assert history["status"]["status_str"] == "success"
        assert history["outputs"]["2"]["images"][0]["filename"] == clip.name
        assert CANARY_TOKEN not in back.read_log()
    assert len(api.submissions) == sent + 1
    assert len(clips(base, seed)) == 1


@pytest.fixture(scope="module")
def server(engine_dir, base, api):
    """One that is not killed."""
    with comfyui(engine_dir, base, api) as running:
        yield running


def test_stop_beside_a_sampler_that_takes_the_flag_calls_the_job_off(server, api):
    asked = len(api.requests)
    api.plan(queue_s=60)
    sampler = {"class_type": "TestSampler", "inputs": {"image": ["1", 0], "seconds": 30.0}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    prompt_id = post(server, "/prompt", {"prompt": graph(11, **{"3": sampler, "4": shown})})
    until(lambda: seen(api, asked, "/status"))
    post(server, "/interrupt", {})
    until(lambda: seen(api, asked, "/cancel"), 10)
    messages = until(
        lambda: server.get_json(f"/history/{prompt_id['prompt_id']}").get(prompt_id["prompt_id"])
    )["status"]["messages"]
    assert "execution_interrupted" in [name for name, _ in messages]


def test_a_sampler_beside_it_delays_nothing(server, base, api):
    asked = len(api.requests)
    sampler = {"class_type": "TestSampler", "inputs": {"image": ["1", 0], "seconds": 15.0}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    api.plan(queue_s=0.5, run_s=1)
    began = time.monotonic()
    history = run(server, graph(12, **{"3": sampler, "4": shown}))
    assert history["status"]["status_str"] == "success"
    fetched = next(r.at for r in api.requests[asked:] if r.path.startswith("/files/"))
    assert fetched - began < 10


def test_comfyui_ends_at_once_while_a_job_is_under_way(engine_dir, base, api):
    api.plan(queue_s=60)
    asked = len(api.requests)
    with comfyui(engine_dir, base, api) as ending:
        post(ending, "/prompt", {"prompt": graph(21)})
        until(lambda: seen(api, asked, "/status"))
        process = ending._process
        process.send_signal(signal.SIGINT)
        process.wait(8)
        log = ending.read_log()
    assert "runcomfy" not in log.split("Traceback")[-1] or "Traceback" not in log
