"""Memory: what is free, by the machine and by its container, and giving back what was used."""

import ctypes
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

from ..errors import InputError

BYTES_PER_PIXEL = 3 * 4  # red, green and blue as float32
SMALLEST_SIDE_PX = 64

# file of the limit, of the use, and in memory.stat the part of the use that the kernel gives up
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be had without swapping, under every limit that this process is in.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    return min([int(psutil.virtual_memory().available), *_left_in_groups(root)])


def check_fit(count: int, width: int, height: int, *, every_nth: int, working_bytes: int) -> None:
    """Refuse frames that would not fit, with what would; raises InputError.

    Args:
        count: Frames.
        width: In pixels, as they will be.
        height: Likewise.
        every_nth: As it is set, to name one that fits.
        working_bytes: Taken besides them while they are decoded.
    """
    free = max(0, available_bytes() - working_bytes)
    frame_bytes = width * height * BYTES_PER_PIXEL
    if count * frame_bytes <= free:
        return
    ways = []
    if fitting := free // frame_bytes:
        ways = [f"every_nth to {every_nth * math.ceil(count / fitting)}"] if count > 1 else []
        ways.append(f"max_frames to {fitting}")
    # both sides are rounded to even numbers, so a little less than the root
    longest = max(width, height)
    side = int(longest * math.sqrt(free / (count * frame_bytes))) // 8 * 8 - 8
    if side >= SMALLEST_SIDE_PX:
        ways.append(f"max_side to {side}")
    way_out = f"Set {', or '.join(ways)}." if ways else "Close what else uses memory."
    raise InputError(
        f"{count} frames of {width} × {height} take {count * frame_bytes / 1e9:.1f} GB of memory, "
        f"and {free / 1e9:.1f} GB are free for them. {way_out}"
    )


def give_back() -> None:
    """Hand memory that is free inside this process back to the system, where glibc keeps it."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another libc, macOS, Windows
        return
    trim(0)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group above this process still allows, version 1 and 2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = _V1 if controllers else _V2
        group = PurePosixPath(own.lstrip("/"))
        # inside a container the path may be the host's: then only the mount's own top is there
        for folder in (group, *group.parents):
            for base in (mount, mount / "memory", mount / "unified"):
                left = _left(base / folder, *names)
                if left is not None:
                    yield left


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    try:
        allowed = int((folder / limit).read_text())  # "max" is no number: no limit
        taken = int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, allowed - taken + int(stat.get(reclaimable, 0)))
    except (OSError, ValueError):
        return None
