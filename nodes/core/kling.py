"""Kling 3.0 image-to-video: every field, range, default and price, each in this one place.

Sources: [page] RunComfy's API page of kling/kling-3.0/standard/image-to-video, the authority;
[catalog] RunComfy's model catalog, read 2026-09-23, for pro and 4k; [kling] limits of the model
behind it, published by other hosts of Kling and enforced by it rather than by RunComfy's schema.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .errors import InputError
from .settings import is_loopback

PRICES_AS_OF = "2026-09-23"
DURATION_S = (3, 15)  # [page]
DEFAULT_DURATION_S = 10  # [page]
CFG_SCALE = (0.0, 1.0)  # [page]
DEFAULT_CFG_SCALE = 0.5  # [page]
CFG_SCALE_STEP = 0.05
DEFAULT_GENERATE_AUDIO = True  # [page]
SHOT_TYPE = "customize"  # [page] its only value
SHOT_DURATION_S = (3, 15)  # [page]
DEFAULT_SHOT_DURATION_S = 5  # [page]
MAX_SHOTS = DURATION_S[1] // SHOT_DURATION_S[0]  # [page] allows 20, but only 5 of 3 s fit in 15 s
MAX_ELEMENTS = 3  # [page]
MAX_REFERENCES = 3  # [kling] of one element; at least one, besides the frontal picture
ELEMENT_VIDEO_S = (3.0, 10.05)  # [kling]
ELEMENT_VIDEO_SIDE_PX = (720, 2160)  # [kling]
ELEMENT_VIDEO_BYTES = 200_000_000  # [kling]
PROMPT_CHARS = 2500  # [kling] warned about, not refused: RunComfy publishes no limit
SHOT_PROMPT_CHARS = 512  # [kling] likewise
IMAGE_MIN_SIDE_PX = 300  # [kling]
IMAGE_MAX_ASPECT = 2.5  # [kling] from 1:2.5 to 2.5:1
IMAGE_MAX_BYTES = 10_000_000  # [kling]
MAX_SEED = 2**64 - 1
END_OR_SHOTS = "Kling takes an end image or shots, not both. Set shots to off, or unplug end_image."
# a name with a dot, an optional port, no user name, nothing that needs to be encoded
_PUBLIC_URL = re.compile(r"https://[\w-]+(\.[\w-]+)+(:\d{1,5})?(/[^\s\\]*)?", re.ASCII)


@dataclass(frozen=True)
class Model:
    """One of RunComfy's Kling 3.0 image-to-video models. Prices in USD per second of clip."""

    model_id: str
    usd_per_s_silent: float
    usd_per_s_audio: float
    takes_end_image: bool


MODELS: Mapping[str, Model] = {
    "kling-3.0/standard": Model("kling/kling-3.0/standard/image-to-video", 0.084, 0.126, False),
    "kling-3.0/pro": Model("kling/kling-3.0/pro/image-to-video", 0.112, 0.168, True),
    "kling-3.0/4k": Model("kling/kling-3.0/4k/image-to-video", 0.42, 0.42, True),
}
DEFAULT_MODEL = "kling-3.0/standard"


@dataclass(frozen=True)
class Shot:
    """One part of a multi-shot clip; ``duration_s`` in whole seconds.

    While a graph is only queued, None stands for what is not known yet.
    """

    prompt: str | None
    duration_s: int | None = DEFAULT_SHOT_DURATION_S


