"""HTTP to RunComfy, and the one rule that keeps money safe.

``Transport`` talks to the API origin with the token. ``post_job`` sends a paid submit exactly once
and says which of four things happened: accepted, refused, never left, or unknown. ``open_download``
fetches result files over a session that never sees the token.

Nothing here waits and asks again, but for GETs on a connection that the server had closed: a call
that brings no usable answer raises ``NetworkError``, and whoever polls goes on polling. Proxies and
CA settings come from the environment, as requests takes them; ``.netrc`` is not read, since it
would replace or add credentials.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from . import answers, errors
from .answers import Answer
from .settings import is_loopback

CONNECT_S = 15.0  # while sending, it bounds each piece of a streamed submit
READ_S = 30.0
SUBMIT_LEAST_BYTES_S = 65536  # a slower line is broken off: 64 MiB get 17 minutes
SUBMIT_ANSWER_S = 120.0
DOWNLOAD_READ_S = 60.0
MAX_ANSWER_BYTES = 4 << 20
DOWNLOAD_DOMAINS = ("runcomfy.net", "runcomfy.com")
_WAIT_OUT = (408, 425, 429)
_NO_RETRY = urllib3.Retry(0, read=False)
# only closed connections: a 429 or 503 is for the poller, who shows it and minds Retry-After
_RETRY_GET = urllib3.Retry(
    connect=1, read=1, status=0, other=0, redirect=0, respect_retry_after_header=False
)
# what requests and its layers raise; some errors of urllib3, ssl and sockets come through unwrapped
_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


class _Auth(requests.auth.AuthBase):
    """Sets the token, or nothing; either way requests does not look into .netrc."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _CountedBody:
    """A request body that knows whether its last byte was handed to the socket.

    File-like, so that requests streams it: each piece gets the full connect time-out instead of
    all of it together. Reading past the deadline raises, which breaks the send off before its end.
    """

    def __init__(self, data: bytes, clock: Callable[[], float]) -> None:
        self._data = memoryview(data)
        self._sent = 0
        self._clock = clock
        self._limit_s = send_limit_s(len(data))
        self._deadline = clock() + self._limit_s

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[bytes]:  # its presence marks a stream for requests
        while piece := self.read(16384):
            yield piece

    def read(self, size: int = -1) -> bytes:
        if self._clock() > self._deadline:
            raise TimeoutError(f"sending took more than {self._limit_s:.0f} s")
        end = len(self._data) if size < 0 else min(self._sent + size, len(self._data))
        piece = bytes(self._data[self._sent : end])
        self._sent = end
        return piece

    @property
    def handed_over(self) -> bool:
        return self._sent >= len(self._data)


def send_limit_s(size: int) -> float:
    """How long sending a submit of ``size`` bytes may take, connecting included, in seconds."""
    return 2 * CONNECT_S + size / SUBMIT_LEAST_BYTES_S


