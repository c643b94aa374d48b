"""Shots: what is sent for them, and what is refused before it costs money."""

import pytest
from node_case import prompt_of
from pack.nodes.core.kling import KlingRequest, Shot, faults


def shots(*parts):
    """The widgets of so many shots, each ``(prompt, seconds)``."""
    found = {"shots": f"{len(parts)} shots"}
    for n, (prompt, seconds) in enumerate(parts, 1):
        found |= {f"shots.shot_{n}_prompt": prompt, f"shots.shot_{n}_duration": seconds}
    return found


THREE = shots(("a cup", 3), ("steam", 4), ("a hand takes it", 3))


def test_shots_are_sent_as_the_page_says(engine, api):
    outcome = engine.run(prompt_of(engine, duration=10, **THREE))
    assert outcome.succeeded, outcome.error
    (sent,) = api.submissions
    assert sent.payload["multi_prompt"] == [
        {"prompt": "a cup", "duration": 3},
        {"prompt": "steam", "duration": 4},
        {"prompt": "a hand takes it", "duration": 3},
    ]
    assert sent.payload["shot_type"] == "customize"
    assert sent.payload["prompt"] == "steam rises"


def test_without_shots_neither_field_is_sent(engine, api):
    for values in ({}, {"shots": "off"}):
        outcome = engine.run(prompt_of(engine, **values))
        assert outcome.succeeded, outcome.error
        assert not {"multi_prompt", "shot_type"} & set(api.submissions[-1].payload)


def test_an_empty_prompt_is_made_of_the_shots_and_that_is_said(engine, api):
    outcome = engine.run(prompt_of(engine, prompt=" ", duration=10, **THREE))
    assert outcome.succeeded, outcome.error
    assert api.submissions[0].payload["prompt"] == "a cup steam a hand takes it"
    assert "The prompt was empty" in outcome.texts[-1][1]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"duration": 12, **THREE},
            "but duration is 12 s. Set duration to 10 or set shot 3 to 5 s.",
        ),
        (
            {"duration": 10, **shots(("a", 5), ("b", 2))},
            "Shot 2 is 2 s. Set it to whole seconds from 3 to 15.",
        ),
        ({"duration": 10, **shots(("a", 5), (" ", 5))}, "Shot 2 has no prompt."),
        ({"duration": 10, "end_image": ["1", 0], "model": "kling-3.0/pro", **THREE}, "not both"),
    ],
)
def test_bad_shots_are_refused_when_the_graph_is_queued(engine, api, values, said):
    outcome = engine.run(prompt_of(engine, **values))
    (error,) = outcome.refused["2"]["errors"]
    assert said in error["details"]
    assert api.requests == []


def test_a_choice_that_there_is_not_is_refused_before_any_request(engine, api):
    outcome = engine.run(prompt_of(engine, shots="9 shots"))
    assert "shots is '9 shots'. Choose one of off, 2 shots, 3 shots" in outcome.error
    assert api.requests == []


def test_what_is_wired_to_a_shot_is_checked_before_any_request(engine, api):
    values = {**THREE, "shots.shot_2_duration": ["5", 0]}
    prompt = prompt_of(engine, duration=10, **values)
    prompt["5"] = {"class_type": "PrimitiveInt", "inputs": {"value": 9}}
    outcome = engine.run(prompt)
    assert not outcome.refused
    assert "Shots last 15 s in all, but duration is 10 s. Set duration to 15 or" in outcome.error
    assert api.requests == []


def test_long_prompts_are_warned_about_and_sent(engine, api):
    long = shots(("x" * 513, 5), ("y", 5))
    outcome = engine.run(prompt_of(engine, duration=10, prompt="z" * 2501, **long))
    assert outcome.succeeded, outcome.error
    assert "The prompt has 2501 characters; Kling's own limit is 2500" in outcome.texts[-1][1]
    assert "The prompt of shot 1 has 513 characters" in outcome.texts[-1][1]


def test_other_shots_are_another_request(engine, api):
    prompt = prompt_of(engine, duration=10, **THREE)
    assert engine.run(prompt).succeeded
    prompt["2"]["inputs"]["shots.shot_1_prompt"] = "a glass"
    assert engine.run(prompt).succeeded
    assert len(api.submissions) == 2


def test_submit_takes_shots_too(engine, api):
    prompt = prompt_of(engine, duration=10, **THREE)
    prompt["2"]["class_type"] = "RunComfyKlingSubmit"
    assert engine.run(prompt).succeeded
    assert len(api.submissions[0].payload["multi_prompt"]) == 3


@pytest.mark.parametrize(
    ("lengths", "duration", "said"),
    [
        ((3, 3), 10, "Set duration to 6 or set shot 2 to 7 s."),
        ((15, 15), 10, "Change several shots."),
        ((14, 3), 15, "Set shot 1 to 12 s."),
        ((5, 5, 5, 5), 10, "Change several shots."),
    ],
)
def test_a_sum_names_every_way_to_mend_it(lengths, duration, said):
    (fault,) = faults(duration_s=duration, shots=[Shot("x", length) for length in lengths])
    assert fault.endswith(said)


def test_too_many_shots_are_refused():
    (fault,) = faults(duration_s=15, shots=[Shot("x", 3)] * 6)
    assert "Use at most 5" in fault


def test_what_is_not_known_yet_is_no_fault():
    assert faults(duration_s=10, shots=[Shot(None, 5), Shot("b", None)]) == []
    assert faults(duration_s=None, shots=[Shot("a", 5), Shot("b", 9)]) == []


def test_all_shots_of_one_length_fill_the_clip():
    request = KlingRequest("", duration_s=15, shots=tuple(Shot(f"{n}", 3) for n in range(5)))
    assert request.payload("u")["prompt"] == "0 1 2 3 4"


@pytest.mark.parametrize("value", [None, "5", [5], 4.5])
def test_a_shots_length_of_the_wrong_kind_is_refused_before_any_request(engine, api, value):
    class Odd:
        RETURN_TYPES, FUNCTION = ("*",), "run"

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {}}

        def run(self):
            return (value,)

    engine.nodes.NODE_CLASS_MAPPINGS["TestOdd"] = Odd
    prompt = prompt_of(engine, duration=10, **{**THREE, "shots.shot_2_duration": ["5", 0]})
    prompt["5"] = {"class_type": "TestOdd", "inputs": {}}
    assert "shot_2_duration is" in engine.run(prompt).error
    assert api.requests == []