@dataclass(frozen=True)
class ElementUrls:
    """A subject to keep: pictures (frontal and 1 to 3 references) or a video, as URLs."""

    frontal_image_url: str | None = None
    reference_image_urls: tuple[str, ...] = ()
    video_url: str | None = None

    def payload(self) -> dict[str, Any]:
        """The JSON of this element, with only the fields that are set."""
        fields = {
            "frontal_image_url": self.frontal_image_url,
            "reference_image_urls": list(self.reference_image_urls),
            "video_url": self.video_url,
        }
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True)
class KlingRequest:
    """The values of one clip, without its pictures. Checked on creation: raises InputError."""

    prompt: str
    model: str = DEFAULT_MODEL
    duration_s: int = DEFAULT_DURATION_S
    generate_audio: bool = DEFAULT_GENERATE_AUDIO
    negative_prompt: str = ""
    cfg_scale: float = DEFAULT_CFG_SCALE
    shots: tuple[Shot, ...] = ()

    def __post_init__(self) -> None:
        found = faults(
            prompt=self.prompt,
            model=self.model,
            duration_s=self.duration_s,
            cfg_scale=self.cfg_scale,
            shots=self.shots,
        )
        if found:
            raise InputError("\n".join(found))

    @property
    def model_id(self) -> str:
        """RunComfy's id of the model, slashes and all."""
        return MODELS[self.model].model_id

    @property
    def texts(self) -> dict[str, str]:
        """What may mention an element, by its name in sentences."""
        shots = {f"Shot {n}": shot.prompt or "" for n, shot in enumerate(self.shots, 1)}
        return {"The prompt": self.prompt, **shots}

    def price_usd(self) -> float:
        """What the clip costs by the dated table, in USD."""
        model = MODELS[self.model]
        rate = model.usd_per_s_audio if self.generate_audio else model.usd_per_s_silent
        return rate * self.duration_s

    def warnings(self) -> list[str]:
        """What may go wrong upstream although RunComfy's own schema allows it."""
        texts = [("The prompt", self.prompt, PROMPT_CHARS)]
        texts.append(("The negative prompt", self.negative_prompt, PROMPT_CHARS))
        for number, shot in enumerate(self.shots, 1):
            texts.append((f"The prompt of shot {number}", shot.prompt or "", SHOT_PROMPT_CHARS))
        found = [
            f"{name} has {len(text)} characters; Kling's own limit is {limit}. Shorten it if the "
            "job fails."
            for name, text, limit in texts
            if len(text) > limit
        ]
        if not self.prompt.strip():
            found.append("The prompt was empty: it is made of the shots' prompts.")
        return found

    def payload(
        self,
        start_image_url: str,
        *,
        end_image_url: str | None = None,
        elements: Sequence[ElementUrls] = (),
    ) -> dict[str, Any]:
        """The JSON of the submit. Raises InputError for media that this model does not take."""
        if end_image_url and not MODELS[self.model].takes_end_image:
            raise InputError(no_end_image(self.model))
        if end_image_url and self.shots:
            raise InputError(END_OR_SHOTS)
        if len(elements) > MAX_ELEMENTS:
            raise InputError(
                f"{len(elements)} elements are wired, Kling takes at most {MAX_ELEMENTS}. "
                "Unplug some."
            )
        payload: dict[str, Any] = {
            # the schema requires a prompt even where the shots have their own
            "prompt": self.prompt
            if self.prompt.strip()
            else " ".join(str(shot.prompt).strip() for shot in self.shots),
            "start_image_url": start_image_url,
            "duration": self.duration_s,
            "generate_audio": self.generate_audio,
            "cfg_scale": self.cfg_scale,
        }
        if self.negative_prompt.strip():
            payload["negative_prompt"] = self.negative_prompt
        if self.shots:
            payload["shot_type"] = SHOT_TYPE
            payload["multi_prompt"] = [
                {"prompt": shot.prompt, "duration": shot.duration_s} for shot in self.shots
            ]
        if end_image_url:
            payload["end_image_url"] = end_image_url
        if elements:
            payload["elements"] = [element.payload() for element in elements]
        return payload


def no_end_image(model: str) -> str:
    """What to say when this model is given an end image."""
    able = " or ".join(name for name, one in MODELS.items() if one.takes_end_image)
    return f"{model} takes no end image. Set model to {able}, or unplug end_image."


