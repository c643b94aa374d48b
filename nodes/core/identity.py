"""What makes two requests the same: the identity under which a paid job is found again.

It covers everything that decides the clip and the bill: API origin, model, all values, each
picture's 8-bit pixels and size (or its URL where one was given), the seed, and the occurrence
number among equal items of one run. It leaves out how a picture was encoded and where it was
uploaded, since those change without the request changing.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .kling import ElementUrls, KlingRequest


@dataclass(frozen=True)
class Identity:
    """``full`` names the request, ``near`` the same but for its pixels; both are sha256 in hex.

    ``payload`` is the submit with each picture replaced by its fingerprint: what the ledger keeps.
    """

    full: str
    near: str
    payload: Mapping[str, Any]


def identify(
    request: KlingRequest,
    *,
    origin: str,
    seed: int,
    start_image: str,
    end_image: str | None = None,
    elements: Sequence[ElementUrls] = (),
    occurrence: int = 0,
) -> Identity:
    """Name a request.

    Args:
        request: Its values.
        origin: The API it goes to.
        seed: The rerun number.
        start_image: The picture's fingerprint, or the URL that was given for it.
        end_image: Likewise.
        elements: Likewise, in the places of their URLs.
        occurrence: Which of several equal items of one run this is.
    """
    payload = request.payload(start_image, end_image_url=end_image, elements=elements)
    whole = {
        "origin": origin,
        "model": request.model_id,
        "payload": payload,
        "seed": str(int(seed)),
        "occurrence": occurrence,
    }
    return Identity(_hash(whole), _hash(_without_pixels(whole)), payload)


def canonical(value: object) -> str:
    """JSON that is the same for the same value. Identities hash it: a change here changes all."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _hash(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _without_pixels(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_pixels(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_pixels(item) for item in value]
    return "sha256" if isinstance(value, str) and value.startswith("sha256:") else value
