"""Elements: what is sent for them, and what is refused before it costs money."""

import av
import numpy as np
import pytest
import torch
from node_case import prompt_of
from test_video import make_clip

ELEMENT = "RunComfyKlingElement"


class Picture:
    """Hands out a batch of pictures as an IMAGE."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls):
        sizes = {"width": ("INT", {}), "height": ("INT", {}), "count": ("INT", {})}
        return {"required": {**sizes, "shade": ("FLOAT", {})}}

    def run(self, width, height, count, shade):
        return (torch.full((count, height, width, 3), shade),)


def graph(engine, *elements, **values):
    """A clip with these elements, each the inputs of its node; a tuple stands for a picture."""
    engine.nodes.NODE_CLASS_MAPPINGS["TestPicture"] = Picture
    prompt = prompt_of(engine, **values)
    last = None
    for number, inputs in enumerate(elements, 1):
        wired = {}
        for name, value in inputs.items():
            wired[name] = value
            if isinstance(value, tuple):
                key = f"{number}_{name}"
                width, height, count = (*value, *(0, 360, 1)[len(value) :])
                shade = 0.02 * len(prompt)
                sizes = {"width": width, "height": height, "count": count, "shade": shade}
                prompt[key] = {"class_type": "TestPicture", "inputs": sizes}
                wired[name] = [key, 0]
        if last:
            wired["elements"] = [last, 0]
        last = f"element{number}"
        prompt[last] = {"class_type": ELEMENT, "inputs": wired}
    if last:
        prompt["2"]["inputs"]["elements"] = [last, 0]
    return prompt


def with_video(engine, prompt, path, node="LoadVideo"):
    """Feeds the file to every element whose video is wired to "v"."""
    target = engine.input / path.name
    if target != path:
        target.write_bytes(path.read_bytes())
    prompt["v"] = {"class_type": node, "inputs": {"file": path.name}}
    return prompt


FRONT, SIDE = {"frontal_image": (400,)}, "reference_image.reference_image_0"


def test_two_elements_are_sent_with_their_pictures(engine, api):
    both = {**FRONT, SIDE: (420,), "reference_image.reference_image_1": (440,)}
    prompt = graph(engine, both, FRONT, prompt="@Element1 hands it to @Element2")
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    first, second = api.submissions[0].payload["elements"]
    assert len(first["reference_image_urls"]) == 2
    pictures = [first["frontal_image_url"], *first["reference_image_urls"]]
    assert len(set(pictures)) == 3
    assert all(one.startswith("data:image/png;base64,") for one in pictures)
    assert second["reference_image_urls"] == [second["frontal_image_url"]]
    texts = "\n".join(text for _, text in outcome.texts)
    assert "the frontal image is sent as the reference, too" in texts
    assert "@Element2 in the prompt" in texts


def test_the_same_elements_are_the_same_request_and_others_are_not(engine, api):
    for _ in range(2):
        assert engine.run(graph(engine, FRONT, prompt="@Element1", seed=90001)).succeeded
    assert len(api.submissions) == 1
    other = {**FRONT, SIDE: (300,)}
    assert engine.run(graph(engine, other, prompt="@Element1", seed=90001)).succeeded
    assert len(api.submissions) == 2


def test_a_batch_of_references_counts_as_so_many(engine, api):
    outcome = engine.run(graph(engine, {**FRONT, SIDE: (400, 400, 3)}, prompt="@Element1"))
    assert outcome.succeeded, outcome.error
    assert len(api.submissions[0].payload["elements"][0]["reference_image_urls"]) == 3


@pytest.mark.parametrize(
    ("elements", "values", "said"),
    [
        ([{}], {}, "An element needs a frontal_image, or else a video"),
        ([{SIDE: (400,)}], {}, "An element needs a frontal_image"),
        ([{"frontal_image": (200, 400)}], {}, "frontal_image is 200 × 400 px"),
        ([{**FRONT, SIDE: (900, 300)}], {}, "reference_image_0 is 900 × 300 px"),
        ([{"frontal_image": (400, 400, 2)}], {}, "frontal_image holds 2 pictures"),
        ([{**FRONT, SIDE: (400, 400, 4)}], {}, "4 reference images are wired"),
        ([FRONT] * 4, {}, "4 elements are chained, Kling takes at most 3"),
        ([{**FRONT, "video_url": "https://a.example/b.mp4"}], {}, "pictures and video_url"),
        ([{"video_url": "https://a.example/b.mp4"}] * 2, {}, "Two elements are videos"),
        ([{"video_url": "C:\\clip.mp4"}], {}, "video_url is 'C:\\\\clip.mp4'"),
        (
            [FRONT],
            {"prompt": "@Element2"},
            "The prompt mentions @Element2, but only one element is wired",
        ),
    ],
)
def test_what_kling_does_not_take_is_refused_before_any_request(
    engine, api, elements, values, said
):
    outcome = engine.run(graph(engine, *elements, **{"prompt": "@Element1", **values}))
    assert said in outcome.error
    assert api.requests == []


def test_an_element_that_is_mentioned_but_not_wired_is_refused_when_queued(engine, api):
    outcome = engine.run(graph(engine, prompt="@Element1 drinks"))
    (error,) = outcome.refused["2"]["errors"]
    assert "The prompt mentions @Element1, but no element is wired" in error["details"]


def test_an_element_that_is_never_mentioned_is_pointed_out(engine, api):
    outcome = engine.run(graph(engine, FRONT, FRONT, prompt="@Element1 drinks"))
    assert outcome.succeeded, outcome.error
    assert "Element 2 is mentioned nowhere. Write @Element2" in outcome.texts[-1][1]


def test_a_mention_in_a_shot_counts(engine, api):
    shots = {
        "shots": "2 shots",
        "shots.shot_1_prompt": "@Element1 waits",
        "shots.shot_1_duration": 5,
        "shots.shot_2_prompt": "it goes",
        "shots.shot_2_duration": 5,
    }
    outcome = engine.run(graph(engine, FRONT, prompt="", duration=10, **shots))
    assert outcome.succeeded, outcome.error
    assert "mentioned nowhere" not in outcome.texts[-1][1]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """4 s, 800 × 720."""
    return make_clip(tmp_path_factory.mktemp("v") / "subject.mp4", frames=96, size=(800, 720))


def video_element(engine, clip, **values):
    return with_video(engine, graph(engine, {"video": ["v", 0]}, prompt="@Element1"), clip)


def test_an_mp4_is_sent_as_it_is(engine, api, clip):
    outcome = engine.run(video_element(engine, clip))
    assert outcome.succeeded, outcome.error
    (element,) = api.submissions[0].payload["elements"]
    assert list(element) == ["video_url"]
    head, _, data = element["video_url"].partition(",")
    assert head == "data:video/mp4;base64"
    import base64

    assert base64.b64decode(data) == clip.read_bytes()


def test_a_trimmed_video_is_written_out_and_is_the_same_request_again(engine, api, clip):
    prompt = video_element(engine, clip)
    cut = {"video": ["v", 0], "start_time": 0.5, "duration": 3.2, "strict_duration": False}
    prompt["cut"] = {"class_type": "Video Slice", "inputs": cut}
    prompt["element1"]["inputs"]["video"] = ["cut", 0]
    for _ in range(2):
        outcome = engine.run(prompt)
        assert outcome.succeeded, outcome.error
    assert len(api.submissions) == 1
    url = api.submissions[0].payload["elements"][0]["video_url"]
    assert url.startswith("data:video/mp4;base64,")


def test_a_video_in_memory_is_written_out(engine, api):
    prompt = graph(engine, {"video": ["made", 0]}, prompt="@Element1")
    sizes = {"width": 720, "height": 720, "count": 72, "shade": 0.5}
    prompt["frames"] = {"class_type": "TestPicture", "inputs": sizes}
    made = {"images": ["frames", 0], "fps": 24.0}
    prompt["made"] = {"class_type": "CreateVideo", "inputs": made}
    outcome = engine.run(prompt)
    assert outcome.succeeded, outcome.error
    assert api.submissions[0].payload["elements"][0]["video_url"].startswith("data:video/mp4")


def test_another_container_is_written_out_as_mp4(engine, api, clip, tmp_path):
    other = tmp_path / "subject.mkv"
    with av.open(str(clip)) as source, av.open(str(other), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    outcome = engine.run(video_element(engine, other))
    assert outcome.succeeded, outcome.error


@pytest.mark.parametrize(
    ("frames", "size", "said"),
    [
        (48, (800, 720), "The video lasts 2.00 s; an element's lasts 3 to 10 s"),
        (96, (640, 480), "The video is 640 × 480 px; each side of an element's must have 720"),
    ],
)
def test_a_video_that_kling_does_not_take_is_refused(engine, api, tmp_path, frames, size, said):
    clip = make_clip(tmp_path / f"bad{frames}.mp4", frames=frames, size=size)
    assert said in engine.run(video_element(engine, clip)).error
    assert api.requests == []


def test_a_video_that_is_too_large_for_the_request_names_the_other_ways(engine, api, tmp_path):
    path = tmp_path / "large.mp4"
    noise = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 1280, 1280, "yuv420p"
        stream.options = {"crf": "1", "preset": "ultrafast"}
        for _ in range(76):
            image = noise.integers(0, 255, (1280, 1280, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    assert path.stat().st_size > 40e6
    error = engine.run(video_element(engine, path)).error
    assert "RUNCOMFY_OBJECT_STORE_URL" in error and "Nothing was charged" in error
    assert api.submissions == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("@Elemento1 bebe", "The prompt says @Elemento1. An element is named such as @Element1."),
        ("@Element_1 drinks", "The prompt says @Element_1."),
        ("@Element01 drinks", "The prompt says @Element01."),
        ("mail me@element1.com", None),
        ("@Element1喝茶", None),
    ],
)
def test_a_mention_that_is_nearly_one_is_refused(text, said):
    from pack.nodes.core.elements import mention_faults

    found = mention_faults({"The prompt": text}, 1)
    assert found == [] if said is None else found[0].startswith(said)


def test_a_video_of_odd_sides_that_has_to_be_written_out_says_what_to_do(engine, api):
    prompt = graph(engine, {"video": ["made", 0]}, prompt="@Element1")
    sizes = {"width": 721, "height": 723, "count": 73, "shade": 0.5}
    prompt["frames"] = {"class_type": "TestPicture", "inputs": sizes}
    prompt["made"] = {"class_type": "CreateVideo", "inputs": {"images": ["frames", 0], "fps": 24.0}}
    error = engine.run(prompt).error
    assert "721 × 723 px; to be written as MP4 it needs even sides" in error
    assert api.requests == []
