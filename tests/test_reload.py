"""The pack loaded a second time into a running ComfyUI, as packs that reload others do it."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from node_case import Threads, prompt_of
from runner_case import until


def load_again(engine, forget):
    """ComfyUI's loader once more; ``forget`` drops the pack's modules first, as reloaders do."""
    for name in [name for name in sys.modules if forget and engine.pack_folder.name in name]:
        del sys.modules[name]
    engine._load(engine.pack_folder, "custom_nodes")
    until(lambda: "runcomfy-pick-up" not in [thread.name for thread in threading.enumerate()])


@pytest.mark.parametrize("forget", [False, True], ids=["loaded twice", "reloaded"])
def test_a_job_under_way_is_not_disturbed(engine, api, caplog, forget):
    threads = Threads()
    api.plan(queue_s=2)
    prompt = prompt_of(engine, filename_prefix=f"under-way-{forget}/clip")
    with caplog.at_level("INFO"), ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.run, prompt)
        until(lambda: any(one.path.endswith("/status") for one in api.requests))
        load_again(engine, forget)
        assert len(threads.named("runcomfy-job")) == 1, "nobody else picks it up"
        outcome = running.result(30)
        again = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    assert again.outputs["2"][2] == outcome.outputs["2"][2]
    assert "Reused, $0" in again.texts[-1][1]
    assert len(api.submissions) == 1
    assert "picked up" not in caplog.text and "Traceback" not in caplog.text


def test_a_job_of_the_earlier_load_is_joined_and_saved_once(engine, api, caplog):
    threads = Threads()
    api.plan(queue_s=0, run_s=3)
    prompt = prompt_of(engine, filename_prefix="earlier/clip")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.run, prompt)
        until(lambda: any(one.path.endswith("/result") for one in api.requests))
        engine.stop()
        assert running.result(30).interrupted
    load_again(engine, forget=True)
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    assert "Collected, $0 more" in outcome.texts[-1][1]
    until(lambda: not threads.named("runcomfy-job"))
    (clip,) = (engine.output / "earlier").iterdir()
    assert outcome.outputs["2"][2] == [str(clip)]
    assert len(api.submissions) == 1
    assert "Traceback" not in caplog.text
