"""The real server killed, blocked, stopped, ended and without a cache while a job is under way."""

import asyncio
import importlib
import json
import os
import shutil
import signal
import time
import urllib.request
from datetime import datetime
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


def comfyui(engine_dir, base, api, *options, **settings):
    environment = clean_environment(
        RUNCOMFY_API_BASE_URL=api.origin,
        RUNCOMFY_API_TOKEN=CANARY_TOKEN,
        RUNCOMFY_POLL_SECONDS="1",
        **settings,
    )
    return importlib.import_module("pack.dev.comfyui").ComfyUI(
        engine_dir, base, environment=environment, options=options
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
    """Queue a graph as the browser does; its history, and the last text of the Kling node."""
    texts, run_prompt = {}, importlib.import_module("pack.dev.prompt").run_prompt
    finished = asyncio.run(
        run_prompt(server.origin, prompt, on_text=texts.__setitem__, timeout_s=seconds)
    )
    return finished.history, texts.get("2", "")


def from_cache(history):
    """The nodes that ComfyUI did not run again."""
    messages = dict(history["status"]["messages"])
    return messages["execution_cached"]["nodes"]


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
    ("seed", "queue_s", "run_s", "ending", "cache"),
    [
        (1, 4, 0, "/status", ["--cache-none"]),
        (2, 0, 4, "/result", ["--cache-ram", "100000"]),  # GB that are never free: all is evicted
        (3, 0, 0, "/output.mp4", []),
    ],
    ids=["in the queue, then no cache", "rendering, then no memory", "downloading"],
)
def test_a_killed_comfyui_collects_by_itself_when_it_is_back(
    engine_dir, base, api, seed, queue_s, run_s, ending, cache
):
    sent, asked = len(api.submissions), len(api.requests)
    api.plan(queue_s=queue_s, run_s=run_s)
    server = comfyui(engine_dir, base, api)
    with server:
        post(server, "/prompt", {"prompt": graph(seed)})
        until(lambda: seen(api, asked, ending))
        os.kill(server._process.pid, signal.SIGKILL)
        until(lambda: server.exit_code() is not None)
    with comfyui(engine_dir, base, api, *cache) as back:
        (clip,) = until(lambda: [c for c in clips(base, seed) if c.stat().st_size])
        assert video.inspect(clip).duration_s == pytest.approx(3, abs=0.1)
        for again in (False, True):
            history, text = run(back, graph(seed))
            assert history["outputs"]["2"]["images"][0]["filename"] == clip.name
            assert ("2" in from_cache(history)) == (again and not cache)
            assert "Reused, $0" in text or "2" in from_cache(history)
        assert CANARY_TOKEN not in back.read_log()
    assert len(api.submissions) == sent + 1
    assert len(clips(base, seed)) == 1


@pytest.fixture(scope="module")
def server(engine_dir, base, api):
    """One that is not killed, and that waits for a clip no longer than 10 s."""
    with comfyui(engine_dir, base, api, RUNCOMFY_TIMEOUT_SECONDS="10") as running:
        yield running


def test_a_clip_that_comfyui_was_told_to_forget_is_reused(server, base, api):
    sent = len(api.submissions)
    first, _ = run(server, graph(10))
    post(server, "/free", {"unload_models": True, "free_memory": True})
    time.sleep(3)  # ComfyUI frees when it next looks, which a prompt at once would come before
    again, text = run(server, graph(10))
    assert from_cache(again) == []
    assert "Reused, $0" in text
    assert again["outputs"]["2"] == first["outputs"]["2"]
    assert (len(api.submissions), len(clips(base, 10))) == (sent + 1, 1)


def beside_a_sampler(prompt, seconds):
    """The graph with a node that holds ComfyUI's loop for so long."""
    sampler = {"class_type": "TestSampler", "inputs": {"image": ["1", 0], "seconds": seconds}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}}
    return {**prompt, "3": sampler, "4": shown}


def test_stop_beside_a_sampler_that_takes_the_flag_calls_the_job_off(server, api):
    asked = len(api.requests)
    api.plan(queue_s=60)
    prompt_id = post(server, "/prompt", {"prompt": beside_a_sampler(graph(11), 30.0)})["prompt_id"]
    until(lambda: seen(api, asked, "/status"))
    post(server, "/interrupt", {})
    until(lambda: seen(api, asked, "/cancel"), 10)
    history = until(lambda: server.get_json(f"/history/{prompt_id}").get(prompt_id))
    assert "execution_interrupted" in dict(history["status"]["messages"])


def finished_at(api, submission):
    """When the stand-in had the clip ready, in seconds since 1970."""
    address = f"{api.origin}/v1/requests/{submission.request_id}/result"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {api.token}"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
        return datetime.fromisoformat(
            json.load(reply)["finished_at"].rstrip("Z") + "+00:00"
        ).timestamp()


def late_s(server, base, api, prompt, seed):
    """Run the graph; how long after its end at RunComfy the clip was on the disk, and the text."""
    api.plan(queue_s=0, run_s=2)
    history, text = run(server, prompt)
    (clip,) = clips(base, seed)
    ended = dict(history["status"]["messages"])["execution_success"]["timestamp"] / 1000
    late = clip.stat().st_mtime - finished_at(api, api.submissions[-1])
    return late, ended - clip.stat().st_mtime, text


def test_a_sampler_beside_it_makes_nothing_late_and_times_nothing_out(server, base, api):
    """The sampler holds the loop for longer than a clip is waited for."""
    alone, _, _ = late_s(server, base, api, graph(12), 12)
    beside, before_the_end, text = late_s(server, base, api, beside_a_sampler(graph(13), 14.0), 13)
    assert text.startswith("Saved killed/take13_00001_.mp4")
    # found by a poll, 1 s apart and 5/3 s after some time, then fetched: the rest is a slow machine
    assert max(alone, beside) < 6
    assert before_the_end > 3, "the clip was on the disk long before the sampler's end"


def test_comfyui_ends_at_once_and_quietly_while_jobs_are_under_way(engine_dir, base, api):
    api.plan(queue_s=60)
    api.plan(queue_s=0, run_s=60)
    asked = len(api.requests)
    with comfyui(engine_dir, base, api) as ending:
        post(ending, "/prompt", {"prompt": {**graph(21), "5": graph(22)["2"]}})
        until(lambda: seen(api, asked, "/status") and seen(api, asked, "/result"))
        process = ending._process
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        log = ending.read_log().partition("got prompt")[2]
    assert "Stopped server" in log
    assert not any(word in log for word in ("Traceback", "Exception", "Fatal Python error"))
