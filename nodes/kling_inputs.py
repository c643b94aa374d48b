"""The inputs that every node which starts a Kling job has, and what becomes of their values.

Shared by functions and not by inheritance: ComfyUI caches schema flags on the class.
"""

from collections.abc import Mapping
from numbers import Real
from typing import Any

from comfy_api.latest import io

from . import comfy_bridge
from .core import kling
from .core.draft import clip_number
from .core.elements import Element, mention_faults
from .core.errors import InputError
from .core.job import Order
from .core.kling import KlingRequest, Shot

DEFAULT_PREFIX = "video/runcomfy-kling"
SHOTS, OFF = "shots", "off"
TEXTS = ("prompt", "negative_prompt", "model", "start_image_url", "filename_prefix")
NUMBERS = ("duration", "cfg_scale", "seed")
SHOT_COUNTS = range(2, kling.MAX_SHOTS + 1)
Elements = io.Custom("KLING_ELEMENTS")


def kling_inputs() -> list[io.Input]:
    """In the order of saved workflows, which hold values by position: new widgets go last."""
    low, high = kling.DURATION_S
    cfg_low, cfg_high = kling.CFG_SCALE
    models = kling.MODELS.values()
    return [
        io.String.Input(
            "prompt",
            multiline=True,
            tooltip="What happens in the clip: subject, motion, camera, sound.",
        ),
        io.Image.Input(
            "start_image",
            optional=True,
            tooltip="The picture the clip starts from. The clip takes its shape. At least "
            f"{kling.IMAGE_MIN_SIDE_PX} px a side, no longer than {kling.IMAGE_MAX_ASPECT:g}:1. "
            "A batch makes one clip a picture.",
        ),
        io.Int.Input(
            "duration",
            default=kling.DEFAULT_DURATION_S,
            min=low,
            max=high,
            tooltip="Length of the clip in seconds. The price is per second.",
        ),
        io.Boolean.Input(
            "generate_audio",
            default=kling.DEFAULT_GENERATE_AUDIO,
            tooltip="Kling adds sound that fits. On standard and pro a silent clip costs "
            "a third less.",
        ),
        io.String.Input(
            "negative_prompt",
            multiline=True,
            default="",
            tooltip="What should not appear. May be empty.",
        ),
        io.Float.Input(
            "cfg_scale",
            default=kling.DEFAULT_CFG_SCALE,
            min=cfg_low,
            max=cfg_high,
            step=kling.CFG_SCALE_STEP,
            tooltip="How closely Kling follows the prompt: 0 loosely, 1 strictly.",
        ),
        io.Combo.Input(
            "model",
            options=list(kling.MODELS),
            default=kling.DEFAULT_MODEL,
            tooltip="Standard, pro or 4K. USD per second with audio, as of "
            f"{kling.PRICES_AS_OF}: {', '.join(f'{m.usd_per_s_audio:g}' for m in models)}.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=kling.MAX_SEED,
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Kling takes no seed. Changing it only asks for a new take, and pays "
            "for it. Keep it on fixed.",
        ),
        io.String.Input(
            "start_image_url",
            default="",
            tooltip="Address of the start picture on the web, used when no picture is wired. It "
            "must start with https:// and need no login.",
        ),
        filename_prefix_input(),
        shots_input(),
        Elements.Input(
            "elements",
            optional=True,
            tooltip="Subjects to keep, from Kling Element. Mention each in the prompt: the help "
            "page says how.",
        ),
        io.Image.Input(
            "end_image",
            optional=True,
            tooltip="The picture the clip ends on. Only kling-3.0/pro and kling-3.0/4k take one.",
        ),
    ]