class Transport:
    """One API origin and one token. Safe to use from several threads; ``close`` when done."""

    def __init__(
        self, origin: str, token: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.origin = origin
        self._token = token
        self._clock = clock
        self._session = _session(_RETRY_GET)

    @property
    def account(self) -> str:
        """A name for the token's account that does not give the token away."""
        return hashlib.sha256(f"runcomfy-kling {self._token}".encode()).hexdigest()[:16]

    def close(self) -> None:
        """Close idle connections; a later call opens new ones."""
        self._session.close()

    def get(self, path: str, params: Mapping[str, str] | None = None) -> Answer:
        """GET a JSON object.

        Raises:
            NetworkError: No usable answer; asking again is safe.
            ApiError: RunComfy's clear refusal.
        """
        return self._call(self._session, "GET", path, params, READ_S)

    def post(self, path: str, *, timeout_s: float = READ_S) -> Answer:
        """POST without a body, once; ``timeout_s`` to connect, and again to answer.

        Raises as ``get``.
        """
        with _session(_NO_RETRY) as session:
            return self._call(session, "POST", path, None, timeout_s)

    @staticmethod
    def post_limit_s(payload: Mapping[str, Any]) -> float:
        """The longest that ``post_job`` can take for this payload, in seconds."""
        return send_limit_s(len(json.dumps(payload))) + SUBMIT_ANSWER_S * 2

    def post_job(self, path: str, payload: Mapping[str, Any]) -> Answer:
        """Send a paid submit once, over a fresh connection.

        Returns:
            A 2xx answer that carries a ``request_id``: the job was accepted.

        Raises:
            ApiError: Refused: a 4xx, or JSON with an ``error_code``, and no ``request_id``.
            NeverLeft: The last byte of the body was never handed over; it may be sent again.
            SubmitUnknown: Anything else. It must not be sent again.
        """
        body = _CountedBody(json.dumps(payload).encode(), self._clock)
        try:
            with (
                _session(_NO_RETRY) as session,
                session.post(
                    self.origin + path,
                    data=body,
                    headers={"Content-Type": "application/json", "Connection": "close"},
                    auth=_Auth(self._token),
                    timeout=(CONNECT_S, SUBMIT_ANSWER_S),
                    allow_redirects=False,
                    stream=True,
                ) as response,
            ):
                content = self._read(response, SUBMIT_ANSWER_S)
        except _FAILURES as error:
            reason = answers.reason(error, self._token)
            if not body.handed_over:
                raise errors.NeverLeft(
                    f"The job could not be sent to {self.origin} ({reason}). Nothing was charged."
                ) from None
            raise _unknown(f"The job was sent, but no whole answer came back ({reason}).") from None
        parsed = answers.parse(content)
        request_id = _request_id(parsed)
        if parsed is not None and request_id and 200 <= response.status_code < 300:
            return Answer(response.status_code, parsed)
        if not request_id and answers.is_refusal(response.status_code, parsed):
            raise answers.refusal(
                response.status_code,
                parsed,
                "RunComfy refused the job, nothing was charged",
                token=self._token,
                retry_after=response.headers.get("Retry-After"),
            )
        said = answers.words(parsed, self._token)
        raise _unknown(
            f"RunComfy answered the job with HTTP {response.status_code}"
            + (f" ({said})." if said else " and neither a request id nor a clear refusal."),
            request_id,
        )

    @contextmanager
    def open_download(self, url: str, *, start: int = 0) -> Iterator[requests.Response]:
        """Open a result file for streaming, from byte ``start`` on; no token, no redirects.

        Yields:
            The response: 206 from ``start`` on, 200 from the beginning, or 416 past the end.

        Raises:
            ApiError: The address is not one that results come from, or the file is not there.
            NetworkError: No usable answer, or the line broke while reading; asking again is safe.
        """
        self._check_download_url(url)
        headers = {"Accept-Encoding": "identity"}  # ranges count bytes of the file itself
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with (
                _session(_NO_RETRY) as session,
                session.get(
                    url,
                    headers=headers,
                    auth=_Auth(None),
                    timeout=(CONNECT_S, DOWNLOAD_READ_S),
                    allow_redirects=False,
                    stream=True,
                ) as response,
            ):
                code = response.status_code
                if code >= 500 or code in _WAIT_OUT:
                    raise errors.NetworkError(
                        f"The clip's host answered HTTP {code}.",
                        retry_after_s=answers.retry_after_s(response.headers.get("Retry-After")),
                    )
                if code not in (200, 206, 416):
                    raise errors.ApiError(
                        f"The clip's host answered HTTP {code}.", status_code=code
                    )
                yield response
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise errors.NetworkError(
                f"The download broke off ({answers.reason(error)})."
            ) from None

    def _check_download_url(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port, host = parts.port, parts.hostname or ""
        except ValueError:
            parts, port, host = urlsplit(""), None, ""
        if f"{parts.scheme}://{parts.netloc}" == self.origin and is_loopback(host):
            return
        own = any(host == domain or host.endswith(f".{domain}") for domain in DOWNLOAD_DOMAINS)
        if parts.scheme == "https" and own and port in (None, 443) and "@" not in parts.netloc:
            return
        raise errors.ApiError(
            f"The clip's address is not one that RunComfy's results come from: "
            f"{parts.scheme or 'no scheme'}://{host or '(no host)'}. Clips are fetched over https "
            f"from {' and '.join('*.' + domain for domain in DOWNLOAD_DOMAINS)} only.",
            status_code=0,
        )

    def _call(
        self,
        session: requests.Session,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        timeout_s: float,
    ) -> Answer:
        try:
            with session.request(
                method,
                self.origin + path,
                params=params,
                auth=_Auth(self._token),
                timeout=(min(CONNECT_S, timeout_s), timeout_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = self._read(response, timeout_s)
        except _FAILURES as error:
            reason = answers.reason(error, self._token)
            raise errors.NetworkError(f"{self.origin} did not answer ({reason}).") from None
        code = response.status_code
        parsed = answers.parse(content)
        retry_after = response.headers.get("Retry-After")
        if parsed is None or code in _WAIT_OUT or code >= 500 or 300 <= code < 400:
            said = answers.words(parsed, self._token) or ("" if parsed else "no JSON")
            raise errors.NetworkError(
                f"{self.origin} answered HTTP {code}" + (f" ({said})." if said else "."),
                retry_after_s=answers.retry_after_s(retry_after),
            )
        if answers.is_refusal(code, parsed):
            raise answers.refusal(code, parsed, "RunComfy refused the call", token=self._token)
        return Answer(code, parsed)

    def _read(self, response: requests.Response, limit_s: float) -> bytes:
        deadline = self._clock() + limit_s
        content = bytearray()
        for piece in response.iter_content(16):  # small, so that a trickle meets the deadline
            content += piece
            if len(content) > MAX_ANSWER_BYTES:
                raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
            if self._clock() > deadline:
                raise TimeoutError(f"the answer took more than {limit_s:.0f} s")
        return bytes(content)


def _session(retry: urllib3.Retry) -> requests.Session:
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers["User-Agent"] = "runcomfy-kling"
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _unknown(what: str, request_id: str | None = None) -> errors.SubmitUnknown:
    return errors.SubmitUnknown(
        f"{what} The job may be running and may be charged, so it is not sent again by itself. "
        "Look for it on RunComfy's Generations page; to pay for a new take, change the seed.",
        request_id=request_id,
    )


def _request_id(body: Mapping[str, Any] | None) -> str | None:
    value = (body or {}).get("request_id")
    return value if isinstance(value, str) and value else None
