"""Elements: subjects that a clip keeps, each told by pictures or by a video.

A prompt names them ``@Element1`` and so on, in the order of the chain. RunComfy's page is silent on
that; hosts of the same model document it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import kling
from .errors import InputError
from .media import images, video

if TYPE_CHECKING:
    import torch

_MENTION = re.compile(r"(?<!\w)@element([1-9]\d*)(?![0-9A-Za-z])", re.IGNORECASE | re.ASCII)
_NEAR_MISS = re.compile(r"(?<!\w)[@\uff20]elemento?[ _]?\d+", re.IGNORECASE)
_LARGE_BYTES = 100_000_000  # RunComfy's page advises no larger videos


@dataclass(frozen=True)
class VideoFile:
    """An MP4 on disk; ``sha256`` of its bytes in hex."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Element:
    """One subject. Pictures are ``[H, W, C]``, float 0 to 1; ``notes`` are for the user.

    Either ``frontal`` with 1 to 3 ``references``, or ``video``, or ``video_url``.
    """

    frontal: "torch.Tensor | None" = None
    references: "tuple[torch.Tensor, ...]" = ()
    video: VideoFile | None = None
    video_url: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_video(self) -> bool:
        """Whether a video tells it."""
        return self.video is not None or bool(self.video_url)


def image_element(frontal: "torch.Tensor | None", references: "Sequence[torch.Tensor]") -> Element:
    """An element of pictures; raises InputError for what Kling does not take."""
    if frontal is None:
        raise InputError(
            "An element needs a frontal_image, or else a video. Wire a picture that shows the "
            "subject from the front."
        )
    if len(references) > kling.MAX_REFERENCES:
        raise InputError(
            f"{len(references)} reference images are wired, Kling takes at most "
            f"{kling.MAX_REFERENCES} of one element. Unplug some."
        )
    images.check_size(frontal.shape[1], frontal.shape[0], "frontal_image")
    for number, reference in enumerate(references):
        height, width = reference.shape[:2]
        images.check_size(width, height, f"reference_image_{number}")
    if references:
        return Element(frontal, tuple(references))
    note = "No reference image is wired: the frontal image is sent as the reference, too."
    return Element(frontal, (frontal,), notes=(note,))


def video_element(file: VideoFile) -> Element:
    """An element of a video, checked by its headers; raises InputError as ``image_element``."""
    info, size = video.headers(file.path), file.path.stat().st_size
    shortest, longest = kling.ELEMENT_VIDEO_S
    least_px, most_px = kling.ELEMENT_VIDEO_SIDE_PX
    found = []
    if not shortest <= info.duration_s <= longest:
        found.append(
            f"The video lasts {info.duration_s:.2f} s; an element's lasts {shortest:g} to "
            f"{longest:.0f} s. "
            + ("Take a longer one." if info.duration_s < shortest else "Cut it with Trim Video.")
        )
    if not (least_px <= min(info.width, info.height) and max(info.width, info.height) <= most_px):
        found.append(
            f"The video is {info.width} × {info.height} px; each side of an element's must have "
            f"{least_px} to {most_px} px. Scale it first."
        )
    if size > kling.ELEMENT_VIDEO_BYTES:
        found.append(
            f"The video has {size / 1e6:.0f} MB, Kling takes "
            f"{kling.ELEMENT_VIDEO_BYTES / 1e6:.0f} MB. Save it smaller first."
        )
    if found:
        raise InputError("\n".join(found))
    note = f"The video has {size / 1e6:.0f} MB; RunComfy advises at most 100 MB."
    return Element(video=file, notes=(note,) if size > _LARGE_BYTES else ())


def url_element(url: str) -> Element:
    """An element of a video on the web; raises InputError for an address that cannot work."""
    found = kling.url_fault(url, "video_url", "wire the video itself")
    if found:
        raise InputError("\n".join(found))
    return Element(video_url=url.strip())


def chain(before: Sequence[Element], element: Element) -> tuple[Element, ...]:
    """One element more; raises InputError when that is more than Kling takes."""
    whole = (*before, element)
    if len(whole) > kling.MAX_ELEMENTS:
        raise InputError(
            f"{len(whole)} elements are chained, Kling takes at most {kling.MAX_ELEMENTS}. Take "
            "one out of the chain."
        )
    if sum(one.is_video for one in whole) > 1:
        raise InputError(
            "Two elements are videos, Kling takes one. Give the other one pictures instead."
        )
    return whole


def named_pictures(elements: Sequence[Element]) -> "list[tuple[torch.Tensor, str]]":
    """Every picture of the elements, with what to call it in texts."""
    found: list[tuple[torch.Tensor, str]] = []
    for number, one in enumerate(elements, 1):
        if one.frontal is not None:
            found.append((one.frontal, f"frontal_image of element {number}"))
        for at, reference in enumerate(one.references):
            if reference is not one.frontal:
                found.append((reference, f"reference_image_{at} of element {number}"))
    return found


def as_urls(
    elements: Sequence[Element],
    picture: "Callable[[torch.Tensor], str]",
    file: Callable[[VideoFile], str],
) -> list[kling.ElementUrls]:
    """The elements as the submit wants them, with addresses (or fingerprints) for their media."""
    return [
        kling.ElementUrls(
            frontal_image_url=None if one.frontal is None else picture(one.frontal),
            reference_image_urls=tuple(picture(reference) for reference in one.references),
            video_url=file(one.video) if one.video else one.video_url or None,
        )
        for one in elements
    ]


def mention_faults(texts: Mapping[str, str], count: int) -> list[str]:
    """What is wrong with the elements that texts mention.

    Args:
        texts: By name, such as ``prompt`` or ``shot 2``.
        count: How many elements there are.
    """
    found = []
    for name, text in texts.items():
        for word in _NEAR_MISS.findall(text):
            if not _MENTION.fullmatch(word):
                found.append(f"{name} says {word}. An element is named such as @Element1.")
        for number in sorted(_mentioned(text)):
            if not 1 <= number <= count:
                words = {0: "no element is", 1: "only one element is"}
                have = words.get(count, f"only {count} elements are")
                found.append(
                    f"{name} mentions @Element{number}, but {have} wired. Wire a Kling Element for "
                    "it, or take the word out."
                )
    return found


def unmentioned(texts: Mapping[str, str], count: int) -> list[str]:
    """A sentence for each element that no text mentions."""
    named = {number for text in texts.values() for number in _mentioned(text)}
    return [
        f"Element {number} is mentioned nowhere. Write @Element{number} where it appears."
        for number in range(1, count + 1)
        if number not in named
    ]


def _mentioned(text: str) -> set[int]:
    return {int(number) for number in _MENTION.findall(text)}
