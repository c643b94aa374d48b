"""A result file to disk: streamed, resumed after a cut, never taken for whole when it is not."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import errors
from .transport import PIECE_BYTES, Response, Transport

MAX_CLIP_BYTES = 2 << 30  # RunComfy's own command line tool keeps to the same cap
FRUITLESS_ATTEMPTS = 8  # in a row; whatever brings new bytes does not count
STALL_S = 120.0  # for each piece of 64 KiB
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass
class _State:
    """How far a download is: ``total`` bytes where known, ``etag`` of the version begun with."""

    done: int = 0
    total: int | None = None
    etag: str | None = None


def download(
    transport: Transport,
    url: str,
    part: Path,
    *,
    wait: Callable[[float], None],
    on_bytes: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Fetch ``url`` into ``part``, going on from where it was cut, and sync it to disk.

    Args:
        transport: Opens the address, or refuses it.
        url: A result's address.
        part: The file to write, begun anew.
        wait: Sleeps for the given seconds between attempts; may raise to give up.
        on_bytes: Told the number of bytes on disk so far.
        clock: Monotonic seconds.

    Raises:
        ForeignAddress: The address is refused.
        ApiError: The file is not there.
        NetworkError: Cut again and again.
        MediaError: Larger than ``MAX_CLIP_BYTES``, or the disk does not take it.
    """
    state = _State()
    fruitless = 0
    while True:
        before = state.done
        try:
            _fetch(transport, url, part, state, on_bytes, clock)
            return
        except errors.NetworkError as error:
            fruitless = 0 if state.done > before else fruitless + 1
            if fruitless == FRUITLESS_ATTEMPTS:
                raise errors.NetworkError(
                    f"The clip could not be downloaded in {FRUITLESS_ATTEMPTS} attempts. {error} "
                    "It stays at RunComfy: queue again to fetch it, nothing is charged for that."
                ) from None
            wait(max(error.retry_after_s or 0.0, min(0.5 * 2**fruitless, 15.0)))


def _fetch(
    transport: Transport,
    url: str,
    part: Path,
    state: _State,
    on_bytes: Callable[[int], None],
    clock: Callable[[], float],
) -> None:
    with transport.open_download(url, start=state.done, etag=state.etag) as response:
        _begin(response, state)
        if (state.total or 0) > MAX_CLIP_BYTES:
            raise _too_large(transport.clean(url))
        with _disk(part), part.open("r+b" if state.done else "wb") as file:
            file.seek(state.done)
            slice_end, slice_done = clock() + STALL_S, state.done
            for piece in transport.pieces(response):
                if state.done + len(piece) > MAX_CLIP_BYTES:
                    raise _too_large(transport.clean(url))
                file.write(piece)
                state.done += len(piece)
                on_bytes(state.done)
                if state.done - slice_done >= PIECE_BYTES:
                    slice_end, slice_done = clock() + STALL_S, state.done
                elif clock() > slice_end:
                    raise errors.NetworkError("The download came to a standstill.")
            file.flush()
            os.fsync(file.fileno())
    if state.total is not None and state.done != state.total:
        raise errors.NetworkError(f"The clip came only in part: {state.done} of {state.total} B.")


def _begin(response: Response, state: _State) -> None:
    """Find where this answer begins and where it must end."""
    if response.status_code == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        first, last, total = map(int, found.groups()) if found else (-1, -1, -1)
        if first == state.done and first <= last < total and state.total in (None, total):
            state.total = total
            return
    if response.status_code != 200:  # 416, or a range that was not asked for: begin anew
        state.done, state.total, state.etag = 0, None, None
        raise errors.NetworkError("The clip's host could not go on where it was cut.")
    length = response.headers.get("Content-Length", "")
    state.done, state.total = 0, int(length) if length.isdigit() else None
    state.etag = response.headers.get("ETag")


@contextmanager
def _disk(part: Path) -> Iterator[None]:
    """Tells a fault of the disk from one of the line."""
    try:
        yield
    except OSError as error:
        raise errors.MediaError(
            f"The clip cannot be written to {part.parent}: {error.strerror or error}. It stays at "
            "RunComfy: make room and queue again, nothing is charged for that."
        ) from None


def _too_large(url: str) -> errors.MediaError:
    return errors.MediaError(
        f"The clip is larger than {MAX_CLIP_BYTES >> 30} GiB, the most that is fetched. It stays "
        f"at {url}."
    )


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
