"""The model's fields and limits, and the payload made of them."""

import pytest
from pack.nodes.core import kling
from pack.nodes.core.errors import InputError
from pack.nodes.core.kling import ElementUrls, KlingRequest, Shot

START = "https://example.org/a.png"


def test_the_least_payload_says_every_default():
    assert KlingRequest("a cat").payload(START) == {
        "prompt": "a cat",
        "start_image_url": START,
        "duration": 10,
        "generate_audio": True,
        "cfg_scale": 0.5,
    }


def test_the_fullest_payload_has_every_field_of_the_page():
    request = KlingRequest(
        "all",
        duration_s=8,
        generate_audio=False,
        negative_prompt="blur",
        cfg_scale=0.7,
        shots=(Shot("one", 3), Shot("two", 5)),
    )
    elements = [ElementUrls("https://e/f.png", ("https://e/r.png",)), ElementUrls(video_url="v")]
    assert request.payload(START, elements=elements) == {
        "prompt": "all",
        "start_image_url": START,
        "duration": 8,
        "generate_audio": False,
        "negative_prompt": "blur",
        "cfg_scale": 0.7,
        "shot_type": "customize",
        "multi_prompt": [{"prompt": "one", "duration": 3}, {"prompt": "two", "duration": 5}],
        "elements": [
            {"frontal_image_url": "https://e/f.png", "reference_image_urls": ["https://e/r.png"]},
            {"video_url": "v"},
        ],
    }


def test_an_empty_prompt_is_filled_from_the_shots():
    request = KlingRequest(" ", duration_s=6, shots=(Shot("one", 3), Shot("two", 3)))
    assert request.payload(START)["prompt"] == "one two"


def test_end_image_goes_to_pro_and_4k_only():
    for model in ("kling-3.0/pro", "kling-3.0/4k"):
        assert KlingRequest("x", model).payload(START, end_image_url="e")["end_image_url"] == "e"
    with pytest.raises(InputError, match=r"Set model to kling-3.0/pro or kling-3.0/4k"):
        KlingRequest("x").payload(START, end_image_url="e")


def test_end_image_and_shots_exclude_each_other():
    request = KlingRequest("x", "kling-3.0/pro", 6, shots=(Shot("a", 3), Shot("b", 3)))
    with pytest.raises(InputError, match="not both"):
        request.payload(START, end_image_url="e")


def test_more_than_three_elements_are_refused():
    with pytest.raises(InputError, match="4 elements"):
        KlingRequest("x").payload(START, elements=[ElementUrls(video_url="v")] * 4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt": " \n"}, "The prompt is empty"),
        ({"model": "kling-2"}, "'kling-2' is not known. Choose one of kling-3.0/standard"),
        ({"duration_s": 2}, "Duration is 2 s. Set it to whole seconds from 3 to 15"),
        ({"duration_s": 16}, "Duration is 16 s"),
        ({"duration_s": 4.5}, "Duration is 4.5 s"),
        ({"duration_s": float("nan")}, "Duration is nan s"),
        ({"cfg_scale": 1.05}, "cfg_scale is 1.05. Set it from 0 to 1"),
        ({"cfg_scale": float("nan")}, "cfg_scale is nan"),
        ({"shots": (Shot("a", 2), Shot("b", 8))}, "Shot 1 is 2 s"),
        ({"shots": (Shot("a", 5), Shot(" ", 5))}, "Shot 2 has no prompt"),
        ({"shots": (Shot("a", 3),) * 6}, "6 shots of at least 3 s do not fit into 15 s"),
        (
            {"shots": (Shot("a", 5), Shot("b", 7))},
            "Shots last 12 s in all, but duration is 10 s. Set duration to 12 or set shot 2 to 5 s",
        ),
        (
            {"shots": (Shot("a", 10), Shot("b", 10)), "duration_s": 15},
            "Shots last 20 s in all, but duration is 15 s. Set shot 2 to 5 s",
        ),
        (
            {"shots": (Shot("a", 3), Shot("b", 3), Shot("c", 3)), "duration_s": 4},
            "Set duration to 9 or change several shots",
        ),
    ],
)
def test_faults_name_the_value_the_limit_and_the_way_out(values, said):
    with pytest.raises(InputError) as caught:
        KlingRequest(**{"prompt": "x", **values})
    assert said in str(caught.value)


def test_every_fault_is_reported_at_once():
    with pytest.raises(InputError) as caught:
        KlingRequest("", duration_s=99, cfg_scale=7)
    assert len(str(caught.value).splitlines()) == 3


def test_unknown_values_are_not_faults_yet():
    assert kling.faults() == []
    assert kling.faults(duration_s=99) != []


@pytest.mark.parametrize(
    ("model", "silent", "audio"),
    [
        ("kling-3.0/standard", 0.84, 1.26),
        ("kling-3.0/pro", 1.12, 1.68),
        ("kling-3.0/4k", 4.2, 4.2),
    ],
)
def test_every_model_has_its_id_and_its_price_of_ten_seconds(model, silent, audio):
    request = KlingRequest("x", model, generate_audio=False)
    assert request.model_id == f"kling/{model}/image-to-video"
    assert request.price_usd() == pytest.approx(silent)
    assert KlingRequest("x", model, generate_audio=True).price_usd() == pytest.approx(audio)


def test_these_are_all_models():
    assert list(kling.MODELS) == ["kling-3.0/standard", "kling-3.0/pro", "kling-3.0/4k"]


@pytest.mark.parametrize(
    "url",
    [
        "C:\\pic.png",
        "/pictures/pic.png",
        "http://example.org/a.png",
        "https://localhost",
        "https://x",
        "https://exa mple.com/a.png",
        "https://example.org/a b.png",
        "https://u:p@example.org/a.png",
        "https://example.org:port/",
        "ftp://example.org/a.png",
        "data:image/png;base64,xxxx",
        "",
    ],
)
def test_addresses_that_runcomfy_cannot_fetch_are_refused(url):
    if url == "https://localhost":
        assert kling.is_loopback_url(url)  # refused by the runner unless the API is here too
        return
    (fault,) = kling.url_fault(url, "start_image_url")
    assert "starts with https://" in fault


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.png",
        "https://files.example.org:8443/a/b%20c.png?sig=x&y=1",
        "https://example.org",
    ],
)
def test_addresses_on_the_web_are_taken(url):
    assert kling.url_fault(url, "start_image_url") == []


@pytest.mark.parametrize(
    ("seed", "ok"), [(-1, False), (0, True), (2**64 - 1, True), (2**64, False)]
)
def test_the_seed_has_a_range(seed, ok):
    assert (kling.faults(seed=seed) == []) == ok


def test_a_duration_that_is_no_number_is_said():
    assert "Duration is 'abc'" in kling.faults(duration_s="abc")[0]
