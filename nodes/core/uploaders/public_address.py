"""This machine as the host: RunComfy fetches from an address of the user's own.

The bytes stay here, each file under an unguessable token, until its job ends or its time is up.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..upload_settings import PUBLIC_ADDRESS
from . import reach
from .assets import PATH, Assets
from .base import Hosted

LOOK_AGAIN_S = 2.0


class Way(Protocol):
    """How the outside reaches the assets."""

    @property
    def looks(self) -> int:
        """How often to look before a warning: a new name is not known everywhere at once."""
        ...

    def open(self) -> str:
        """The public origin, made ready."""
        ...

    def close(self) -> None:
        """Nothing is handed out any more."""
        ...


@dataclass(frozen=True)
class FixedWay:
    """An address that is there all the time, by the user's own set-up."""

    origin: str
    looks: int = 1

    def open(self) -> str:
        """The address."""
        return self.origin

    def close(self) -> None:
        """It stays."""


@dataclass
class Door:
    """A way and what is handed out over it; shared by all jobs of a process.

    The way is closed when the last file has been taken back or has ended.
    """

    assets: Assets
    way: Way
    clock: Callable[[], float] = time.time
    _out: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _timer: threading.Timer | None = None

    def add(self, data: bytes, content_type: str, expires_at: float) -> str:
        """Hand out ``data``; its address."""
        with self._lock:
            origin = self.way.open()
            token = self.assets.add(data, content_type, expires_at)
            self._out[token] = expires_at
            self._wait_for_the_next()
        return f"{origin}{PATH}/{token}"

    def remove(self, token: str) -> None:
        """Take a file back."""
        with self._lock:
            self.assets.remove(token)
            self._out.pop(token, None)
            self._close_if_idle()

    def _ended(self) -> None:
        with self._lock:
            for token in [token for token, ends in self._out.items() if ends <= self.clock()]:
                self.assets.remove(token)
                del self._out[token]
            self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._out:
            self._wait_for_the_next()
        else:
            self.way.close()

    def _wait_for_the_next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(max(0.1, min(self._out.values()) - self.clock()), self._ended)
        self._timer.daemon = True
        self._timer.start()


class PublicAddress:
    """One door, for files that live so many hours at most."""

    name = PUBLIC_ADDRESS
    max_bytes = max_video_bytes = 1 << 30
    max_total_bytes = None
    reuse_key = ""  # each job has files of its own, which go when it ends
    cleans_up = True

    def __init__(
        self,
        door: Door,
        *,
        hours: int,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._door = door
        self._hours = hours
        self._clock = clock
        self._wait = wait

    def notice(self, expires_at: float | None = None) -> str:
        """Nothing to tell."""
        return ""

    def upload(self, data: bytes, content_type: str) -> Hosted:
        """Hand the bytes out, and say so if they cannot be seen from outside."""
        expires_at = self._clock() + 3600 * self._hours
        url = self._door.add(data, content_type, expires_at)
        sight = reach.look(url, data)
        for _ in range(self._door.way.looks - 1):
            if sight.is_there:
                break
            self._wait(LOOK_AGAIN_S)
            sight = reach.look(url, data)
        if sight.is_there:
            return Hosted(url, expires_at)
        origin = url.partition(PATH)[0]
        warning = (
            f"RunComfy may not be able to fetch the picture: {origin}, tried from here: "
            f"{sight.saw}. Paths below {PATH} must be reachable without a login."
        )
        return Hosted(url, expires_at, (warning,))

    def release(self, url: str) -> None:
        """Take the file back."""
        self._door.remove(url.rpartition("/")[2])
