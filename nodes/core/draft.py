"""Orders that were checked and named: all that can be known before anything is uploaded or paid."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import elements
from .errors import InputError
from .identity import Identity, identify
from .job import Order
from .kling import is_loopback_url
from .media import images

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Draft:
    """One order under its name."""

    order: Order
    identity: Identity


def draft_all(
    orders: Sequence[Order],
    *,
    origin: str,
    check_prefix: Callable[[str], object],
    stands_for: Callable[[str], str] = str,
) -> list[Draft]:
    """Check all orders of one run and name them; equal ones are told apart by their number.

    Args:
        orders: In the order of the run.
        origin: The API they go to.
        check_prefix: Raises InputError for a prefix that cannot be used.
        stands_for: What an address is known by: the content where it is one of our own uploads.

    Raises:
        InputError: With every fault of every order, under its clip's number where there are more.
    """
    prints: dict[int, str] = {}

    def fingerprint(image: "torch.Tensor", name: str) -> str:
        if id(image) not in prints:  # one picture with many prompts is hashed once
            prints[id(image)] = images.check(image, name).fingerprint()
        return prints[id(image)]

    seen: Counter[str] = Counter()
    found, drafts = [], []
    for number, order in enumerate(orders, 1):
        try:
            check_prefix(order.prefix)
            identity = _identity(order, origin, fingerprint, stands_for)
            same = seen[identity.full]
            seen[identity.full] += 1
            if same:
                identity = _identity(order, origin, fingerprint, stands_for, same)
            drafts.append(Draft(order, identity))
        except InputError as fault:
            found.append(f"{clip_number(number, len(orders))}{fault}")
    if found:
        raise InputError("\n".join(dict.fromkeys(found)))
    return drafts


def clip_number(number: int, count: int) -> str:
    """What stands before a text about one clip of a run."""
    return f"Clip {number} of {count}: " if count > 1 else ""


def _identity(
    order: Order,
    origin: str,
    fingerprint: Callable[["torch.Tensor", str], str],
    stands_for: Callable[[str], str],
    occurrence: int = 0,
) -> Identity:
    url = "" if order.start_image is not None else order.start_image_url
    videos = {f"video_url of element {n}": one.video_url for n, one in enumerate(order.elements, 1)}
    for name, address in {"start_image_url": url, **videos}.items():
        if is_loopback_url(address) and not is_loopback_url(origin):
            raise InputError(
                f"{name} is {address!r}, an address of this machine, which RunComfy cannot "
                "reach. Wire the file itself instead."
            )
    start, end = order.start_image, order.end_image
    names = {id(picture): name for picture, name in elements.named_pictures(order.elements)}
    return identify(
        order.request,
        origin=origin,
        seed=order.seed,
        start_image=stands_for(url) if start is None else fingerprint(start, "start_image"),
        end_image=None if end is None else fingerprint(end, "end_image"),
        elements=elements.as_urls(
            order.elements,
            lambda picture: fingerprint(picture, names[id(picture)]),
            lambda file: f"sha256:{file.sha256}",
        ),
        occurrence=occurrence,
    )
