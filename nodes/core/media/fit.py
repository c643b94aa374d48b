"""Several pictures into one request: each below its own limit, all together below theirs."""

from collections.abc import Sequence

from .images import EncodedImage, Picture, encode


def encode_all(
    pictures: Sequence[Picture],
    *,
    max_bytes: int,
    max_total_bytes: int | None = None,
    copies: Sequence[int] = (),
) -> list[EncodedImage]:
    """Encode pictures so that none and all are not too large.

    Args:
        pictures: Checked ones.
        max_bytes: The largest file.
        max_total_bytes: All files together; None for no limit. The largest pictures give way first:
            all that are over one common size are encoded down to it.
        copies: How often each picture goes into the request; once where this is empty.
    """
    made = [encode(picture, max_bytes=max_bytes) for picture in pictures]
    sizes = [len(one.data) for one in made]
    times = copies or [1] * len(sizes)
    sent = [size for size, count in zip(sizes, times, strict=True) for _ in range(count)]
    if max_total_bytes is None or sum(sent) <= max_total_bytes:
        return made
    common = _common_size(sent, max_total_bytes)
    return [
        one if size <= common else encode(picture, max_bytes=common)
        for picture, one, size in zip(pictures, made, sizes, strict=True)
    ]


def _common_size(sizes: Sequence[int], total: int) -> int:
    """The size to which the larger ones must come down for all to fit into ``total``."""
    left = total
    for taken, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - taken)
        if size > share:
            return share
        left -= size
    return max(sizes)
