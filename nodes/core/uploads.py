"""What was uploaded where: the same bytes go to the same host once while their address lives.

Addresses are remembered in the ledger with their expiry. They also tell which content an address of
our own stands for, so that a picture uploaded again is still the same request.

Whoever uploads is a *user* of the address. When the last one has ended, hosts that clean up take
the bytes away. An upload without a user stays until it expires.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from .errors import ConfigError, InputError, LedgerError, UploadError
from .ledger import Ledger
from .ledger_schema import NOW, uploads
from .uploaders import reach
from .uploaders.base import Hosted, Uploader, until

log = logging.getLogger("runcomfy")

REUSE_MARGIN_S = 3600.0  # a queued job may wait so long before RunComfy fetches its picture
REUSE_MARGIN_PART = 0.9  # of a life that is itself no longer than that
KEEP_S = 90 * 86400.0  # how long an ended address is still known


@dataclass(frozen=True)
class Upload:
    """A remembered address. ``expires_at`` in seconds since 1970."""

    host: str
    sha256: str
    url: str
    expires_at: float
    is_over: bool


@dataclass
class _Live:
    """An address in use by this process; None among the users stands for "until it expires"."""

    uploader: Uploader
    lock: threading.Lock
    users: set[object] = field(default_factory=set)


class Uploads:
    """The uploads of one ledger, in one process. Safe to use from several threads.

    Args:
        ledger: Where addresses are remembered.
        clock: Seconds since 1970.
    """

    def __init__(self, ledger: Ledger, *, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._clock = clock
        self._live: dict[str, _Live] = {}
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._lock = threading.Lock()

    def put(
        self, uploader: Uploader, data: bytes, content_type: str, *, user: object = None
    ) -> Hosted:
        """Make ``data`` reachable, by an address that is still good where there is one.

        Args:
            uploader: The host.
            data: The file.
            content_type: Such as ``image/png``.
            user: Who needs it, until ``release``; None: it stays until it expires.

        Raises:
            ConfigError: The host is not, or only half, set up.
            UploadError: The host does not take it.
            LedgerError: It cannot be remembered.
        """
        digest = hashlib.sha256(data).hexdigest()
        lock = self._lock_of(uploader.reuse_key, digest)
        with lock:  # a second upload of the same bytes waits for the first
            known = self._find(uploader.reuse_key, digest) if uploader.reuse_key else None
            if known is not None and reach.look(known.url, data).is_there:
                hosted = Hosted(known.url, known.expires_at)
            else:
                hosted = uploader.upload(data, content_type)
                if hosted.expires_at is None:  # no address of its own
                    return hosted
                self._remember(uploader, hosted.url, digest, hosted.expires_at - self._clock())
            with self._lock:
                live = self._live.setdefault(hosted.url, _Live(uploader, lock))
                live.users.add(user)
            notice = uploader.notice(hosted.expires_at)
            return replace(hosted, notes=(notice, *hosted.notes) if notice else hosted.notes)

    def release(self, user: object) -> None:
        """This user has ended; what nobody else needs is taken away, as far as that works."""
        with self._lock:
            used = [(url, live) for url, live in self._live.items() if user in live.users]
        for url, live in used:
            with live.lock:
                with self._lock:
                    live.users.discard(user)
                    if live.users or self._live.get(url) is not live:
                        continue
                    del self._live[url]
                try:
                    if live.uploader.cleans_up:
                        self._forget(url)
                        live.uploader.release(url)
                except (UploadError, ConfigError, LedgerError) as error:
                    log.warning("%s", error)

    def stands_for(self, url: str) -> str:
        """What a request is known by: the content where ``url`` is of our own, else ``url``.

        The same picture uploaded again, at a new address, is no new request.
        """
        known = self.known(url) if url else None
        return f"sha256:{known.sha256}" if known else url

    def check_alive(self, url: str, name: str) -> None:
        """Refuse an address of our own that has ended; raises InputError. ``name`` is its input."""
        known = self.known(url) if url else None
        if known is not None and known.is_over:
            raise InputError(
                f"{name} is an address that Upload Image made at {known.host}. It ended on "
                f"{until(known.expires_at)}, so RunComfy could not fetch the picture. Run Upload "
                "Image again for a new one, or wire the picture itself. Nothing was charged."
            )

    def is_good(self, url: str) -> bool:
        """Whether an address of our own still works long enough for a new job."""
        query = sa.select(uploads.c.id).where(uploads.c.url == url, uploads.c.good_until > NOW)
        with self._ledger.transaction("read") as conn:
            return conn.execute(query).first() is not None

    def known(self, url: str) -> Upload | None:
        """What an address of our own stands for, also when it has ended; None for any other."""
        query = sa.select(uploads, (uploads.c.expires_at <= NOW).label("is_over"))
        query = query.where(uploads.c.url == url).order_by(uploads.c.id.desc()).limit(1)
        with self._ledger.transaction("read") as conn:
            return _upload(conn.execute(query).first())

    def _lock_of(self, reuse_key: str, digest: str) -> threading.Lock:
        if not reuse_key:
            return threading.Lock()
        with self._lock:
            return self._locks.setdefault((reuse_key, digest), threading.Lock())

    def _find(self, reuse_key: str, digest: str) -> Upload | None:
        query = sa.select(uploads, sa.literal(False).label("is_over")).where(
            uploads.c.reuse_key == reuse_key,
            uploads.c.sha256 == digest,
            uploads.c.good_until > NOW,
        )
        with self._ledger.transaction("read") as conn:
            return _upload(conn.execute(query.order_by(uploads.c.id.desc()).limit(1)).first())

    def _remember(self, uploader: Uploader, url: str, digest: str, lives_s: float) -> None:
        margin_s = min(REUSE_MARGIN_S, REUSE_MARGIN_PART * lives_s)
        with self._ledger.transaction("written") as conn:
            conn.execute(sa.delete(uploads).where(uploads.c.expires_at < NOW - KEEP_S))
            conn.execute(
                sa.insert(uploads).values(
                    reuse_key=uploader.reuse_key,
                    host=uploader.name,
                    sha256=digest,
                    url=url,
                    good_until=NOW + (lives_s - margin_s),
                    expires_at=NOW + lives_s,
                )
            )

    def _forget(self, url: str) -> None:
        """From now on it has ended; what it stood for is still known."""
        with self._ledger.transaction("written") as conn:
            conn.execute(
                sa.update(uploads)
                .where(uploads.c.url == url)
                .values(good_until=0.0, expires_at=NOW)
            )


def _upload(found: Any) -> Upload | None:
    if found is None:
        return None
    return Upload(found.host, found.sha256, found.url, found.expires_at, bool(found.is_over))
