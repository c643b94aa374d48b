"""The picture inside the submit itself, as a ``data:`` URI.

RunComfy's own node pack sends exactly this; its API page asks for public URLs. The limit is the
one that pack keeps to, since the server's own is not published.
"""

import base64

MAX_IMAGE_BYTES = 6 << 20


class InlineUploader:
    """Needs no host, no account and no network of its own."""

    max_bytes = MAX_IMAGE_BYTES

    def upload(self, data: bytes, content_type: str) -> str:
        """``data`` as a ``data:`` URI."""
        return f"data:{content_type};base64,{base64.b64encode(data).decode('ascii')}"
