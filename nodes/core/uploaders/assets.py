"""Files that are handed out at addresses of our own: each under a token, each for a time.

They lie in one folder as ``<token>.<seconds since 1970 when it ends>.<type>``: that is all there is
to know about a file, so a restart of ComfyUI hands them out as before. A token is looked up in that
folder's listing and never made part of a path.
"""

import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import UploadError
from .base import SUFFIXES

PATH = "/runcomfy-kling/assets"
_NAME = re.compile(r"([A-Za-z0-9_-]{43})\.(\d+)(\.\w+)")


class Assets:
    """One folder of such files. Safe to use from several threads and processes.

    Args:
        folder: Made when the first file comes.
        clock: Seconds since 1970.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock

    def add(self, data: bytes, content_type: str, expires_at: float) -> str:
        """Keep ``data`` until ``expires_at`` (seconds since 1970); its token."""
        token = secrets.token_urlsafe(32)
        path = self._folder / f"{token}.{int(expires_at)}{SUFFIXES[content_type]}"
        try:
            self._folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
            self._purge()
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR), "wb") as file:
                file.write(data)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise UploadError(
                f"The picture cannot be kept in {self._folder}: {error.strerror or error}. Make "
                "room there. Nothing was charged."
            ) from None
        return token

    def find(self, token: str) -> tuple[Path, str] | None:
        """The file of a token and its content type; None once it has ended."""
        for path, name, ends_at, content_type in self._files():
            if secrets.compare_digest(name.encode(), token.encode("utf-8", "replace")):
                return (path, content_type) if self._clock() < ends_at else None
        return None

    def remove(self, token: str) -> None:
        """End a file before its time; harmless where it has ended."""
        for path, name, _, _ in self._files():
            if name == token:
                with suppress(OSError):  # Windows keeps what is being read; its time still ends
                    path.unlink()

    def _purge(self) -> None:
        for path, _, ends_at, _ in self._files():
            if self._clock() >= ends_at:
                with suppress(OSError):
                    path.unlink()

    def _files(self) -> Iterator[tuple[Path, str, int, str]]:
        kinds = {suffix: content_type for content_type, suffix in SUFFIXES.items()}
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            found = _NAME.fullmatch(path.name)
            if found and found[3] in kinds:
                yield path, found[1], int(found[2]), kinds[found[3]]