def shots_input() -> io.Input:
    """How many shots, each with a prompt and a length; absent in graphs of older versions."""
    low, high = kling.SHOT_DURATION_S
    options = [io.DynamicCombo.Option(OFF, [])]
    for count in SHOT_COUNTS:
        parts: list[io.Input] = []
        for n in range(1, count + 1):
            parts += [
                io.String.Input(
                    f"shot_{n}_prompt", multiline=True, tooltip=f"What happens in shot {n}."
                ),
                io.Int.Input(
                    f"shot_{n}_duration",
                    default=kling.DEFAULT_SHOT_DURATION_S,
                    min=low,
                    max=high,
                    tooltip=f"Length of shot {n} in seconds. All shots together last as long as "
                    "duration.",
                ),
            ]
        options.append(io.DynamicCombo.Option(f"{count} shots", parts))
    return io.DynamicCombo.Input(
        SHOTS,
        options=options,
        optional=True,
        tooltip="Cuts the clip into 2 to 5 shots, each with a prompt and a length of its own.",
    )


def filename_prefix_input() -> io.Input:
    """Where clips go."""
    return io.String.Input(
        "filename_prefix",
        default=DEFAULT_PREFIX,
        tooltip="Folder and name of the clip inside ComfyUI's output folder.",
    )


def check_typed(values: Mapping[str, Any]) -> bool:
    """Refuse what is typed wrong when a graph is queued; True if nothing is.

    Args:
        values: As ComfyUI gives them to ``validate_inputs`` of a node that takes lists: each a
            list, ``(None,)`` for what is linked, absent for a socket that nothing is wired to.

    Raises:
        InputError: With every fault. Raised, not returned: ComfyUI repeats a returned text once for
            every input of the node.
    """
    known = _one(_flat(values), 0)
    shots = _shots(known)
    found = kling.faults(
        prompt=known.get("prompt"),
        model=known.get("model"),
        duration_s=known.get("duration"),
        cfg_scale=known.get("cfg_scale"),
        seed=known.get("seed"),
        shots=shots,
    )
    found += _picture_faults(
        start_wired="start_image" in values,
        url=known.get("start_image_url"),
        end_wired="end_image" in values,
        model=known.get("model"),
        has_shots=bool(shots),
    )
    if "elements" not in values:
        texts = {"The prompt": known.get("prompt")}
        texts |= {f"Shot {n}": shot.prompt for n, shot in enumerate(shots, 1)}
        found += mention_faults({name: text or "" for name, text in texts.items()}, 0)
    if found:
        raise InputError("\n".join(found))
    return True


def orders(values: Mapping[str, Any], hidden: Any) -> list[Order]:
    """The jobs that a node's values ask for, paired by position.

    A batch of pictures counts as so many pictures. Shorter lists repeat their last item.

    Args:
        values: As ComfyUI gives them to ``execute`` of a node that takes lists.
        hidden: The node's hidden inputs: its id, and the graph for the clips' metadata.

    Raises:
        InputError: With every fault of every job, each on a line of its own.
    """
    _check_choice(hidden)
    graph = comfy_bridge.graph_metadata(hidden.prompt, hidden.extra_pnginfo)
    lists = {name: _items(items) for name, items in _flat(values).items()}
    count = max(len(items) for items in lists.values())
    found = [
        f"{name} is an empty list, so there is no clip to make. Unplug it, or feed it."
        for name, items in lists.items()
        if not items
    ]
    made = []
    for n in range(0 if found else count):
        try:
            made.append(_order(_one(lists, n), graph))
        except InputError as fault:
            found.append(f"{clip_number(n + 1, count)}{fault}")
    if found:
        raise InputError("\n".join(found))
    return made


def _kind_faults(one: Mapping[str, Any]) -> list[str]:
    """What a list handed out that is no value of its input at all."""
    found = []
    shots = range(1, 1 + _shot_count(one))
    for name in (*TEXTS, *(f"shot_{n}_prompt" for n in shots)):
        if not isinstance(one[name], str):
            found.append(f"{name} is {one[name]!r}, which is no text. Feed it texts only.")
    whole = ["seed", *(f"shot_{n}_duration" for n in shots)]
    for name in (*NUMBERS, *whole[1:]):
        value = one[name]
        if not isinstance(value, Real) or (name in whole and value % 1 != 0):
            found.append(f"{name} is {value!r}, which is no number for it. Feed it numbers only.")
    if not all(isinstance(element, Element) for element in one.get("elements") or ()):
        found.append("elements takes what Kling Element gives. Wire that to it.")
    return found


