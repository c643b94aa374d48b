"""A process with one job that kills itself at a named point; run by test_kill.py.

usage: kill_child.py ORIGIN TOKEN FOLDER POINT [resume]
"""

import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

pack = types.ModuleType("pack")
pack.__path__ = [str(Path(__file__).resolve().parents[1])]
sys.modules.setdefault("pack", pack)  # tests that read POINTS have it already

import torch  # noqa: E402
from pack.nodes.core import collect, errors, jobs, transport  # noqa: E402
from pack.nodes.core.job import Connection, Order  # noqa: E402
from pack.nodes.core.kling import KlingRequest  # noqa: E402
from pack.nodes.core.ledger import Ledger  # noqa: E402
from pack.nodes.core.media import video  # noqa: E402
from pack.nodes.core.uploaders.inline import InlineUploader  # noqa: E402


def die() -> None:
    """End as a power cut does: at once, nothing flushed, nothing cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Die when ``owner.name`` is called with arguments that ``when`` accepts."""
    original = getattr(owner, name)

    def dying(*args: Any, **values: Any) -> Any:
        if when(*args, **values):
            die()
        return original(*args, **values)

    setattr(owner, name, dying)


def after(owner: Any, name: str, when: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Die when ``owner.name`` has returned."""
    original = getattr(owner, name)

    def dying(*args: Any, **values: Any) -> Any:
        result = original(*args, **values)
        if when(*args, **values):
            die()
        return result

    setattr(owner, name, dying)


def advancing_to(state: str) -> Callable[..., bool]:
    """Accepts calls of Ledger.advance to this state."""
    return lambda _, __, to, **values: to.value == state


POINTS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "before the intent is written": lambda: before(Ledger, "claim"),
    "intent written": lambda: after(Ledger, "claim"),
    "about to connect": lambda: before(transport.Transport, "_post_job"),
    "body half sent": lambda: before(
        transport.SubmitBody, "read", lambda body, size=-1: body._sent > 0 and not body.handed_over
    ),
    "body sent, no answer yet": lambda: before(transport.Transport, "_read"),
    "answer read, id not written": lambda: after(transport.Transport, "post_job"),
    "about to write the id": lambda: before(Ledger, "advance", advancing_to("in_queue")),
    "id written": lambda: after(Ledger, "advance", advancing_to("in_queue")),
    "rendering": lambda: after(Ledger, "advance", advancing_to("in_progress")),
    "about to download": lambda: after(Ledger, "advance", advancing_to("downloading")),
    "half downloaded": lambda: before_second_piece(),
    "downloaded": lambda: after(collect, "download"),
    "copying the metadata": lambda: after(video, "_copy_streams"),
    "about to write the name": lambda: before(Ledger, "name_clip"),
    "name written, file not renamed": lambda: after(Ledger, "name_clip"),
    "file renamed, end not written": lambda: after(collect, "rename_to_new"),
    "end written": lambda: after(Ledger, "advance", advancing_to("completed")),
}


def before_second_piece() -> None:
    """Die in the middle of a download."""
    original = transport.Transport.pieces

    def dying(self: Any, response: Any) -> Any:
        for number, piece in enumerate(original(self, response)):
            yield piece
            if number == 0:
                die()

    transport.Transport.pieces = dying  # type: ignore[method-assign]


class Folder:
    """Names clips in one folder by counting up, as ComfyUI does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, prefix: str) -> Path:
        return self.path

    def candidate(self, prefix: str, width: int, height: int) -> Path:
        number = 1 + len(list(self.path.glob("*.mp4")))
        return self.path / f"{prefix}_{number:05}_.mp4"


def main() -> int:
    """Run one job, or resume what is unfinished; print how it ended."""
    origin, token, folder, point = sys.argv[1:5]
    POINTS[point]()
    runner = jobs.JobRunner(
        Ledger(f"sqlite:///{folder}/ledger.db"),
        Folder(Path(folder)),
        wait=lambda event, seconds: event.wait(min(seconds, 0.1)),
    )
    connection = Connection(
        transport.Transport(origin, token), InlineUploader(), poll_s=1.0, timeout_s=60.0
    )
    if "resume" in sys.argv:
        started = runner.resume(connection)
    else:
        picture = torch.rand((360, 480, 3), generator=torch.Generator().manual_seed(1))
        request = KlingRequest("steam", duration_s=3, generate_audio=False)
        graph = {"prompt": {"1": {}}, "workflow": {"nodes": []}}
        started = [runner.start(Order(request, "clip", start_image=picture, **graph), connection)]
    for job in started:
        try:
            print("clip", job.waiter().result(60).path)
        except errors.RunComfyError as error:
            print(type(error).__name__, error)
    for thread in threading.enumerate():  # its last lines, after the waiter was told
        if thread.name.startswith("runcomfy-job"):
            thread.join(10)
    return 0


if __name__ == "__main__":
    sys.exit(main())
