"""Where the token and the other settings come from.

Environment first, then ``settings.json`` in the pack's system user folder (mode 600, not served
by ComfyUI), then the default. Read at each run, never at import, so a changed token works at once.
The file's keys are the variables' names in lower case without ``RUNCOMFY_``: ``api_token``,
``poll_seconds``, ... Every bad value is refused with its name, its limit and the way out.
"""

import contextlib
import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .errors import ConfigError
from .upload_settings import PLACE, UPLOAD_KEYS, UploadSettings, parse_uploads, switch
from .upload_settings import is_loopback as is_loopback

TOKEN_VARIABLES = (
    "RUNCOMFY_API_TOKEN",
    "RUNCOMFY_TOKEN",
    "RUNCOMFY_API_KEY",
    "YOUR_API_TOKEN",  # the name RunComfy's API page uses
)
DEFAULT_API_BASE_URL = "https://model-api.runcomfy.net"
DEFAULT_POLL_S = 3.0
DEFAULT_TIMEOUT_S = 3600.0
DEFAULT_MAX_CONCURRENT_JOBS = 8
DEFAULT_MAX_JOBS_PER_RUN = 8
MAX_JOBS = 1000
FILE_NAME = "settings.json"
FILE_KEYS = (
    "api_token",
    "api_base_url",
    "rehearsal",
    "poll_seconds",
    "timeout_seconds",
    "max_concurrent_jobs",
    "max_jobs_per_run",
    "daily_budget_usd",
    "ledger_url",
    *UPLOAD_KEYS,
)


@dataclass(frozen=True)
class Settings:
    """What one run goes by. Times in seconds. What may hold a secret never shows in a repr.

    ``daily_budget_usd`` None means no limit, ``ledger_url`` None means the SQLite file beside
    ``settings.json``.
    """

    token: str | None = field(default=None, repr=False)
    api_base_url: str = DEFAULT_API_BASE_URL
    rehearsal: bool = False
    poll_s: float = DEFAULT_POLL_S
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_concurrent_jobs: int = DEFAULT_MAX_CONCURRENT_JOBS
    max_jobs_per_run: int = DEFAULT_MAX_JOBS_PER_RUN
    daily_budget_usd: float | None = None
    ledger_url: str | None = field(default=None, repr=False)
    uploads: UploadSettings = field(default_factory=UploadSettings)

    def require_token(self) -> str:
        """The token; raises ConfigError that names every place to set one."""
        if self.token:
            return self.token
        raise ConfigError(
            "No RunComfy API token. Set the environment variable RUNCOMFY_API_TOKEN (token from "
            "your RunComfy profile page) and start ComfyUI again, or put "
            '{"api_token": "..."} into user/__runcomfy_kling/settings.json. '
            "To try everything free and offline, set RUNCOMFY_REHEARSAL=1."
        )


def load(folder: Path, environ: Mapping[str, str]) -> Settings:
    """Settings for one run.

    Args:
        folder: The pack's system user folder; it need not exist.
        environ: The process environment.

    Raises:
        ConfigError: A value cannot be used, or the file cannot be read.
    """
    stored = _read_file(folder / FILE_NAME)

    def text(key: str) -> str | None:
        value = environ.get(f"RUNCOMFY_{key.upper()}", "").strip()
        if value:
            return value
        kept = stored.get(key)
        if kept is None:
            return None
        return str(kept).strip() or None

    token = next((v for name in TOKEN_VARIABLES if (v := environ.get(name, "").strip())), None)
    token = token or text("api_token")
    if token is not None:
        _check_token(token)
    return Settings(
        token=token,
        api_base_url=parse_origin(text("api_base_url") or DEFAULT_API_BASE_URL),
        rehearsal=switch("rehearsal", text("rehearsal")),
        poll_s=_seconds("poll_seconds", text("poll_seconds"), DEFAULT_POLL_S, 1, 60),
        timeout_s=_seconds(
            "timeout_seconds", text("timeout_seconds"), DEFAULT_TIMEOUT_S, 10, 86400
        ),
        max_concurrent_jobs=_count(
            "max_concurrent_jobs", text("max_concurrent_jobs"), DEFAULT_MAX_CONCURRENT_JOBS
        ),
        max_jobs_per_run=_count(
            "max_jobs_per_run", text("max_jobs_per_run"), DEFAULT_MAX_JOBS_PER_RUN
        ),
        daily_budget_usd=_dollars("daily_budget_usd", text("daily_budget_usd")),
        ledger_url=text("ledger_url"),
        uploads=parse_uploads(text),
    )


def parse_origin(url: str) -> str:
    """``scheme://host[:port]`` of an API address; plain http only on this machine."""
    hint = f"Set RUNCOMFY_API_BASE_URL to an origin such as {DEFAULT_API_BASE_URL}."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"The API address {url!r} is not a URL. {hint}") from None
    if parts.username or parts.password:
        raise ConfigError(f"The API address must not contain a user name or password. {hint}")
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ConfigError(f"The API address {url!r} is not a web origin. {hint}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(
            f"The API address {url!r} has a path; only the origin is wanted, without /v1. {hint}"
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ConfigError(f"The API address {url!r} would send the token unencrypted. {hint}")
    host = parts.hostname.rstrip(".")
    host = f"[{host}]" if ":" in host else host
    is_default = port in (None, {"https": 443, "http": 80}[parts.scheme])
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{port}")


def _read_file(path: Path) -> Mapping[str, object]:
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            with contextlib.suppress(OSError):  # a read-only mount: its owner decides
                path.chmod(stat.S_IRUSR | stat.S_IWUSR)  # it may hold the token
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        # a JSON error quotes no content, only its position: the token cannot show here
        raise ConfigError(
            f"{FILE_NAME} in the pack's user folder cannot be read: {error}"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{FILE_NAME} must hold one JSON object, such as {{}}.")
    unknown = sorted(set(values) - set(FILE_KEYS))
    if unknown:
        raise ConfigError(
            f"{FILE_NAME} holds the unknown key {unknown[0]!r}. Known are: {', '.join(FILE_KEYS)}."
        )
    return values


def _check_token(token: str) -> None:
    # requests would raise an error that quotes the whole header
    if not token.isascii() or not token.isprintable() or set(token) & set(" \"'"):
        raise ConfigError(
            "The RunComfy API token contains a space, a quote or another character that no token "
            "has. "
            "Copy it again from your RunComfy profile page, without 'Bearer' and quotes."
        )


def _count(key: str, value: str | None, default: int) -> int:
    if value is None:
        return default
    if not value.isdecimal() or not 1 <= int(value) <= MAX_JOBS:
        raise ConfigError(
            f"RUNCOMFY_{key.upper()} is {value!r} {PLACE}; "
            f"set it to a whole number from 1 to {MAX_JOBS}."
        )
    return int(value)


def _dollars(key: str, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigError(
            f"RUNCOMFY_{key.upper()} is {value!r} {PLACE}; "
            "set it to an amount in USD such as 25, or leave it out for no limit."
        )
    return number


def _seconds(key: str, value: str | None, default: float, low: float, high: float) -> float:
    if value is None:
        return default
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise ConfigError(
            f"RUNCOMFY_{key.upper()} is {value!r} {PLACE}; "
            f"set it to a number of seconds from {low:g} to {high:g}."
        )
    return number
