"""Where clips go, and how a file gets a name there that no other file has."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

RENAME_ATTEMPTS = 20  # on Windows a virus scanner or a preview may hold a new file for a moment


class Places(Protocol):
    """Where clips go, by ComfyUI's prefix rules."""

    def folder(self, prefix: str) -> Path:
        """The folder of the clips, which exists; raises InputError if it is out of bounds."""
        ...

    def candidate(self, prefix: str, width: int, height: int) -> Path:
        """The next free name for a clip of this size in pixels. Nothing is created."""
        ...


def counted_up(path: Path) -> Path:
    """The next number's name."""
    found = re.fullmatch(r"(.*_)(\d+)(_\.mp4)", path.name)
    return path.with_name(f"{found[1]}{int(found[2]) + 1:05}{found[3]}") if found else path


def rename_to_new(part: Path, path: Path) -> None:
    """Rename without ever replacing a file; raises FileExistsError if there is one."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links: take the name with an empty file, then replace it
        path.open("xb").close()
        try:
            _replace(part, path)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    if os.name == "posix":  # the name itself survives a power cut only once its folder is synced
        with suppress(OSError):  # some network folders cannot do that
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _replace(part: Path, path: Path) -> None:
    for _ in range(RENAME_ATTEMPTS - 1):
        try:
            part.replace(path)
            return
        except PermissionError:
            time.sleep(0.1)
    part.replace(path)
