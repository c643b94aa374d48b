"""The API page's input schema as strict models, and the three models' catalogue facts.

Written from RunComfy's API page alone, so that it can disagree with the client. What the page
leaves open (elements, end image, price of the other tiers) follows what the model's other hosts
publish. A field that was not sent holds its default here; null is refused, as the page's types do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Url = Annotated[str, Field(min_length=1)]
Seconds = Annotated[int, Field(ge=3, le=15)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Shot(_Strict):
    """One item of `multi_prompt`."""

    prompt: Text
    duration: Seconds = 5


class Element(_Strict):
    """A frontal image with 1-3 reference images, or one video; never both."""

    frontal_image_url: Url = ""
    reference_image_urls: list[Url] = Field(default=[], max_length=3)
    video_url: Url = ""

    @model_validator(mode="after")
    def _one_kind(self) -> Element:
        if self.video_url:
            if self.frontal_image_url or self.reference_image_urls:
                raise ValueError("an element is either images or a video, not both")
        elif not self.frontal_image_url:
            raise ValueError("an element needs a frontal_image_url, or else a video_url")
        elif not self.reference_image_urls:
            raise ValueError("a frontal image needs 1 to 3 reference_image_urls")
        return self


class ImageToVideo(_Strict):
    """Body of a POST to the standard model; durations are whole seconds."""

    prompt: Text
    start_image_url: Url
    duration: Seconds = 10
    multi_prompt: list[Shot] = Field(default=[], max_length=20)
    generate_audio: bool = True
    elements: list[Element] = Field(default=[], max_length=3)
    shot_type: Literal["customize"] = Field("customize", json_schema_extra={"enum": ["customize"]})
    negative_prompt: str = ""
    cfg_scale: float = Field(default=0.5, ge=0, le=1, allow_inf_nan=False)

    @field_validator("multi_prompt")
    @classmethod
    def _shots_fill_the_clip(cls, shots: list[Shot], info: ValidationInfo) -> list[Shot]:
        total, duration = sum(shot.duration for shot in shots), info.data.get("duration")
        if shots and duration is not None and total != duration:
            raise ValueError(f"shots last {total} s in all, but duration is {duration} s")
        return shots

    @field_validator("elements")
    @classmethod
    def _one_video(cls, elements: list[Element]) -> list[Element]:
        if sum(bool(element.video_url) for element in elements) > 1:
            raise ValueError("only one element of a request may be a video")
        return elements


class ImageToVideoWithEnd(ImageToVideo):
    """Body of a POST to the pro and 4k models."""

    end_image_url: Url = ""

    @field_validator("end_image_url")
    @classmethod
    def _not_with_shots(cls, url: str, info: ValidationInfo) -> str:
        if info.data.get("multi_prompt"):
            raise ValueError("end_image_url cannot be combined with multi_prompt")
        return url


@dataclass(frozen=True)
class Model:
    """One catalogue entry; rates are USD a second of clip."""

    model_id: str
    tier: str
    body: type[ImageToVideo]
    short_side_px: int
    silent_usd_s: float
    audio_usd_s: float

    def cost_usd(self, duration_s: int, audio: bool) -> float:
        """What the real service lists for such a clip."""
        return round(duration_s * (self.audio_usd_s if audio else self.silent_usd_s), 6)

    def card(self) -> dict[str, Any]:
        """The reply to GET /v1/models/{model_id}."""
        schema = _input_schema(self.body)
        return {
            "model_id": self.model_id,
            "display_name": f"Kling 3.0 {self.tier} Image to Video",
            "description": "Rehearsal entry: clips are rendered locally and cost nothing.",
            "kind": "model",
            "categories": ["image-to-video"],
            "base_price_usd": self.silent_usd_s,
            "price_unit": "second",
            "pricing_note": f"${self.silent_usd_s} a second without audio, "
            f"${self.audio_usd_s} a second with audio.",
            "model_url": f"https://www.runcomfy.com/models/{self.model_id}",
            "inputs": list(schema["properties"]),
            "required_inputs": schema["required"],
            "input_schema": schema,
        }


def _entry(
    tier: str, body: type[ImageToVideo], short_side_px: int, silent: float, audio: float
) -> Model:
    return Model(f"kling/kling-3.0/{tier}/image-to-video", tier, body, short_side_px, silent, audio)


MODELS = {
    model.model_id: model
    for model in (
        _entry("standard", ImageToVideo, 720, 0.084, 0.126),
        _entry("pro", ImageToVideoWithEnd, 1080, 0.112, 0.168),
        _entry("4k", ImageToVideoWithEnd, 2160, 0.42, 0.42),
    )
}


def problem(loc: tuple[str | int, ...], message: str, kind: str = "value_error") -> dict[str, Any]:
    """One entry of a 422's `detail`."""
    # A field name is the sender's text: it could be as long as a data: URI.
    return {
        "loc": ["body", *(part[:80] if isinstance(part, str) else part for part in loc)],
        "msg": message,
        "type": kind,
    }


def problems(error: ValidationError) -> list[dict[str, Any]]:
    """A 422's `detail`, without the values that were sent: they may be whole images."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [problem(item["loc"], item["msg"], item["type"]) for item in found]


def _input_schema(body: type[ImageToVideo]) -> dict[str, Any]:
    schema = body.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(node: Any) -> Any:
        if isinstance(node, list):
            return [inlined(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inlined(definitions[node["$ref"].rpartition("/")[2]])
        # The page writes "float", which is no JSON Schema type: a reader must cope with it.
        return {
            key: "float" if (key, item) == ("type", "number") else inlined(item)
            for key, item in node.items()
            if (key, item) not in (("default", ""), ("default", []))
        }

    return inlined(schema)
