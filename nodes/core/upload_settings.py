"""The settings of where pictures are put for RunComfy to fetch: which host, and how it is reached.

Every value is checked here without any network. Whether a host is set up as a whole is its own
matter: see ``uploaders.choose``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import ConfigError

AUTO, INLINE = "auto", "inline"
OBJECT_STORE, PUBLIC_ADDRESS = "object_store", "public_address"
TEMPORARY_HOST = "temporary_host"
HOSTS = (AUTO, OBJECT_STORE, PUBLIC_ADDRESS, TEMPORARY_HOST, INLINE)
CLOUDFLARED = "cloudflared"
HOURS = (1, 12, 24, 72)  # what the temporary host knows; good for the others too
DEFAULT_HOURS = 24
DEFAULT_TEMPORARY_HOST_URL = "https://litterbox.catbox.moe/resources/internals/api.php"
STORE_SCHEMES = ("s3", "gs", "az")
UPLOAD_KEYS = (
    "upload_host",
    "upload_hours",
    "upload_cleanup",
    "public_address",
    "asset_port",
    "object_store_url",
    "temporary_host_url",
)
PLACE = "in the environment or in settings.json"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class UploadSettings:
    """Where pictures go. ``hours`` is how long their addresses work.

    ``public_address`` is an origin, or ``cloudflared``. ``cleanup`` deletes a bucket's objects when
    their job has ended.
    """

    host: str = AUTO
    hours: int = DEFAULT_HOURS
    cleanup: bool = False
    public_address: str | None = None
    asset_port: int | None = None
    object_store_url: str | None = None
    temporary_host_url: str = DEFAULT_TEMPORARY_HOST_URL


def parse_uploads(text: Callable[[str], str | None]) -> UploadSettings:
    """Settings of uploads; ``text`` gives a setting's value by its key, None where it is not set.

    Raises:
        ConfigError: A value cannot be used.
    """
    host = text("upload_host") or AUTO
    if host not in HOSTS:
        raise ConfigError(
            f"RUNCOMFY_UPLOAD_HOST is {host!r} {PLACE}; set it to one of {', '.join(HOSTS)}."
        )
    hours = text("upload_hours") or str(DEFAULT_HOURS)
    if hours not in map(str, HOURS):
        raise ConfigError(
            f"RUNCOMFY_UPLOAD_HOURS is {hours!r} {PLACE}; set it to one of "
            f"{', '.join(map(str, HOURS))}."
        )
    return UploadSettings(
        host=host,
        hours=int(hours),
        cleanup=switch("upload_cleanup", text("upload_cleanup")),
        public_address=_address(text("public_address")),
        asset_port=_port(text("asset_port")),
        object_store_url=_store_url(text("object_store_url")),
        temporary_host_url=_web_url(text("temporary_host_url") or DEFAULT_TEMPORARY_HOST_URL),
    )


def is_loopback(host: str | None) -> bool:
    """True if ``host`` names this very machine."""
    return host in _LOOPBACK


def switch(key: str, value: str | None) -> bool:
    """A setting that is on or off; raises ConfigError for any other word."""
    known = {"1": True, "true": True, "yes": True, "on": True}
    known |= {"0": False, "false": False, "no": False, "off": False}
    if value is None:
        return False
    if value.lower() not in known:
        raise ConfigError(f"RUNCOMFY_{key.upper()} is {value!r} {PLACE}; set it to 1 or 0.")
    return known[value.lower()]


def _address(value: str | None) -> str | None:
    if value is None or value.lower() == CLOUDFLARED:
        return value and CLOUDFLARED
    hint = (
        "Set it to an origin such as https://pictures.example.org, without a path, "
        f"or to {CLOUDFLARED}."
    )
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ConfigError(f"RUNCOMFY_PUBLIC_ADDRESS is {value!r}, not a URL. {hint}") from None
    host = parts.hostname or ""
    is_local = parts.scheme == "http" and is_loopback(host)
    if parts.username or parts.password:
        raise ConfigError(
            "RUNCOMFY_PUBLIC_ADDRESS holds a user name or password, which RunComfy would not get "
            f"past. {hint}"
        )
    if not (is_local or (parts.scheme == "https" and "." in host)):
        raise ConfigError(
            f"RUNCOMFY_PUBLIC_ADDRESS is {value!r}; RunComfy fetches over https only. {hint}"
        )
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"RUNCOMFY_PUBLIC_ADDRESS is {value!r}, with a path. {hint}")
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def _port(value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 65535):
        raise ConfigError(f"RUNCOMFY_ASSET_PORT is {value!r} {PLACE}; set it from 1 to 65535.")
    return int(value)


def _store_url(value: str | None) -> str | None:
    if value is None:
        return None
    hint = "Set it to such as s3://my-bucket/pictures."
    try:
        parts = urlsplit(value)
    except ValueError:
        raise ConfigError(f"RUNCOMFY_OBJECT_STORE_URL cannot be read. {hint}") from None
    if "@" in parts.netloc or parts.query:  # the value is not repeated: it may hold a key
        raise ConfigError(
            "RUNCOMFY_OBJECT_STORE_URL holds more than a bucket and a prefix. Keys go where that "
            f"store's own tools take them. {hint}"
        )
    if parts.scheme not in STORE_SCHEMES or not parts.netloc:
        raise ConfigError(
            f"RUNCOMFY_OBJECT_STORE_URL is {value!r}; it begins with "
            f"{', '.join(f'{scheme}://' for scheme in STORE_SCHEMES)} and names a bucket. {hint}"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _web_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))
        good = good and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"RUNCOMFY_TEMPORARY_HOST_URL is {value!r}; set it to an https address, such as "
            f"{DEFAULT_TEMPORARY_HOST_URL}."
        )
    return value
