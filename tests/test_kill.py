"""Killed at every point between intent and file: never paid twice, never lost.

A child process runs one job and kills itself with SIGKILL at a named point. Another one queues the
same request. The stand-in counts what was sent, the folder shows what arrived.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_child import POINTS
from pack.nodes.core.media import video

CHILD = Path(__file__).parent / "kill_child.py"
# the process died while the job was on its way: nobody can know whether it arrived
UNKNOWABLE = (
    "intent written",
    "about to connect",
    "body half sent",
    "body sent, no answer yet",
    "answer read, id not written",
    "about to write the id",
)
SENT_BY_THEN = ("body sent, no answer yet", "answer read, id not written", "about to write the id")


def run_child(rehearsal, folder, point, *more):
    return subprocess.run(
        [sys.executable, CHILD, rehearsal.origin, rehearsal.token, folder, point, *more],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def settled(rehearsal, count):
    """Wait until the stand-in has seen what the dead child had sent."""
    end = time.monotonic() + 3
    while len(rehearsal.submissions) < count and time.monotonic() < end:
        time.sleep(0.05)
    return len(rehearsal.submissions)


@pytest.mark.parametrize("point", [point for point in POINTS if point != "nothing"])
def test_killed_and_queued_again(rehearsal, tmp_path, point):
    killed = run_child(rehearsal, tmp_path, point)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr

    again = run_child(rehearsal, tmp_path, "nothing")
    assert again.returncode == 0, again.stderr
    if point in UNKNOWABLE:
        assert again.stdout.startswith("SubmitUnknown"), again.stdout
        assert "change the seed" in again.stdout
        assert settled(rehearsal, point in SENT_BY_THEN) == (point in SENT_BY_THEN)
    else:
        assert again.stdout.startswith("clip"), again.stdout
        assert len(rehearsal.submissions) == 1
        clips = list(tmp_path.glob("*.mp4"))
        assert len(clips) == 1, "one clip, and no copies of it"
        assert video.inspect(clips[0]).duration_s == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(
    "point", ["id written", "rendering", "half downloaded", "name written, file not renamed"]
)
def test_killed_and_picked_up_without_being_queued(rehearsal, tmp_path, point):
    assert run_child(rehearsal, tmp_path, point).returncode == -signal.SIGKILL
    picked_up = run_child(rehearsal, tmp_path, "nothing", "resume")
    assert picked_up.stdout.startswith("clip"), picked_up.stdout + picked_up.stderr
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["clip_00001_.mp4"]
    assert len(rehearsal.submissions) == 1
