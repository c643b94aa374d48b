"""What every host does."""

from typing import Protocol


class Uploader(Protocol):
    """Makes bytes reachable for RunComfy."""

    max_bytes: int
    """The largest file this host takes, in bytes."""

    def upload(self, data: bytes, content_type: str) -> str:
        """Return a URL at which RunComfy finds ``data``. Nothing is charged by this."""
        ...
