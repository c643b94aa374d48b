"""What RunComfy's answers say: JSON or not, refusal or not, and in which words.

Its refusals come as 4xx and also as HTTP 200 with an ``error_code``, so both are read the same way.
Server words shown to the user are one short line, without the token and without media.
"""

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import errors

MAX_RETRY_AFTER_S = 300.0
WAIT_OUT = (408, 425, 429)
GATEWAY_WORDS = (408, 425, 499)
ABOUT_THE_CALL = (400004, 403001, 404001)  # the token, the account, the request: not the job
_MAX_REASON = 2000
_LEAST_TOKEN = 6  # what is shorter is no token, and stands in many words
_MAX_WORDS = 600
_MEDIA = re.compile(r"data:[\w/+.-]*;base64,[\w+/=%-]*")
# urllib3 puts object addresses and pool names around the reason
_NOISE = re.compile(r"<[^>]*>:? ?|HTTPS?Connection(Pool)?\([^)]*\):? ?")


@dataclass(frozen=True)
class Answer:
    """A JSON object that the API sent, with its HTTP status."""

    status_code: int
    body: Mapping[str, Any]


def parse(content: bytes) -> Mapping[str, Any] | None:
    """The JSON object in ``content``, or None for HTML pages, arrays and empty bodies."""
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def error_code(body: Mapping[str, Any] | None) -> int | None:
    """RunComfy's number for what went wrong; None for none, -1 for one that is no number."""
    value = (body or {}).get("error_code")
    try:
        return int(str(value)) or None if value else None
    except ValueError:
        return -1


def is_refusal(status_code: int, body: Mapping[str, Any] | None) -> bool:
    """Whether an answer is a refusal in RunComfy's own words: a 4xx, or an ``error_code`` of it.

    A 408, 425 or 499, and a code that tells of a fault on RunComfy's side, are words about a
    request that may have been passed on.
    """
    code = error_code(body) or 0
    kind = code // 1000 if code >= 1000 else code  # 504 and 504001 are one kind
    if 500 <= kind < 600 or kind in GATEWAY_WORDS or (code <= 0 and status_code >= 500):
        return False  # a time-out on the way says nothing of what had arrived
    return code != 0 or (400 <= status_code < 500 and status_code not in GATEWAY_WORDS)


def is_passing(status_code: int, body: Mapping[str, Any] | None) -> bool:
    """Whether an answer to a question is about the moment and not about what was asked."""
    statuses = (status_code, (error_code(body) or 0) // 1000)  # 429001 is a kind of 429
    return any(500 <= status < 600 or status in WAIT_OUT for status in statuses)


def is_rate_limit(status_code: int, body: Mapping[str, Any] | None) -> bool:
    """Whether an answer says that there were too many calls."""
    return 429 in (status_code, (error_code(body) or 0) // 1000)


def is_job_state(status_code: int, body: Mapping[str, Any] | None) -> bool:
    """Whether an answer's ``status`` is a job's. ``error`` can also be the call's own."""
    state = str((body or {}).get("status") or "").lower()
    if state != "error":
        return bool(state)
    return not is_passing(status_code, body) and error_code(body) not in ABOUT_THE_CALL


def refusal(
    status_code: int,
    body: Mapping[str, Any] | None,
    what: str,
    *,
    token: str,
    retry_after: str | None = None,
    request_id: str | None = None,
) -> errors.ApiError:
    """The error for a refusal; ``what`` opens its sentence ("RunComfy refused the job").

    RunComfy documents the codes but not their HTTP statuses: where there is a code, it decides.
    """
    code = error_code(body)
    kind: type[errors.ApiError] = errors.ApiError
    hint = ""
    if code == 400004 or (code is None and status_code == 401):
        kind, hint = errors.AuthError, "Compare RUNCOMFY_API_TOKEN with your RunComfy profile page."
    elif code == 403001 or (code is None and status_code == 403):
        kind, hint = errors.AuthError, "Is the token of the account that started this request?"
    elif code == 400002 or (code is None and status_code == 402):
        kind, hint = errors.PaymentError, "Add balance to your RunComfy account."
    elif code == 404001 or (code is None and status_code == 404):
        kind = errors.NotFoundError
    elif status_code == 429 and body is not None:
        kind, hint = errors.RateLimitError, "Wait a little before the next try."
    said = words(body, token).rstrip(". ") or f"HTTP {status_code}"
    return kind(
        f"{what}: {said}. {hint}".strip(),
        status_code=status_code,
        error_code=code,
        retry_after_s=retry_after_s(retry_after),
        request_id=request_id,
    )


def words(body: Mapping[str, Any] | None, token: str | None = None) -> str:
    """What an answer says of its own failure; empty if it says nothing."""
    for key in ("error_message", "detail", "message", "error"):
        value = (body or {}).get(key)
        if value:
            return clean(value, token)
    return ""


def clean(value: object, token: str | None = None) -> str:
    """A server's words as one short line: lists joined, media and the token left out."""
    try:
        text = " ".join(_flatten(value).split())
    except RecursionError:
        text = "an answer nested too deep to read"
    # half an emoji and NUL are JSON, but no database takes them
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    text = _MEDIA.sub("[media]", text)
    text = _redact(text, token)
    return text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 1] + "…"


def reason(error: BaseException, token: str | None = None) -> str:
    """Why a connection failed, without the wrapping that requests and urllib3 put around it."""
    inner: object = error
    while isinstance(inner, BaseException):
        deeper = getattr(inner, "reason", None)
        if not isinstance(deeper, BaseException):
            deeper = next((a for a in inner.args if isinstance(a, BaseException)), None)
        if deeper is None:
            break
        inner = deeper
    text = _NOISE.sub("", _redact(str(inner), token)[:_MAX_REASON])
    return clean(text or type(inner).__name__, token)


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, in either of its forms; None if absent or unreadable."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if seconds == seconds else None


def _redact(text: str, token: str | None) -> str:
    """Before any cut: half a token is still half a secret."""
    return text.replace(token, "[token]") if token and len(token) >= _LEAST_TOKEN else text


def _flatten(value: object) -> str:
    if isinstance(value, Mapping):
        said = value.get("msg") or value.get("message") or value.get("error_message")
        place = value.get("loc")
        if said and isinstance(place, list | tuple):
            where = ".".join(str(part) for part in place if part != "body")
            return f"{where}: {_flatten(said)}"
        return _flatten(said) if said else json.dumps(value, default=str)
    if isinstance(value, list | tuple):
        return "; ".join(_flatten(item) for item in value)
    return str(value)
