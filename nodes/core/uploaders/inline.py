"""The picture inside the submit itself, as a ``data:`` URI.

RunComfy's own node pack sends exactly this; its API page asks for public URLs. The limit is the
one that pack keeps to, since the server's own is not published.
"""

import base64

MAX_IMAGE_BYTES = 6 << 20
MAX_VIDEO_BYTES = 32 << 20
MAX_TOTAL_BYTES = 46 << 20  # 64 MiB of JSON hold 48 MiB as base64, texts aside


class InlineUploader:
    """Needs no host, no account and no network of its own."""

    name = "the request itself"
    max_bytes = MAX_IMAGE_BYTES
    max_video_bytes = MAX_VIDEO_BYTES
    max_total_bytes = MAX_TOTAL_BYTES

    def upload(self, data: bytes, content_type: str) -> str:
        """``data`` as a ``data:`` URI."""
        return f"data:{content_type};base64,{base64.b64encode(data).decode('ascii')}"
