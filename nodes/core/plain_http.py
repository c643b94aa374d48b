"""HTTP to hosts that are not RunComfy's: no token, no cookies, no ``.netrc``, no redirects.

The same stack as ``transport``, so that proxies and CA settings work here too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import requests

from . import answers, errors
from .transport import FAILURES, Auth, Session

CONNECT_S = 15.0


class Unreachable(errors.NetworkError):
    """No answer came. ``kind`` is ``name``, ``certificate`` or ``line``."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Reply:
    """A host's answer, of which ``content`` is at most as much as was asked for."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_html(self) -> bool:
        """Whether it is a web page, such as a login or a gateway's error."""
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        start = self.content[:64].lstrip().lower()
        return kind == "text/html" or start.startswith((b"<!doctype html", b"<html"))


def ask(
    method: str,
    url: str,
    *,
    read_s: float,
    connect_s: float = CONNECT_S,
    most_bytes: int = 64 << 10,
    **options: Any,
) -> Reply:
    """One request and its answer, whatever its status.

    Args:
        method: GET or POST.
        url: The whole address.
        read_s: How long the host may be silent, in seconds.
        connect_s: How long connecting may take, in seconds.
        most_bytes: How much of the answer is read.
        options: As requests takes them: ``headers``, ``data``, ``files``.

    Raises:
        Unreachable: No answer came; why is its text.
    """
    try:
        with (
            Session(url) as session,
            session.request(
                method,
                url,
                auth=Auth(None),
                timeout=(connect_s, read_s),
                allow_redirects=False,
                stream=True,
                **options,
            ) as response,
        ):
            content = bytearray()
            for piece in response.iter_content(4096):
                content += piece
                if len(content) >= most_bytes:
                    break
    except FAILURES as error:
        raise Unreachable(answers.reason(error), kind=_kind(error)) from None
    return Reply(response.status_code, response.headers, bytes(content[:most_bytes]))


def _kind(error: BaseException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "certificate"
    text = repr(error)
    return "name" if "NameResolution" in text or "gaierror" in text else "line"
