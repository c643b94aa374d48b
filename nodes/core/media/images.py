"""Start images: float tensors to a file that Kling takes, losslessly wherever it fits.

The 8-bit pixels are rounded and clamped, never truncated. PNG is sent while it fits the limit;
else the best JPEG that does; and only when even a coarse JPEG does not fit is a picture shrunk.
Whatever was changed is said in ``EncodedImage.notes``, so that nothing happens in silence.
"""

import hashlib
import io
import math
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..errors import InputError
from ..kling import IMAGE_MAX_ASPECT, IMAGE_MIN_SIDE_PX

# Measured with Pillow 13, time as a part of its default PNG's (1.0 s, 2.6 s and 4.6 s for photos of
# 1080p, 2048² and 4K), for a photo, noise and flat colour at 4K; sizes in MB, PSNR of the photo:
#
#   PNG default (level 6)       1.00  1.00  1.00     12.3  24.9  0.03     lossless
#   PNG level 4                 0.46  1.04  1.00     12.2  24.9  0.03     lossless
#   PNG level 1                 0.28  0.98  0.63     13.8  24.9  0.12     lossless
#   PNG level 1, runs only      0.19  0.68  0.64     12.2  24.9  0.03     lossless
#   PNG level 1, Huffman only   0.17  0.66  1.63     12.2  24.9  3.12     lossless
#   WebP lossless, method 0     0.10  0.47  1.22     11.0  24.9  0.07     lossless
#   WebP 95                     0.08  0.82  1.16      2.0   7.9  0.07     42.7 dB
#   JPEG 98, 4:4:4              0.01  0.11  0.23      5.0  26.3  0.30     45.7 dB
#   JPEG 95, 4:4:4              0.01  0.10  0.23      3.0  20.1  0.29     43.7 dB
#   JPEG 85, 4:2:0              0.01  0.05  0.14      1.3   6.3  0.16     41.4 dB
#
# A PNG's rows are filtered before they are packed, and what is left of a photo has no repeats worth
# searching for: runs only is as small in a fifth of the time. Repeating patterns are what it packs
# badly; they get the search if they do not fit otherwise. Kling's own API takes JPEG and PNG, so no
# WebP. fpng would take a tenth of that time again for a fifth more bytes: not worth a dependency
# that was last released in 2022, beside minutes of rendering.
PNG_WAYS = ((1, zlib.Z_RLE), (4, zlib.Z_DEFAULT_STRATEGY))
JPEG_QUALITIES = (98, 95, 90, 85, 80, 75)
_SAMPLE_ROWS = 16


@dataclass(frozen=True)
class EncodedImage:
    """A picture as a file: ``notes`` are sentences about what was changed, for the user."""

    data: bytes
    content_type: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """One checked picture: ``pixels`` are ``uint8 [H, W, 3]``, ``notes`` as of EncodedImage."""

    name: str
    pixels: np.ndarray
    notes: tuple[str, ...]

    def fingerprint(self) -> str:
        """``sha256:...`` of the size and the pixels: the same picture, the same fingerprint."""
        height, width = self.pixels.shape[:2]
        digest = hashlib.sha256(f"{width}x{height} ".encode())
        digest.update(self.pixels.data)
        return f"sha256:{digest.hexdigest()}"


def check(image: torch.Tensor, name: str) -> Picture:
    """Round one picture to 8 bit and hold it against Kling's floor.

    Args:
        image: ``[H, W, C]``, float, 0 to 1, with 1, 3 or 4 channels.
        name: What to call the picture in texts.

    Raises:
        InputError: Not a picture, not finite, or below Kling's smallest size.
    """
    pixels, notes = to_pixels(image, name)
    height, width = pixels.shape[:2]
    check_size(width, height, name)
    return Picture(name, pixels, tuple(notes))


