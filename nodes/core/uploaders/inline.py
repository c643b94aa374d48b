"""The picture inside the submit itself, as a ``data:`` URI.

RunComfy's own node pack sends exactly this; its API page asks for public URLs. The limit is the
one that pack keeps to, since the server's own is not published.
"""

import base64

from ..upload_settings import INLINE
from .base import Hosted

MAX_IMAGE_BYTES = 6 << 20
MAX_VIDEO_BYTES = 32 << 20
MAX_TOTAL_BYTES = 46 << 20  # 64 MiB of JSON hold 48 MiB as base64, texts aside


class InlineUploader:
    """Needs no host, no account and no network of its own."""

    name = INLINE
    max_bytes = MAX_IMAGE_BYTES
    max_video_bytes = MAX_VIDEO_BYTES
    max_total_bytes = MAX_TOTAL_BYTES
    reuse_key = ""
    cleans_up = False

    def notice(self, expires_at: float | None = None) -> str:
        """Nothing to tell."""
        return ""

    def upload(self, data: bytes, content_type: str) -> Hosted:
        """``data`` as a ``data:`` URI, which has no expiry and is no address of its own."""
        return Hosted(f"data:{content_type};base64,{base64.b64encode(data).decode('ascii')}")

    def release(self, url: str) -> None:
        """Nothing is anywhere."""
