"""Which host is used, by the settings: the one place that knows all of them."""

import threading
from pathlib import Path

from ..errors import ConfigError
from ..upload_settings import (
    AUTO,
    CLOUDFLARED,
    INLINE,
    OBJECT_STORE,
    PUBLIC_ADDRESS,
    TEMPORARY_HOST,
    UploadSettings,
)
from .asset_server import AssetListener
from .assets import Assets
from .base import Hosted, Uploader
from .cloudflared import QuickTunnel
from .inline import InlineUploader
from .object_store import ObjectStore
from .public_address import Door, FixedWay, PublicAddress
from .temporary_host import TemporaryHost

NO_ADDRESS = (
    "No host is set up that gives a picture an address: inline, the default, puts it into the "
    "request itself. Set RUNCOMFY_OBJECT_STORE_URL or RUNCOMFY_PUBLIC_ADDRESS, choose "
    "temporary_host, or wire the picture straight to the Kling node. Nothing was uploaded or "
    "charged."
)


class NotSetUp:
    """Stands for a host that cannot be used, and says why when it is needed.

    What needs no upload, such as a finished clip, still works meanwhile.
    """

    max_bytes = max_video_bytes = 1 << 30
    max_total_bytes = None
    reuse_key = ""
    cleans_up = False

    def __init__(self, name: str, error: ConfigError) -> None:
        self.name = name
        self._error = error

    def notice(self, expires_at: float | None = None) -> str:
        """Nothing to tell."""
        return ""

    def upload(self, data: bytes, content_type: str) -> Hosted:
        """Raises the ConfigError."""
        raise self._error

    def release(self, url: str) -> None:
        """Nothing was uploaded."""


class Hosts:
    """The hosts of one process: they share the asset folder, its listeners and its tunnels."""

    def __init__(self, folder: Path) -> None:
        """Take the folder of the assets; nothing is opened yet."""
        self.assets = Assets(folder)
        self._folder = folder
        self._listeners: dict[int, AssetListener] = {}
        self._doors: dict[str, Door] = {}
        self._lock = threading.Lock()

    def choose(self, wanted: UploadSettings, *, local_api: bool) -> Uploader:
        """The host that the settings ask for.

        Args:
            wanted: The settings.
            local_api: RunComfy is a stand-in on this machine: plain http on loopback will do.
        """
        name = wanted.host if wanted.host != AUTO else _first_set_up(wanted)
        try:
            if name == OBJECT_STORE:
                return self._object_store(wanted, local_api)
            if name == PUBLIC_ADDRESS:
                return self._public_address(wanted, local_api)
            if name == TEMPORARY_HOST:
                return TemporaryHost(wanted.temporary_host_url, hours=wanted.hours)
            _refuse_half(wanted)
            return InlineUploader()
        except ConfigError as error:
            return NotSetUp(name, error)

    def choose_address(self, wanted: UploadSettings, *, local_api: bool) -> Uploader:
        """Likewise, but only a host that gives addresses; for a stand-in there always is one.

        Raises:
            ConfigError: There is none.
        """
        chosen = self.choose(wanted, local_api=local_api)
        if chosen.name != INLINE or isinstance(chosen, NotSetUp):
            return chosen
        if not local_api or wanted.host == INLINE:
            raise ConfigError(NO_ADDRESS)
        with self._lock:
            origin = self._listener(0).origin
            return PublicAddress(self._fixed_door(origin), hours=wanted.hours)

    def _object_store(self, wanted: UploadSettings, local_api: bool) -> ObjectStore:
        if not wanted.object_store_url:
            raise ConfigError(
                "RUNCOMFY_UPLOAD_HOST is object_store, but no bucket is named: "
                "RUNCOMFY_OBJECT_STORE_URL is missing. Set it to such as s3://my-bucket/pictures. "
                "Nothing was charged."
            )
        return ObjectStore(
            wanted.object_store_url,
            hours=wanted.hours,
            cleanup=wanted.cleanup,
            local_api=local_api,
        )

    def _public_address(self, wanted: UploadSettings, local_api: bool) -> PublicAddress:
        address, port = wanted.public_address, wanted.asset_port
        if not address:
            raise ConfigError(
                "RUNCOMFY_UPLOAD_HOST is public_address, but no address is set: "
                "RUNCOMFY_PUBLIC_ADDRESS is missing. Set it to such as "
                "https://pictures.example.org or to cloudflared. Nothing was charged."
            )
        if address.startswith("http://") and not local_api:
            raise ConfigError(
                f"RUNCOMFY_PUBLIC_ADDRESS is {address}, this machine's own name for itself: good "
                "for a rehearsal, but RunComfy cannot fetch from it. Set an https address. "
                "Nothing was charged."
            )
        with self._lock:
            if address == CLOUDFLARED:
                listener = self._listener(port or 0)
                key = f"{CLOUDFLARED} {listener.port}"
                if key not in self._doors:
                    self._doors[key] = Door(self.assets, QuickTunnel(listener.port, self._folder))
                return PublicAddress(self._doors[key], hours=wanted.hours)
            if port:
                self._listener(port)
            return PublicAddress(self._fixed_door(address), hours=wanted.hours)

    def _listener(self, port: int) -> AssetListener:
        if port not in self._listeners:
            self._listeners[port] = AssetListener(self.assets, port)
        return self._listeners[port]

    def _fixed_door(self, origin: str) -> Door:
        return self._doors.setdefault(origin, Door(self.assets, FixedWay(origin)))


def _first_set_up(wanted: UploadSettings) -> str:
    if wanted.object_store_url:
        return OBJECT_STORE
    return PUBLIC_ADDRESS if wanted.public_address else INLINE


def _refuse_half(wanted: UploadSettings) -> None:
    if wanted.host == AUTO and wanted.asset_port:
        raise ConfigError(
            f"RUNCOMFY_ASSET_PORT is {wanted.asset_port}, but RUNCOMFY_PUBLIC_ADDRESS is missing: "
            "set it to the https address that leads to this port, or to cloudflared; or unset the "
            "port. Nothing was charged."
        )
