"""A public file host that forgets after some hours, for whoever has neither bucket nor address.

By the user's explicit choice only, since the picture is public while it is there. The protocol is
litterbox's: one multipart POST, answered by the file's address as plain text.
"""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from .. import plain_http
from ..errors import UploadError
from ..upload_settings import TEMPORARY_HOST, is_loopback
from . import reach
from .base import SUFFIXES, Hosted, until

ATTEMPTS = 3
READ_S = 120.0
_PASSING = (408, 425, 429)


class TemporaryHost:
    """One such host.

    Args:
        url: Where files are POSTed to.
        hours: How long they stay: 1, 12, 24 or 72.
        clock: Seconds since 1970.
        wait: Sleeps for the given seconds between attempts.
    """

    name = TEMPORARY_HOST
    max_bytes = max_video_bytes = 1_000_000_000
    max_total_bytes = None
    cleans_up = False

    def __init__(
        self,
        url: str,
        *,
        hours: int,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url
        self._host = urlsplit(url).hostname or url
        self._hours = hours
        self._clock = clock
        self._wait = wait

    @property
    def reuse_key(self) -> str:
        """Address and hours."""
        return f"{self.name} {self._url} {self._hours}"

    def notice(self, expires_at: float | None = None) -> str:
        """That the picture is public, and until when."""
        moment = expires_at or self._clock() + 3600 * self._hours
        return (
            f"temporary_host: the picture is public at {self._host}, at an address that is not to "
            f"be guessed, until {until(moment)}."
        )

    def upload(self, data: bytes, content_type: str) -> Hosted:
        """POST the bytes under a name that tells nothing; a copy too many costs nothing."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                url = self._post(data, content_type)
                break
            except UploadError:
                raise
            except plain_http.Unreachable as error:
                if attempt == ATTEMPTS:
                    raise UploadError(
                        f"{self._host} (temporary_host) did not take the picture in {ATTEMPTS} "
                        f"attempts: {error}. Nothing was charged. Try later, or set up another "
                        "host."
                    ) from None
                self._wait(2.0**attempt)
        expires_at = self._clock() + 3600 * self._hours
        sight = reach.look(url, data)
        if sight.is_there:
            return Hosted(url, expires_at)
        warning = f"The picture's address at {self._host}, tried from here: {sight.saw}."
        return Hosted(url, expires_at, (warning,))

    def release(self, url: str) -> None:
        """Such a host deletes by itself, and not before."""

    def _post(self, data: bytes, content_type: str) -> str:
        name = f"picture{SUFFIXES.get(content_type, '')}"
        reply = plain_http.ask(
            "POST",
            self._url,
            data={"reqtype": "fileupload", "time": f"{self._hours}h"},
            files={"fileToUpload": (name, data, content_type)},
            read_s=READ_S,
        )
        code = reply.status_code
        if code >= 500 or code in _PASSING:
            raise plain_http.Unreachable(f"HTTP {code}", kind="line")
        said = reply.content.decode("utf-8", "replace").strip()
        if code == 200 and _is_address(said, self._url):
            return said
        shown = "a web page" if reply.is_html else repr(said[:120])
        raise UploadError(
            f"{self._host} (temporary_host) did not take the picture: HTTP {code}, {shown}. "
            "Nothing was charged. Try later, or set up another host."
        )


def _is_address(text: str, host_url: str) -> bool:
    """An https address; one of this machine only from a host on this machine."""
    if not text.isascii() or any(c.isspace() for c in text) or len(text) > 500:
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    here = is_loopback(parts.hostname) and is_loopback(urlsplit(host_url).hostname)
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and here))
