"""Pictures to addresses, for whoever wants the addresses themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kling import IMAGE_MAX_BYTES
from .media import images
from .uploaders.base import Uploader, until
from .uploads import Uploads

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Addresses:
    """One address a picture, in order; ``text`` is for the user."""

    urls: tuple[str, ...]
    text: str


def upload_images(
    uploads: Uploads,
    uploader: Uploader,
    batch: "torch.Tensor",
    *,
    show: Callable[[str], None],
    is_wanted: Callable[[], bool] = lambda: True,
) -> Addresses:
    """Upload a batch, picture by picture.

    Args:
        uploads: Knows what is uploaded already.
        uploader: The host.
        batch: ``[N, H, W, C]``, float 0 to 1.
        show: Told what is under way.
        is_wanted: Asked before each picture; False ends the work with what there is.

    Raises:
        InputError: A picture that Kling does not take; nothing was uploaded then.
        ConfigError: The host is not, or only half, set up.
        UploadError: The host does not take it.
    """
    count = batch.shape[0]
    checked = [
        images.check(picture, "The picture" if count == 1 else f"Picture {number}")
        for number, picture in enumerate(batch, 1)
    ]
    limit = min(uploader.max_bytes, IMAGE_MAX_BYTES)
    lines: list[str] = []
    notes: list[str] = []
    urls: list[str] = []
    for number, picture in enumerate(checked, 1):
        if not is_wanted():
            break
        show(f"Uploading {number} of {count} to {uploader.name}\n{uploader.notice()}".strip())
        encoded = images.encode(picture, max_bytes=limit)
        hosted = uploads.put(uploader, encoded.data, encoded.content_type)
        urls.append(hosted.url)
        ends = f"until {until(hosted.expires_at)}" if hosted.expires_at else ""
        lines.append(f"{number}: at {uploader.name} {ends}".rstrip())
        notes += [note for note in (*encoded.notes, *hosted.notes) if note not in notes]
    return Addresses(tuple(urls), "\n".join([*lines, *notes]))