def _order(one: Mapping[str, Any], graph: Mapping[str, Any]) -> Order:
    if wrong := _kind_faults(one):
        raise InputError("\n".join(wrong))
    shots = tuple(Shot(shot.prompt, int(shot.duration_s or 0)) for shot in _shots(one))
    elements = one.get("elements") or ()
    found = _picture_faults(
        start_wired=one.get("start_image") is not None,
        url=one["start_image_url"],
        end_wired=one.get("end_image") is not None,
        model=one["model"],
        has_shots=bool(shots),
    )
    duration = one["duration"]
    found += kling.faults(
        prompt=one["prompt"],
        model=one["model"],
        duration_s=duration,
        cfg_scale=one["cfg_scale"],
        seed=one["seed"],
        shots=shots,
    )
    if found:
        raise InputError("\n".join(found))
    request = KlingRequest(
        prompt=one["prompt"],
        model=one["model"],
        duration_s=int(duration),
        generate_audio=bool(one["generate_audio"]),
        negative_prompt=one["negative_prompt"],
        cfg_scale=float(one["cfg_scale"]),
        shots=shots,
    )
    found = mention_faults(request.texts, len(elements))
    if found:
        raise InputError("\n".join(found))
    return Order(
        request,
        one["filename_prefix"],
        seed=one["seed"],
        start_image=one.get("start_image"),
        start_image_url=one["start_image_url"].strip(),
        end_image=one.get("end_image"),
        elements=elements,
        **graph,
    )


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those of the shots beside the others: a dynamic input is a dict."""
    flat = {name: value for name, value in values.items() if name != SHOTS}
    return flat | dict(values.get(SHOTS) or {})


def _one(lists: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The values of clip number ``n``, counted from 0; shorter lists repeat their last."""
    return {name: items[min(n, len(items) - 1)] for name, items in lists.items()}


def _check_choice(hidden: Any) -> None:
    """Refuse shots that are none of the choices: ComfyUI drops them without a word."""
    node = (hidden.prompt or {}).get(hidden.unique_id) or {}
    choices = [OFF, *(f"{count} shots" for count in SHOT_COUNTS)]
    typed = (node.get("inputs") or {}).get(SHOTS, OFF)
    if typed not in choices:
        raise InputError(f"shots is {typed!r}. Choose one of {', '.join(choices)}.")


def _shot_count(one: Mapping[str, Any]) -> int:
    chosen = one.get(SHOTS) or OFF
    return 0 if chosen == OFF else int(str(chosen).split()[0])


def _shots(one: Mapping[str, Any]) -> tuple[Shot, ...]:
    """The shots of one clip, as far as they are known."""
    return tuple(
        Shot(one.get(f"shot_{n}_prompt"), one.get(f"shot_{n}_duration"))
        for n in range(1, 1 + _shot_count(one))
    )


def _items(values: Any) -> list[Any]:
    """The items of a list input, with each IMAGE batch taken apart into its pictures."""
    found: list[Any] = []
    for value in values:
        if getattr(value, "ndim", 0) == 4:
            found += list(value)
        else:
            found.append(value)
    return found


def _picture_faults(
    *, start_wired: bool, url: str | None, end_wired: bool, model: str | None, has_shots: bool
) -> list[str]:
    found = []
    if not start_wired and url is not None:
        if not url.strip():
            found.append(
                "No start image. Wire a picture to start_image, or give start_image_url an address."
            )
        else:
            found += kling.url_fault(url, "start_image_url")
    if end_wired and model in kling.MODELS and not kling.MODELS[model].takes_end_image:
        found.append(kling.no_end_image(model))
    if end_wired and has_shots:
        found.append(kling.END_OR_SHOTS)
    return found
