"""HTTP to RunComfy, and the one rule that keeps money safe.

``Transport`` talks to the API origin with the token. ``post_job`` sends a paid submit exactly once
and says which of four things happened: accepted, refused, never left, or unknown. ``open_download``
fetches result files over a session that never sees the token.

Nothing here asks again: a call that brings no usable answer raises ``NetworkError``, and whoever
polls goes on polling. Proxies and CA settings come from the environment, as requests takes them,
but this machine itself is reached directly. ``.netrc`` is not read, since it would replace or add
credentials, and no redirect is followed or even read.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests import Response as Response  # for those who read downloads

from . import answers, errors
from .answers import Answer
from .settings import is_loopback
from .submit_body import SubmitBody, send_limit_s

CONNECT_S = 15.0  # while sending, it bounds each piece of a streamed submit
READ_S = 30.0
SUBMIT_ANSWER_S = 120.0
DOWNLOAD_READ_S = 60.0
MAX_ANSWER_BYTES = 96 << 20  # an answer may echo a request with its pictures
DOWNLOAD_DOMAINS = ("runcomfy.net", "runcomfy.com")
PIECE_BYTES = 64 << 10
POOL = 64
# stricter than any parser: two parsers may read a sloppy address differently
_PLAIN_URL = re.compile(r"https?://[A-Za-z0-9.-]+(:\d+)?/[\x21-\x5b\x5d-\x7e]*")
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
# what requests and its layers raise; some errors of urllib3, ssl and sockets come through unwrapped
FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)

# our own addresses are always well formed
_BAD_PROXY = (requests.exceptions.InvalidURL, urllib3.exceptions.LocationParseError)


class Auth(requests.auth.AuthBase):
    """Sets the token, or nothing; either way requests does not look into .netrc."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Session(requests.Session):
    """Keeps no cookies, and does not even read what a redirect says."""

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # more would be thrown away with a warning each; jobs of one run poll over one session
        for scheme in ("https://", "http://"):
            self.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=POOL))
        self.headers["User-Agent"] = "runcomfy-kling"
        self.headers["Accept-Encoding"] = "identity"  # what was cut can still be read
        # a proxy could not reach this machine, and would see the token of a plain http request
        self.trust_env = not is_loopback(urlsplit(origin).hostname)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: requests would read a redirect's whole body even where it is not followed."""