def is_loopback_url(url: str) -> bool:
    """True for an http address of this very machine: good for a rehearsal only."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and is_loopback(parts.hostname)


def url_fault(url: str, name: str, instead: str = "wire Load Image to start_image") -> list[str]:
    """What is wrong with an address that RunComfy is to fetch from; empty if nothing.

    ``instead`` is the way for a file on this machine.
    """
    if _PUBLIC_URL.fullmatch(url.strip()) or is_loopback_url(url.strip()):
        return []
    shown = url if len(url) <= 80 else url[:79] + "…"
    return [
        f"{name} is {shown!r}. Set it to an address that starts with https:// and that RunComfy "
        f"can fetch without a login; for a file on this machine, {instead}."
    ]


def faults(
    *,
    prompt: str | None = None,
    model: str | None = None,
    duration_s: float | None = None,
    cfg_scale: float | None = None,
    seed: int | None = None,
    shots: Sequence[Shot] = (),
) -> list[str]:
    """What is wrong with the values that are known so far; None means not known yet.

    Returns:
        One sentence a fault: the value, the limit, the way out. Empty when all is well.
    """
    found = []
    if prompt is not None and not prompt.strip() and not shots:
        found.append("The prompt is empty. Say in words what happens in the clip.")
    if model is not None and model not in MODELS:
        found.append(f"Model {model!r} is not known. Choose one of {', '.join(MODELS)}.")
    if duration_s is not None:
        found += _duration_faults(duration_s, DURATION_S, "Duration")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        found.append(f"seed is {seed}. Set it from 0 to {MAX_SEED}.")
    low, high = CFG_SCALE
    if cfg_scale is not None and not low <= cfg_scale <= high:
        found.append(f"cfg_scale is {cfg_scale:g}. Set it from {low:g} to {high:g}.")
    return found + _shot_faults(shots, duration_s)


def _duration_faults(duration_s: float, limits: tuple[int, int], name: str) -> list[str]:
    low, high = limits
    if not isinstance(duration_s, int | float):
        return [f"{name} is {duration_s!r}. Set it to whole seconds from {low} to {high}."]
    if low <= duration_s <= high and duration_s == int(duration_s):
        return []
    return [f"{name} is {duration_s:g} s. Set it to whole seconds from {low} to {high}."]


def _shot_faults(shots: Sequence[Shot], duration_s: float | None) -> list[str]:
    if not shots:
        return []
    if len(shots) > MAX_SHOTS:
        return [
            f"{len(shots)} shots of at least {SHOT_DURATION_S[0]} s do not fit into "
            f"{DURATION_S[1]} s. Use at most {MAX_SHOTS}."
        ]
    found = []
    for number, shot in enumerate(shots, 1):
        if shot.duration_s is not None:
            found += _duration_faults(shot.duration_s, SHOT_DURATION_S, f"Shot {number}")
        if shot.prompt is not None and not shot.prompt.strip():
            found.append(f"Shot {number} has no prompt. Say in words what happens in it.")
    lengths = [shot.duration_s for shot in shots if shot.duration_s is not None]
    total = sum(lengths)
    if not found and duration_s is not None and len(lengths) == len(shots) and total != duration_s:
        found.append(
            f"Shots last {total} s in all, but duration is {duration_s:g} s. "
            + _sum_hint(lengths, total, int(duration_s))
        )
    return found


def _sum_hint(lengths: Sequence[int], total: int, duration_s: int) -> str:
    """Both ways to mend a sum, where both exist."""
    ways = []
    if DURATION_S[0] <= total <= DURATION_S[1]:
        ways.append(f"set duration to {total}")
    low, high = SHOT_DURATION_S
    for number, length in reversed(list(enumerate(lengths, 1))):
        fitting = length + duration_s - total
        if low <= fitting <= high:
            ways.append(f"set shot {number} to {fitting} s")
            break
    else:
        ways.append("change several shots")
    text = " or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."
