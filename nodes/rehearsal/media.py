"""Images and videos that a request carries or points at: found, fetched and really opened.

A data: URI is judged when the job is submitted, a URL when the job runs, as the service must.
"""

from __future__ import annotations

import base64
import binascii
import io
import ipaddress
import re
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import av
import requests
from PIL import Image, ImageOps

from .schema import ImageToVideo

IMAGE_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # Pillow's name for a JPEG with more than one picture in it
    "WEBP": "image/webp",
    "BMP": "image/bmp",
}
VIDEO_TYPE = "video/mp4"
MAX_BYTES = {"image": 10_000_000, "video": 200_000_000}
MIN_SIDE_PX = 300
MAX_ASPECT = 2.5
VIDEO_S = (3.0, 10.05)
VIDEO_SIDE_PX = (720, 2160)
CONNECT_S, READ_S, FETCH_S = 5, 10, 60


class MediaError(ValueError):
    """Why a file is refused, in words; never holds its bytes."""


class Abandoned(RuntimeError):
    """The job was cancelled or the server is stopping: the work is not wanted any more."""


@dataclass(frozen=True)
class Source:
    """One media field of a request: `loc` as in a 422, `kind` "image" or "video"."""

    loc: tuple[str | int, ...]
    kind: str
    uri: str

    @property
    def name(self) -> str:
        """The field as a person writes it: elements[0].frontal_image_url."""
        return "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.loc
        ).lstrip(".")

    def check(self) -> None:
        """Refuse what can be seen without the network; raises MediaError."""
        if self.uri.startswith("data:"):
            declared, data = _read_data_uri(self.uri)
            self._open(data, declared)
            return
        try:
            parts = urlsplit(self.uri)
            host = parts.hostname or ""
        except ValueError:
            raise MediaError("is not a URL") from None
        if not host or not (
            parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))
        ):
            raise MediaError("must be an https URL or a base64 data: URI")

    def load(self, give_up: Callable[[], bool]) -> Image.Image | None:
        """Decode the image (a video gives None), fetching it first if it is a URL.

        Raises MediaError, and Abandoned when `give_up` turns true.
        """
        if self.uri.startswith("data:"):
            if self.kind == "video":
                return None  # its frames were decoded when the job was submitted
            declared, data = _read_data_uri(self.uri)
            return self._open(data, declared)
        return self._open(_fetch(self.uri, MAX_BYTES[self.kind], give_up), None)

    def _open(self, data: bytes, declared: str | None) -> Image.Image | None:
        if len(data) > MAX_BYTES[self.kind]:
            raise MediaError(
                f"has {len(data)} bytes, the limit for one {self.kind} is {MAX_BYTES[self.kind]}"
            )
        if self.kind == "image":
            return _open_image(data, declared)
        _open_video(data, declared)
        return None


def sources(request: ImageToVideo) -> Iterator[Source]:
    """Every media field that was filled in, start image first."""
    yield Source(("start_image_url",), "image", request.start_image_url)
    if end := getattr(request, "end_image_url", ""):
        yield Source(("end_image_url",), "image", end)
    for i, element in enumerate(request.elements):
        if element.frontal_image_url:
            loc = ("elements", i, "frontal_image_url")
            yield Source(loc, "image", element.frontal_image_url)
        for j, uri in enumerate(element.reference_image_urls):
            yield Source(("elements", i, "reference_image_urls", j), "image", uri)
        if element.video_url:
            yield Source(("elements", i, "video_url"), "video", element.video_url)


def _read_data_uri(uri: str) -> tuple[str, bytes]:
    head, comma, encoded = uri.partition(",")
    match = re.fullmatch(r"data:([a-z]+/[a-z0-9.+-]+);base64", head)
    if not (comma and match):
        raise MediaError("is a data: URI but not of the form data:<type>;base64,<data>")
    try:
        return match[1], base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise MediaError("holds broken base64") from None


def _open_image(data: bytes, declared: str | None) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=[f for f in IMAGE_TYPES if f != "MPO"])
        image.load()
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError):
        raise MediaError("is not a readable jpg, jpeg, png, bmp or webp image") from None
    real = IMAGE_TYPES[image.format or ""]
    if declared not in (None, real):
        raise MediaError(f"is declared as {declared} but is {real}")
    _check_size(*image.size)
    return ImageOps.exif_transpose(image)


def _open_video(data: bytes, declared: str | None) -> None:
    if declared not in (None, VIDEO_TYPE):
        raise MediaError(f"is declared as {declared}; a video must be {VIDEO_TYPE}")
    size, begin_s, end_s = None, 0.0, 0.0
    try:
        with av.open(io.BytesIO(data)) as container:
            is_mp4 = "mp4" in container.format.name.split(",")
            for stream in container.streams.video[:1]:
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    if size is None:
                        size, begin_s = (frame.width, frame.height), frame.time or 0.0
                    end_s = (frame.time or 0.0) + float((frame.duration or 0) * frame.time_base)
    except (av.FFmpegError, ValueError):
        raise MediaError("is not a readable video") from None
    if not is_mp4 or size is None:
        raise MediaError("is not an mp4 with a video stream")
    shortest, longest = VIDEO_S
    if not shortest <= round(end_s - begin_s, 3) <= longest:
        raise MediaError(
            f"lasts {end_s - begin_s:.2f} s; a video must last {shortest:g} to {longest:g} s"
        )
    least, most = VIDEO_SIDE_PX
    if not (least <= min(size) and max(size) <= most):
        raise MediaError(
            f"is {size[0]}x{size[1]} px; each side of a video must have {least} to {most} px"
        )


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE_PX:
        raise MediaError(f"is {width}x{height} px; each side must have {MIN_SIDE_PX} px or more")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError(f"is {width}x{height} px; the aspect must lie in 1:2.5 to 2.5:1")


class _Fetcher(requests.Session):
    """Follows redirects, but takes neither cookie nor password along."""

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        prepared_request.headers.pop("Cookie", None)


def _fetch(url: str, limit_bytes: int, give_up: Callable[[], bool]) -> bytes:
    deadline = time.monotonic() + FETCH_S
    data = bytearray()
    try:
        # An auth of our own that does nothing keeps requests from sending a .netrc password.
        with (
            _Fetcher() as session,
            session.get(
                url, stream=True, timeout=(CONNECT_S, READ_S), auth=lambda request: request
            ) as reply,
        ):
            if reply.status_code != 200:
                raise MediaError(f"could not be fetched: HTTP {reply.status_code}")
            if reply.headers.get("Content-Type", "").startswith("text/html"):
                raise MediaError("could not be fetched: a web page stands there, such as a login")
            for chunk in reply.iter_content(1 << 16):
                data += chunk
                if len(data) > limit_bytes:
                    raise MediaError(f"is larger than {limit_bytes} bytes")
                if give_up():
                    raise Abandoned
                if time.monotonic() > deadline:
                    raise MediaError(f"could not be fetched within {FETCH_S} s")
    except (requests.RequestException, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"could not be fetched: {type(error).__name__}") from None
    return bytes(data)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