def encode(checked: Picture, *, max_bytes: int) -> EncodedImage:
    """Turn a picture into a PNG or JPEG file of at most ``max_bytes``, the host's limit."""
    name, pixels, notes = checked.name, checked.pixels, list(checked.notes)
    height, width = pixels.shape[:2]
    sizes = []
    for way in PNG_WAYS:
        predicted = _predict_png_bytes(pixels, way)
        if predicted <= 1.1 * max_bytes:
            data = _png(pixels, way)
            if len(data) <= max_bytes:
                return EncodedImage(data, "image/png", width, height, tuple(notes))
            predicted = len(data)
        sizes.append(predicted)
    picture = Image.fromarray(pixels)
    before = f"{name}: {width} × {height} PNG would be {_mb(min(sizes))}"
    while True:
        for quality in JPEG_QUALITIES:
            data = _jpeg(picture, quality)
            if len(data) <= max_bytes:
                size = "" if picture.width == width else f" at {picture.width} × {picture.height}"
                notes.append(f"{before}; sent as JPEG quality {quality}{size}, {_mb(len(data))}.")
                return EncodedImage(data, "image/jpeg", picture.width, picture.height, tuple(notes))
        scale = min(0.9, 0.95 * math.sqrt(max_bytes / len(data)))
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )


def to_pixels(image: torch.Tensor, name: str = "image") -> tuple[np.ndarray, list[str]]:
    """Round one picture to 8 bit.

    Args:
        image: ``[H, W, C]``, float, 0 to 1, with 1, 3 or 4 channels.
        name: What to call the picture in texts.

    Returns:
        ``uint8 [H, W, 3]``, and a sentence for each thing that was changed.

    Raises:
        InputError: Wrong shape, empty, or with values that are not numbers.
    """
    shape = tuple(image.shape)
    if len(shape) != 3 or shape[2] not in (1, 3, 4) or 0 in shape:
        raise InputError(
            f"{name} has the shape {list(shape)}; a picture is [height, width, channels] with "
            "1, 3 or 4 channels."
        )
    if not image.is_floating_point():
        raise InputError(
            f"{name} holds {image.dtype} values; a picture holds floats from 0 to 1. Pass it "
            "through a node that makes an IMAGE of it."
        )
    values = image.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{name} has pixels that are not numbers (NaN or infinite). The node that made it "
            "went wrong; look at its picture in a Preview Image node."
        )
    notes = []
    if shape[2] == 4:
        values, alpha = values[:, :, :3], values[:, :, 3:].clamp(0, 1)
        if bool((alpha < 1).any()):
            values = values * alpha + (1 - alpha)
            notes.append(f"{name}: its transparent parts are sent on white.")
    pixels = (values * 255).round_().clamp_(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.expand(-1, -1, 3).numpy()), notes


def check_size(width: int, height: int, name: str) -> None:
    """Refuse what is below Kling's floor; raises InputError. Sizes in pixels."""
    if min(width, height) < IMAGE_MIN_SIDE_PX:
        raise InputError(
            f"{name} is {width} × {height} px; Kling wants each side at least "
            f"{IMAGE_MIN_SIDE_PX} px. Scale it up first."
        )
    if max(width, height) > IMAGE_MAX_ASPECT * min(width, height):
        raise InputError(
            f"{name} is {width} × {height} px, an aspect of {max(width, height)}:"
            f"{min(width, height)}; Kling takes 1:{IMAGE_MAX_ASPECT:g} to {IMAGE_MAX_ASPECT:g}:1. "
            "Crop or pad it first."
        )


def _predict_png_bytes(pixels: np.ndarray, way: tuple[int, int]) -> int:
    """Guess the PNG's size from a few strips, to skip an encoding that would be thrown away."""
    height = pixels.shape[0]
    if height <= 8 * _SAMPLE_ROWS:
        return 0
    starts = np.linspace(0, height - _SAMPLE_ROWS, 8).astype(int)
    sampled = sum(len(_png(pixels[start : start + _SAMPLE_ROWS], way)) for start in starts)
    return int(sampled * height / (8 * _SAMPLE_ROWS))


def _png(pixels: np.ndarray, way: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    level, strategy = way
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level, compress_type=strategy)
    return buffer.getvalue()


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    # 4:4:4 keeps coloured edges; below 90 the bytes are better spent elsewhere
    picture.save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    return buffer.getvalue()


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
