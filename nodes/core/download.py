"""A result file to disk: streamed, resumed after a cut, never half there under its final name."""

import os
from collections.abc import Callable
from pathlib import Path

from . import errors
from .transport import Transport

MAX_CLIP_BYTES = 2 << 30  # RunComfy's own command line tool keeps to the same cap
ATTEMPTS = 8
PIECE_BYTES = 64 << 10  # what a cut costs at most


def download(
    transport: Transport,
    url: str,
    part: Path,
    *,
    wait: Callable[[float], None],
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Fetch ``url`` into ``part``, going on from where it was cut, and sync it to disk.

    Args:
        transport: Opens the address, or refuses it.
        url: A result's address.
        part: The file to write; what it holds already is kept only if the server can go on from
            there and this call wrote it.
        wait: Sleeps for the given seconds between attempts; may raise to give up.
        on_bytes: Told the number of bytes on disk so far.

    Raises:
        ApiError: The address is refused, or the file is not there.
        NetworkError: Cut again and again.
        MediaError: Larger than ``MAX_CLIP_BYTES``, or the disk does not take it.
    """
    part.unlink(missing_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch(transport, url, part, on_bytes)
            return
        except OSError as error:
            raise errors.MediaError(
                f"The clip cannot be written to {part.parent}: {error.strerror or error}. It stays "
                "at RunComfy and can be collected by its request id."
            ) from None
        except errors.NetworkError as error:
            if attempt == ATTEMPTS:
                raise errors.NetworkError(
                    f"The clip could not be downloaded in {ATTEMPTS} attempts. {error}"
                ) from None
            wait(max(error.retry_after_s or 0.0, min(0.5 * 2**attempt, 15.0)))


def _fetch(transport: Transport, url: str, part: Path, on_bytes: Callable[[int], None]) -> None:
    start = part.stat().st_size if part.exists() else 0
    with transport.open_download(url, start=start) as response:
        if response.status_code == 416:  # the file changed, or all of it is here already
            part.unlink(missing_ok=True)
            raise errors.NetworkError("The clip's host could not go on where it was cut.")
        if response.status_code == 200:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise errors.NetworkError("The clip's host sent another part than was asked for.")
        total = _total_bytes(response.headers.get("Content-Length"), start)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            done = start
            for piece in response.iter_content(PIECE_BYTES):
                done += len(piece)
                if done > MAX_CLIP_BYTES or (total or 0) > MAX_CLIP_BYTES:
                    raise errors.MediaError(
                        f"The clip is larger than {MAX_CLIP_BYTES >> 30} GiB; it stays at {url}."
                    )
                file.write(piece)
                on_bytes(done)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise errors.NetworkError(f"The clip came only in part: {done} of {total} bytes.")


def _total_bytes(content_length: str | None, start: int) -> int | None:
    return start + int(content_length) if content_length and content_length.isdigit() else None
