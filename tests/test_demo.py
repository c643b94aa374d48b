"""`make demo` itself: rehearsed from start to end, and its refusals."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CANARY_TOKEN, clean_environment

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import demo
demo.BASE = Path(sys.argv[2])
sys.exit(demo.main())
"""


def run_demo(base: Path, engine_dir: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """The demo with a base directory of its own."""
    return subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT / "dev"), str(base)],
        env=clean_environment(COMFYUI_DIR=str(engine_dir), **settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.mark.timeout(240)
def test_demo_rehearses_and_prints_what_it_made(tmp_path: Path, engine_dir: Path) -> None:
    """With a token in the environment: without LIVE=1 nothing can be paid. And behind a proxy,
    which could not reach this machine."""
    proxies = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}
    done = run_demo(tmp_path, engine_dir, RUNCOMFY_API_TOKEN=CANARY_TOKEN, **proxies)
    assert done.returncode == 0, done.stderr
    clip = tmp_path / "output" / "video" / "runcomfy-kling_00001_.mp4"
    assert clip.is_file()
    assert f"clip        {clip}" in done.stdout
    assert "5.00 s of clip" in done.stdout
    assert "h264 + aac" in done.stdout
    assert "rehearsal, $0" in done.stdout
    assert CANARY_TOKEN not in done.stdout + done.stderr + (tmp_path / "comfyui.log").read_text()


WORDS = ("1", "true", "YES", " on ", "", "0", "False", "no", "off", "2", "flase", "live")
ASK_LIVE = """
import os, sys
sys.path.insert(0, sys.argv[1])
import demo
for word in sys.argv[2:]:
    os.environ["LIVE"] = word
    try:
        print(demo.is_live())
    except demo.DemoFailed as error:
        print(error)
"""


def test_only_a_clear_yes_is_a_paid_run() -> None:
    asked = subprocess.run(
        [sys.executable, "-c", ASK_LIVE, str(ROOT / "dev"), *WORDS],
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    said = asked.stdout.splitlines()
    assert said[:4] == ["True"] * 4
    assert said[4:9] == ["False"] * 5
    assert all("Set it to 1 for a real, paid run" in line for line in said[9:])
    assert len(said) == len(WORDS), asked.stderr


def test_an_unclear_live_ends_the_demo_before_it_starts(tmp_path: Path, engine_dir: Path) -> None:
    done = run_demo(tmp_path, engine_dir, LIVE="maybe", RUNCOMFY_API_TOKEN=CANARY_TOKEN)
    assert (done.returncode, done.stdout) == (1, "")
    assert "LIVE is 'maybe'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_live_demo_without_a_token_says_where_to_put_one(tmp_path: Path, engine_dir: Path) -> None:
    done = run_demo(tmp_path, engine_dir, LIVE="1")
    assert done.returncode == 1
    assert "RUNCOMFY_API_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_refused_live_job_ends_the_demo_with_the_nodes_text(
    tmp_path: Path, engine_dir: Path
) -> None:
    """The API address is no origin, so nothing is sent; the price was said before."""
    done = run_demo(
        tmp_path,
        engine_dir,
        LIVE="1",
        RUNCOMFY_API_TOKEN=CANARY_TOKEN,
        RUNCOMFY_API_BASE_URL="http://127.0.0.1:9/v1",
    )
    assert done.returncode == 1
    assert "$0.63" in done.stdout
    assert "RunComfyKlingImageToVideo (node 2): The API address" in done.stderr
    assert CANARY_TOKEN not in done.stdout + done.stderr
