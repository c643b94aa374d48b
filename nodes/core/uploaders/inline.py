"""The picture inside the submit itself, as a ``data:`` URI.

RunComfy's own node pack sends exactly this; its API page asks for public URLs. The limit is the
one that pack keeps to, since the server's own is not published.
"""

import base64

from ..upload_settings import INLINE
from .base import Hosted

MAX_IMAGE_BYTES = 6 << 20


class InlineUploader:
    """Needs no host, no account and no network of its own."""

    name = INLINE
    max_bytes = MAX_IMAGE_BYTES
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
