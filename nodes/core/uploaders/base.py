"""What every host does, and how a moment is written in texts."""

import time
from dataclasses import dataclass
from typing import Protocol

SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "video/mp4": ".mp4",
}


@dataclass(frozen=True)
class Hosted:
    """Where RunComfy finds the bytes. ``notes`` are sentences for the user.

    ``expires_at`` is in seconds since 1970; None for what has no address of its own.
    """

    url: str
    expires_at: float | None = None
    notes: tuple[str, ...] = ()


class Uploader(Protocol):
    """Makes bytes reachable for RunComfy. Nothing is charged by any of this."""

    @property
    def name(self) -> str:
        """The host's name, as in RUNCOMFY_UPLOAD_HOST."""
        ...

    @property
    def max_bytes(self) -> int:
        """The largest picture this host takes, in bytes."""
        ...

    @property
    def max_video_bytes(self) -> int:
        """The largest video, in bytes."""
        ...

    @property
    def max_total_bytes(self) -> int | None:
        """All files of one request together, in bytes; None for no limit."""
        ...

    def notice(self, expires_at: float | None = None) -> str:
        """What the user should know of bytes that stay until then; may be empty.

        Args:
            expires_at: Seconds since 1970; None for what would be uploaded now.
        """
        ...

    @property
    def reuse_key(self) -> str:
        """Names all that decides an address. Empty: no address is handed out twice."""
        ...

    @property
    def cleans_up(self) -> bool:
        """Whether ``release`` takes the bytes away."""
        ...

    def upload(self, data: bytes, content_type: str) -> Hosted:
        """Make ``data`` reachable.

        Raises:
            ConfigError: The host is not, or only half, set up.
            UploadError: The host does not take it.
        """
        ...

    def release(self, url: str) -> None:
        """Nobody needs ``url`` any more; raises UploadError if it cannot be taken away."""
        ...


def until(moment: float) -> str:
    """A moment in words, such as ``23 Nov 2026, 14:02 UTC``; ``moment`` in seconds since 1970."""
    return time.strftime("%d %b %Y, %H:%M UTC", time.gmtime(moment)).lstrip("0")
