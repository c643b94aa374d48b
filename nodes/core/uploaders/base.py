"""What every host does."""

from typing import Protocol


class Uploader(Protocol):
    """Makes bytes reachable for RunComfy."""

    max_bytes: int
    """The largest file this host takes, in bytes."""

    name: str
    """What to call it in texts."""

    max_video_bytes: int
    """The largest video this host takes, in bytes."""

    max_total_bytes: int | None
    """All files of one request together, in bytes; None for no limit."""

    def upload(self, data: bytes, content_type: str) -> str:
        """Return a URL at which RunComfy finds ``data``. Nothing is charged by this."""
        ...
