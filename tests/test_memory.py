"""Free memory under the limits of containers, and memory that is given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from clip_maker import make_clip
from pack.nodes.core.media import frames, memory
from pack.nodes.core.media.clip_file import ClipFile, Selection


def cgroup(root: Path, version: int, own: str, folders: dict[str, tuple[str, int, int]]) -> Path:
    """A system folder with control groups: by folder their limit, use, and reclaimable part."""
    (root / "proc/self").mkdir(parents=True)
    line = f"0::{own}" if version == 2 else f"4:memory:{own}\n1:cpu:{own}"
    (root / "proc/self/cgroup").write_text(line + "\n")
    limit, used, stat = memory._V2 if version == 2 else memory._V1
    for name, values in folders.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{values[0]}\n")
        (folder / used).write_text(f"{values[1]}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{stat} {values[2]}\n")
    return root


@pytest.mark.parametrize(
    ("version", "own", "folders", "expected"),
    [
        (2, "/", {"": ("max", 5, 0)}, None),
        (2, "/", {"": ("4000", 1000, 200)}, 3200),
        (2, "/a/b", {"a": ("4000", 1000, 0), "a/b": ("max", 10, 0)}, 3000),
        (2, "/a/b", {"a": ("9000", 1000, 0), "a/b": ("500", 800, 0)}, 0),
        (2, "/host/path", {"": ("700", 100, 0)}, 600),
        (1, "/docker/x", {"memory/docker/x": ("4000", 1000, 300)}, 3300),
        (1, "/docker/x", {"memory": ("4000", 1000, 300)}, 3300),
        (1, "/", {"memory": (str(2**63 - 4096), 1000, 0)}, None),
    ],
)
def test_the_limits_of_containers_count(
    tmp_path: Path, version: int, own: str, folders: dict[str, Any], expected: int | None
) -> None:
    root = cgroup(tmp_path, version, own, folders)
    found = memory.available_bytes(root)
    assert found == expected if expected is not None else found > 1_000_000


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert memory.available_bytes(tmp_path) <= psutil.virtual_memory().total


def test_memory_is_given_back(tmp_path: Path) -> None:
    """To the system: ComfyUI's next node may want it, and so may another program."""
    path = make_clip(tmp_path / "a.mp4", frames=36, size=(960, 720))
    process = psutil.Process()

    def read() -> int:
        found = frames.read(ClipFile(path), Selection(), tick=lambda done, total: None)
        assert found.images is not None
        return found.images.nbytes

    read()  # threads, buffers and modules stay
    before = process.memory_info().rss
    taken = read()
    assert taken > 250_000_000
    assert process.memory_info().rss - before < taken / 4


def test_it_is_given_back_after_a_stop_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = []
    monkeypatch.setattr(memory, "give_back", lambda: trimmed.append(1))

    def tick(done: int, total: int) -> None:
        if done == 3:
            raise InterruptedError

    path = make_clip(tmp_path / "a.mp4", frames=12)
    with pytest.raises(InterruptedError):
        frames.read(ClipFile(path), Selection(), tick=tick)
    assert trimmed == [1]