class Transport:
    """One API origin and one token. Safe to use from several threads; ``close`` when done."""

    def __init__(
        self, origin: str, token: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.origin = origin
        self._token = token
        self._clock = clock
        self._session = Session(origin)

    @property
    def account(self) -> str:
        """A name for the token's account that does not give the token away."""
        return hashlib.sha256(f"runcomfy-kling {self._token}".encode()).hexdigest()[:16]

    def close(self) -> None:
        """Close idle connections; a later call opens new ones."""
        self._session.close()

    def clean(self, words: object) -> str:
        """A server's words, fit to be shown: short, without the token and without media."""
        return answers.clean(words, self._token)

    def get(
        self, path: str, params: Mapping[str, str] | None = None, *, timeout_s: float | None = None
    ) -> Answer:
        """GET a JSON object; ``timeout_s`` to connect, and again to answer.

        Raises:
            NetworkError: No usable answer; asking again is safe.
            ApiError: RunComfy's clear refusal.
        """
        return self._call(self._session, "GET", path, params, timeout_s or READ_S)

    def post(self, path: str, *, timeout_s: float = READ_S) -> Answer:
        """POST without a body, once; ``timeout_s`` to connect, and again to answer.

        Raises as ``get``.
        """
        with Session(self.origin) as session:
            return self._call(session, "POST", path, None, timeout_s)

    @staticmethod
    def post_limit_s(payload: Mapping[str, Any]) -> float:
        """The longest that ``post_job`` can take for this payload, in seconds."""
        return 2 * CONNECT_S + send_limit_s(len(json.dumps(payload))) + 2 * SUBMIT_ANSWER_S

    def post_job(
        self,
        path: str,
        payload: Mapping[str, Any],
        *,
        give_up: Callable[[], bool] = lambda: False,
    ) -> str:
        """Send a paid submit once, over a fresh connection.

        Args:
            path: The model's path.
            payload: The JSON to send.
            give_up: Asked before each piece; True breaks the send off while that is still free.

        Returns:
            The request id of the accepted job.

        Raises:
            ApiError: Refused: a 4xx, or JSON with an ``error_code``, and no ``request_id``.
            NeverLeft: The last byte of the body was never handed over; it may be sent again.
            SubmitUnknown: Anything else. It must not be sent again.
        """
        body = SubmitBody(json.dumps(payload).encode(), clock=self._clock, give_up=give_up)
        try:
            return self._post_job(path, body)
        except (errors.ApiError, errors.NeverLeft, errors.SubmitUnknown):
            raise
        # whatever it is, what counts is how far the body got
        except BaseException as error:  # noqa: BLE001
            reason = self._reason(error)
            if body.handed_over:
                raise _unknown(f"The job was sent, but its answer was lost ({reason}).") from None
            raise errors.NeverLeft(
                f"The job could not be sent to {self.origin} ({reason}). Nothing was charged."
            ) from None

    def _post_job(self, path: str, body: SubmitBody) -> str:
        received = bytearray()
        cut: BaseException | None = None
        with (
            Session(self.origin) as session,
            session.post(
                self.origin + path,
                data=body,
                headers={"Content-Type": "application/json", "Connection": "close"},
                auth=Auth(self._token),
                timeout=(CONNECT_S, SUBMIT_ANSWER_S),
                allow_redirects=False,
                stream=True,
            ) as response,
        ):
            try:
                self._read(response, SUBMIT_ANSWER_S, into=received)
            except FAILURES as error:
                cut = error  # a whole JSON object may have arrived all the same
        status_code = response.status_code
        parsed = answers.parse(bytes(received))
        request_id = _request_id(parsed)
        if request_id and 200 <= status_code < 300:
            return request_id
        if not request_id and not (cut and parsed is None and body.handed_over):
            if answers.is_refusal(status_code, parsed):
                raise answers.refusal(
                    status_code,
                    parsed,
                    "RunComfy refused the job, nothing was charged",
                    token=self._token,
                    retry_after=response.headers.get("Retry-After"),
                )
            if not body.handed_over:
                raise errors.NeverLeft(
                    f"{self.origin} answered HTTP {status_code} before the job was sent. Nothing "
                    "was charged."
                )
        said = answers.words(parsed, self._token) or (self._reason(cut) if cut else "")
        raise _unknown(
            f"RunComfy answered the job with HTTP {status_code}"
            + (f" ({said})." if said else " and neither a request id nor a clear refusal."),
            request_id,
        )

    @contextmanager
    def open_download(
        self, url: str, *, start: int = 0, etag: str | None = None
    ) -> Iterator[requests.Response]:
        """Open a result file for streaming, from byte ``start`` on; no token, no redirects.

        Args:
            url: A result's address.
            start: The first byte wanted.
            etag: The file's version, where ``start`` goes on with an earlier answer.

        Yields:
            The response: 206 from ``start`` on, 200 from the beginning, or 416 past the end.

        Raises:
            ApiError: The address is not one that results come from, or the file is not there.
            NetworkError: No usable answer; asking again is safe.
        """
        self._check_download_url(url)
        headers = {}
        if start:
            headers["Range"] = f"bytes={start}-"
            if etag and not etag.startswith("W/"):
                headers["If-Range"] = etag
        with Session(url) as session:
            try:
                response = session.get(
                    url,
                    headers=headers,
                    auth=Auth(None),
                    timeout=(CONNECT_S, DOWNLOAD_READ_S),
                    allow_redirects=False,
                    stream=True,
                )
            except FAILURES as error:
                raise errors.NetworkError(
                    f"The clip's host did not answer ({self._reason(error)})."
                ) from None
            with response:
                code = response.status_code
                if code >= 500 or code in answers.WAIT_OUT:
                    raise errors.NetworkError(
                        f"The clip's host answered HTTP {code}.",
                        retry_after_s=answers.retry_after_s(response.headers.get("Retry-After")),
                    )
                if code not in (200, 206, 416):
                    raise errors.ApiError(
                        f"The clip's host answered HTTP {code}.", status_code=code
                    )
                yield response

    def pieces(self, response: requests.Response) -> Iterator[bytes]:
        """What arrives of an open answer, as it arrives; raises NetworkError when it is cut."""
        try:
            yield from _arriving(response)
        except FAILURES as error:
            raise errors.NetworkError(f"The download broke off ({self._reason(error)}).") from None

    def _check_download_url(self, url: str) -> None:
        parts = urlsplit(url if _PLAIN_URL.fullmatch(url) else "")
        host = parts.hostname or ""
        if f"{parts.scheme}://{parts.netloc}" == self.origin and is_loopback(host):
            return
        own = any(host == domain or host.endswith(f".{domain}") for domain in DOWNLOAD_DOMAINS)
        if parts.scheme == "https" and own and parts.port in (None, 443):
            return
        raise errors.ForeignAddress(
            f"The clip's address is not one that RunComfy's results come from: "
            f"{self.clean(url)[:200] or '(empty)'}. Clips are fetched over https from "
            f"{' and '.join('*.' + domain for domain in DOWNLOAD_DOMAINS)} only."
        )

    def _call(
        self,
        session: requests.Session,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        timeout_s: float,
    ) -> Answer:
        content = bytearray()
        try:
            with session.request(
                method,
                self.origin + path,
                params=params,
                auth=Auth(self._token),
                timeout=(min(CONNECT_S, timeout_s), timeout_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                self._read(response, timeout_s, into=content)
        except FAILURES as error:
            raise errors.NetworkError(
                f"{self.origin} did not answer ({self._reason(error)})."
            ) from None
        code = response.status_code
        parsed = answers.parse(bytes(content))
        if parsed is not None and code < 300 and answers.is_job_state(code, parsed):
            return Answer(code, parsed)  # a failed job has an error_code too; its state says more
        if parsed is None or answers.is_passing(code, parsed) or 300 <= code < 400:
            said = answers.words(parsed, self._token).rstrip(". ") or ("" if parsed else "no JSON")
            kind = errors.SlowDown if answers.is_rate_limit(code, parsed) else errors.NetworkError
            raise kind(
                f"{self.origin} answered HTTP {code}" + (f" ({said})." if said else "."),
                retry_after_s=answers.retry_after_s(response.headers.get("Retry-After")),
            )
        if answers.is_refusal(code, parsed):
            raise answers.refusal(code, parsed, "RunComfy refused the call", token=self._token)
        return Answer(code, parsed)

    def _read(self, response: requests.Response, limit_s: float, *, into: bytearray) -> None:
        deadline = self._clock() + limit_s
        for piece in _arriving(response):
            into += piece
            if len(into) > MAX_ANSWER_BYTES:
                raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES >> 20} MiB")
            if self._clock() > deadline:
                raise TimeoutError(f"the answer took more than {limit_s:.0f} s")

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, _BAD_PROXY):
            return "the proxy address in the environment cannot be read"  # may hold a password
        return answers.reason(error, self._token)


def _arriving(response: requests.Response) -> Iterator[bytes]:
    """Pieces as they arrive, so that a trickle is seen as one; nothing of a cut answer is lost."""
    if hasattr(response.raw, "read1"):
        while piece := response.raw.read1(PIECE_BYTES):
            yield piece
    else:  # urllib3 before 2.2
        yield from response.iter_content(1024)


def _unknown(what: str, request_id: str | None = None) -> errors.SubmitUnknown:
    return errors.SubmitUnknown(
        f"{what} The job may be running and may be charged, so it is not sent again by itself. "
        "Look for it on RunComfy's Generations page; to pay for a new take, change the seed.",
        request_id=request_id,
    )


def _request_id(body: Mapping[str, Any] | None) -> str | None:
    value = (body or {}).get("request_id")
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text if _REQUEST_ID.fullmatch(text) else None
