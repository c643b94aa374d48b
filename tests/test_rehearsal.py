"""The stand-in over real HTTP: protocol, strictness, clips and faults."""

import base64
import functools
import http.client
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from pathlib import Path

import av
import numpy as np
import pytest
import requests
from pack.nodes.rehearsal import Fault, FaultKind, RehearsalServer
from pack.nodes.rehearsal.media import MAX_BYTES
from PIL import Image

STANDARD, PRO, FOUR_K = (
    f"kling/kling-3.0/{tier}/image-to-video" for tier in ("standard", "pro", "4k")
)
NODES = Path(__file__).resolve().parents[1] / "nodes"


def picture(kind="PNG", size=(640, 360), colour=(200, 60, 40)):
    """A plain image file with one bright corner, as bytes."""
    image = Image.new("RGB", size, colour)
    image.paste((250, 250, 250), (0, 0, size[0] // 4, size[1] // 4))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def data_uri(data=None, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data or picture()).decode()}"


def body(**fields):
    return {"prompt": "waves", "start_image_url": data_uri(), "duration": 3} | fields


class Client:
    """The fewest words to talk to one server."""

    def __init__(self, server):
        self.server = server
        self.headers = {"Authorization": f"Bearer {server.token}"}

    def get(self, path, **params):
        url = path if path.startswith("http") else self.server.origin + path
        return requests.get(url, params=params, headers=self.headers, timeout=20)

    def post(self, path, **options):
        return requests.post(self.server.origin + path, headers=self.headers, timeout=20, **options)

    def send(self, model=STANDARD, **fields):
        return self.post(f"/v1/models/{model}", json=body(**fields))

    def submit(self, model=STANDARD, **fields):
        reply = self.send(model, **fields)
        assert reply.status_code == 200, reply.text
        return reply.json()["request_id"]

    def call(self, request_id, name, **params):
        return self.get(f"/v1/requests/{request_id}/{name}", **params)

    def finish(self, request_id, **params):
        """Poll until the job is over; the last reply of /result."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            reply = self.call(request_id, "result", **params)
            if reply.ok and reply.json()["finished_at"]:
                return reply.json()
            time.sleep(0.05)
        raise TimeoutError(request_id)

    def clip(self, **fields):
        """Run a job to its end and open the clip it made."""
        model = fields.pop("model", STANDARD)
        url = self.finish(self.submit(model, **fields))["output"]["video"]
        return io.BytesIO(requests.get(url, timeout=20).content)

    def refusal(self, model=STANDARD, **fields):
        """The locs of the 422 that this body meets."""
        reply = self.send(model, **fields)
        assert reply.status_code == 422, reply.text
        return [item["loc"] for item in reply.json()["detail"]]


@pytest.fixture
def api(tmp_path):
    with RehearsalServer(tmp_path / "clips", queue_s=0, run_s=0) as server:
        yield Client(server)


@pytest.fixture
def files(tmp_path):
    """A plain web server on loopback: its folder and its origin."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        seen = []

        def log_message(self, *_):
            self.seen.append(dict(self.headers))

    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(Handler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield served, f"http://127.0.0.1:{server.server_port}", Handler.seen
        server.shutdown()


@functools.cache
def mp4(size=(720, 720), frames=72, rate=24, faststart=False):
    """A video of that many grey frames, as bytes; by default the smallest that Kling takes."""
    options = {"movflags": "+faststart"} if faststart else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"preset": "ultrafast"}
            for _ in range(frames):
                container.mux(stream.encode(av.VideoFrame(*size, "yuv420p")))
            container.mux(stream.encode(None))
        return path.read_bytes()


# Protocol


def test_submit_answers_an_id_and_three_urls_that_work(api):
    reply = api.send().json()
    assert set(reply) == {"request_id", "status_url", "result_url", "cancel_url"}
    assert uuid.UUID(reply["request_id"]).version == 4
    assert api.get(reply["status_url"]).json()["request_id"] == reply["request_id"]
    assert api.get(reply["result_url"]).json()["request_id"] == reply["request_id"]
    assert requests.post(reply["cancel_url"], headers=api.headers, timeout=9).status_code == 202


@pytest.mark.parametrize("bearer", [None, "Bearer wrong", "Basic abc", "Bearer ü"])
def test_a_missing_or_wrong_bearer_is_401_in_the_apis_words(api, bearer):
    headers = {"Authorization": bearer.encode()} if bearer else {}
    url = f"{api.server.origin}/v1/models/{STANDARD}"
    reply = requests.post(url, json=body(), headers=headers, timeout=9)
    assert (reply.status_code, reply.json()["error_code"]) == (401, 400004)
    assert not api.server.submissions and not api.server.requests[-1].authorized


def test_a_wrong_model_id_is_404_with_its_code(api):
    for reply in (api.send("kling/kling-3.0/image-to-video"), api.get("/v1/models/none")):
        assert (reply.status_code, reply.json()["error_code"]) == (404, 400001)


def test_an_unknown_request_is_404_with_its_code(api):
    unknown = f"/v1/requests/{uuid.uuid4()}"
    for reply in (
        api.get(f"{unknown}/status"),
        api.get(f"{unknown}/result"),
        api.post(f"{unknown}/cancel"),
    ):
        assert (reply.status_code, reply.json()["error_code"]) == (404, 404001)


@pytest.mark.parametrize("text", ["{", "", "\xff", '{"cfg_scale": NaN}', "[" * 100_000])
def test_a_body_that_is_not_json_is_400(api, text):
    headers = api.headers | {"Content-Type": "application/json"}
    url = f"{api.server.origin}/v1/models/{STANDARD}"
    reply = requests.post(url, data=text.encode("latin-1"), headers=headers, timeout=9)
    assert reply.status_code == 400 and reply.json()["error_message"]


def test_json_that_is_not_declared_as_json_is_400(api):
    reply = api.post(f"/v1/models/{STANDARD}", data=json.dumps(body()))
    assert reply.status_code == 400 and "application/json" in reply.json()["error_message"]


def test_a_body_over_64_mib_is_413_and_one_of_64_mib_is_read(api):
    headers = api.headers | {"Content-Type": "application/json"}
    url = f"{api.server.origin}/v1/models/{STANDARD}"
    for extra, status in ((0, 422), (1, 413)):
        data = b"[1]".ljust(64 * 1024 * 1024 + extra)
        assert requests.post(url, data=data, headers=headers, timeout=30).status_code == status


def test_states_follow_the_clock_and_the_queue_counts_down(api):
    api.server.plan(queue_s=0.6, run_s=0.8)
    request_id, seen, places = api.submit(), [], []
    while not seen or seen[-1] != "completed":
        status = api.call(request_id, "status").json()
        assert ("queue_position" in status) == (status["status"] == "in_queue")
        places += [status["queue_position"]] if "queue_position" in status else []
        seen += [status["status"]] if seen[-1:] != [status["status"]] else []
        time.sleep(0.05)
    assert seen == ["in_queue", "in_progress", "completed"]
    assert places == sorted(places, reverse=True) and {places[0], places[-1]} == {3, 1}
    assert api.call(request_id, "result").json()["status"] == "succeeded"


def test_a_job_is_not_over_before_its_run_time(api):
    api.server.plan(queue_s=0.5, run_s=1.5)
    started = time.monotonic()
    api.finish(api.submit())
    assert time.monotonic() - started >= 2.0


def test_result_before_the_end_has_neither_output_nor_cost(api):
    api.server.plan(queue_s=30)
    result = api.call(api.submit(), "result", include_cost="true").json()
    assert set(result) == {"request_id", "status", "created_at", "finished_at"}
    assert result["status"] == "in_queue" and result["finished_at"] is None


@pytest.mark.parametrize(("audio", "usd"), [(False, 0.252), (True, 0.378)])
def test_cost_is_told_only_when_asked_for(api, audio, usd):
    request_id = api.submit(generate_audio=audio)
    assert "cost" not in api.finish(request_id)
    assert api.finish(request_id, include_cost="true")["cost"] == usd


def test_a_queued_job_can_be_cancelled_and_makes_no_clip(api):
    api.server.plan(queue_s=30)
    request_id = api.submit()
    reply = api.post(f"/v1/requests/{request_id}/cancel")
    assert reply.status_code == 202
    assert reply.json() == {
        "request_id": request_id,
        "status": "cancelled",
        "outcome": "cancelled",
    }
    assert api.call(request_id, "result").json()["status"] == "cancelled"
    assert api.call(request_id, "status").json()["status"] == "cancelled"


def test_a_running_and_a_finished_job_cannot_be_cancelled(api):
    api.server.plan(run_s=30)
    running, finished = api.submit(), api.submit()
    api.finish(finished)
    for request_id, status in ((running, "in_progress"), (finished, "completed")):
        reply = api.post(f"/v1/requests/{request_id}/cancel").json()
        assert (reply["outcome"], reply["status"]) == ("not_cancellable", status)


@pytest.mark.parametrize(
    ("model", "rate", "has_end"),
    [(STANDARD, 0.084, False), (PRO, 0.112, True), (FOUR_K, 0.42, True)],
)
def test_the_catalogue_tells_rate_and_schema(api, model, rate, has_end):
    card = api.get(f"/v1/models/{model}").json()
    assert (card["model_id"], card["base_price_usd"], card["price_unit"]) == (model, rate, "second")
    assert card["required_inputs"] == ["prompt", "start_image_url"]
    fields = card["input_schema"]["properties"]
    assert set(fields) == set(card["inputs"]) and ("end_image_url" in fields) == has_end
    assert [fields["duration"][k] for k in ("minimum", "maximum", "default")] == [3, 15, 10]
    assert fields["shot_type"]["enum"] == ["customize"]
    assert [fields["cfg_scale"][k] for k in ("type", "minimum", "maximum")] == ["float", 0, 1]
    shot = fields["multi_prompt"]["items"]["properties"]["duration"]
    assert [shot[k] for k in ("minimum", "maximum", "default")] == [3, 15, 5]


# The schema, each rule by a body that breaks it


@pytest.mark.parametrize(
    ("fields", "loc"),
    [
        ({"prompt": ""}, ["prompt"]),
        ({"prompt": "  "}, ["prompt"]),
        ({"prompt": None}, ["prompt"]),
        ({"start_image_url": ""}, ["start_image_url"]),
        ({"duration": 2}, ["duration"]),
        ({"duration": 16}, ["duration"]),
        ({"duration": "10"}, ["duration"]),
        ({"duration": 3.0}, ["duration"]),
        ({"duration": True}, ["duration"]),
        ({"generate_audio": 1}, ["generate_audio"]),
        ({"negative_prompt": None}, ["negative_prompt"]),
        ({"cfg_scale": 1.01}, ["cfg_scale"]),
        ({"cfg_scale": -0.01}, ["cfg_scale"]),
        ({"cfg_scale": "0.5"}, ["cfg_scale"]),
        ({"shot_type": "intelligent"}, ["shot_type"]),
        ({"seed": 1}, ["seed"]),
        ({"end_image_url": data_uri()}, ["end_image_url"]),
        ({"multi_prompt": [{"prompt": "a", "duration": 2}]}, ["multi_prompt", 0, "duration"]),
        ({"multi_prompt": [{"prompt": "a", "duration": 4}]}, ["multi_prompt"]),
        ({"multi_prompt": [{"prompt": "a"}]}, ["multi_prompt"]),
        ({"multi_prompt": [{"duration": 3}]}, ["multi_prompt", 0, "prompt"]),
        ({"multi_prompt": [{"prompt": "a", "duration": 3}] * 21}, ["multi_prompt"]),
        ({"elements": [{}]}, ["elements", 0]),
        ({"elements": [{"frontal_image_url": data_uri()}]}, ["elements", 0]),
        ({"elements": [{"reference_image_urls": [data_uri()]}]}, ["elements", 0]),
        ({"elements": [{"video_url": "https://a.b/c.mp4"}] * 2}, ["elements"]),
        ({"elements": [{"video_url": "https://a.b/c.mp4"}] * 4}, ["elements"]),
    ],
)
def test_a_broken_field_is_422_at_its_place(api, fields, loc):
    assert api.refusal(**fields) == [["body", *loc]]
    assert not api.server.submissions


@pytest.mark.parametrize("missing", ["prompt", "start_image_url"])
def test_a_required_field_must_be_there(api, missing):
    sent = body()
    del sent[missing]
    reply = api.post(f"/v1/models/{STANDARD}", json=sent)
    assert reply.status_code == 422
    assert reply.json()["detail"][0] | {"msg": ""} == {
        "loc": ["body", missing],
        "msg": "",
        "type": "missing",
    }


def test_absent_durations_count_with_their_defaults(api):
    api.server.plan(queue_s=30)
    sent = body(multi_prompt=[{"prompt": "a"}, {"prompt": "b"}])
    del sent["duration"]
    assert api.post(f"/v1/models/{STANDARD}", json=sent).status_code == 200


def test_an_element_takes_one_to_three_references_and_no_video_beside(api):
    image = data_uri()
    element = {"frontal_image_url": image, "reference_image_urls": [image] * 3}
    api.submit(elements=[element] * 3)
    too_many = element | {"reference_image_urls": [image] * 4}
    assert api.refusal(elements=[too_many]) == [["body", "elements", 0, "reference_image_urls"]]
    both = element | {"video_url": data_uri(mp4(), "video/mp4")}
    assert api.refusal(elements=[element, both]) == [["body", "elements", 1]]


def test_an_end_image_goes_with_pro_but_not_with_shots(api):
    api.server.plan(queue_s=30)
    api.submit(PRO, end_image_url=data_uri())
    shots = [{"prompt": "a", "duration": 3}]
    locs = api.refusal(PRO, end_image_url=data_uri(), multi_prompt=shots)
    assert locs == [["body", "end_image_url"]]


def test_a_422_never_echoes_what_was_sent(api):
    secret = data_uri(picture("JPEG"), "image/png")
    for fields in ({"start_image_url": secret}, {"prompt": [secret]}, {secret: 1}):
        text = api.send(**fields).text
        assert "detail" in text and secret[60:120] not in text


# Media


@pytest.mark.parametrize(
    ("kind", "declared"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("BMP", "image/bmp")],
)
def test_each_documented_image_type_is_taken(api, kind, declared):
    api.server.plan(queue_s=30)
    api.submit(start_image_url=data_uri(picture(kind), declared))


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        (data_uri(kind="image/jpeg"), "declared as image/jpeg but is image/png"),
        (data_uri(kind="image/jpg"), "declared as image/jpg"),
        (data_uri(picture("GIF"), "image/gif"), "not a readable"),
        (data_uri(picture()[:900]), "not a readable"),
        (data_uri(b"no image"), "not a readable"),
        (data_uri().replace(",", ",*"), "base64"),
        ("data:image/png,abc", "of the form"),
        (data_uri(picture(size=(299, 400))), "300"),
        (data_uri(picture(size=(752, 300))), "aspect"),
        (data_uri(picture("BMP", (2000, 1700)), "image/bmp"), "10000000"),
        ("http://example.org/a.png", "https"),
        ("https://", "https"),
        ("file:///etc/hosts", "https"),
        ("image.png", "https"),
    ],
)
def test_a_start_image_that_kling_cannot_take_is_422(api, uri, reason):
    reply = api.send(start_image_url=uri)
    assert reply.status_code == 422
    (detail,) = reply.json()["detail"]
    assert detail["loc"] == ["body", "start_image_url"] and reason in detail["msg"]


def test_the_limits_of_an_image_are_inside(api):
    api.server.plan(queue_s=30)
    api.submit(start_image_url=data_uri(picture(size=(750, 300))))


def test_a_bad_image_of_an_element_is_named_by_its_place(api):
    element = {"frontal_image_url": data_uri(), "reference_image_urls": [data_uri(), "x"]}
    loc = ["body", "elements", 0, "reference_image_urls", 1]
    assert api.refusal(elements=[element]) == [loc]


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (picture(), "image/png", "declared as image/png; a video must be video/mp4"),
        (picture(), "video/mp4", "not an mp4"),
        (mp4(), "video/webm", "declared as video/webm"),
        (b"no video", "video/mp4", "not a readable video"),
        (mp4()[:-900], "video/mp4", "not an mp4 with a video stream"),
        (mp4(faststart=True)[:-900], "video/mp4", "; a video must last 3 to 10.05 s"),
        (mp4(frames=71), "video/mp4", "lasts 2.96 s; a video must last 3 to 10.05 s"),
        (mp4(frames=405, rate=40), "video/mp4", "lasts 10.12 s"),
        (mp4((718, 720)), "video/mp4", "718x720 px; each side of a video must have 720 to 2160 px"),
        (mp4((2162, 720)), "video/mp4", "2162x720 px"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_video_that_kling_cannot_take_is_422_at_its_place(api, data, kind, reason):
    image = {"frontal_image_url": data_uri(), "reference_image_urls": [data_uri()]}
    reply = api.send(elements=[image, {"video_url": data_uri(data, kind)}])
    assert reply.status_code == 422
    (detail,) = reply.json()["detail"]
    assert detail["loc"] == ["body", "elements", 1, "video_url"]
    assert detail["msg"].startswith("elements[1].video_url ") and reason in detail["msg"]


@pytest.mark.parametrize(
    "video",
    [{}, {"frames": 241}, {"size": (2160, 720)}],
    ids=["3 s of 720 px", "10.04 s", "2160 px"],
)
def test_the_limits_of_a_video_are_inside(api, video):
    api.server.plan(queue_s=30)
    api.submit(elements=[{"video_url": data_uri(mp4(**video), "video/mp4")}])


def test_a_video_by_url_is_fetched_and_decoded_by_the_job(api, files, monkeypatch):
    folder, origin, _ = files
    (folder / "a.mp4").write_bytes(mp4())
    (folder / "cut.mp4").write_bytes(mp4(faststart=True)[:-900])
    good, cut = (
        api.finish(api.submit(elements=[{"video_url": f"{origin}/{name}.mp4"}]))
        for name in ("a", "cut")
    )
    assert good["status"] == "succeeded"
    assert cut["error"].startswith("elements[0].video_url lasts 2.")
    assert MAX_BYTES["video"] == 200_000_000
    monkeypatch.setitem(MAX_BYTES, "video", len(mp4()) - 1)
    large = api.finish(api.submit(elements=[{"video_url": f"{origin}/a.mp4"}]))
    assert f"elements[0].video_url is larger than {len(mp4()) - 1} bytes" in large["error"]


def test_a_bad_picture_and_a_bad_video_are_both_named(api):
    bad = {"frontal_image_url": data_uri(), "reference_image_urls": [data_uri(b"no image")]}
    small = {"video_url": data_uri(mp4((640, 640)), "video/mp4")}
    assert api.refusal(elements=[bad, small]) == [
        ["body", "elements", 0, "reference_image_urls", 0],
        ["body", "elements", 1, "video_url"],
    ]


def test_an_image_by_url_is_fetched_by_the_job_without_token_or_cookie(api, files):
    folder, origin, seen = files
    (folder / "a.png").write_bytes(picture())
    result = api.finish(api.submit(start_image_url=f"{origin}/a.png"))
    assert result["status"] == "succeeded"
    assert seen and not {"Authorization", "Cookie"} & set(seen[0])


def test_an_image_url_that_fails_ends_the_job_and_names_the_field(api, files):
    folder, origin, _ = files
    (folder / "bad.png").write_bytes(b"no image")
    element = {"frontal_image_url": data_uri(), "reference_image_urls": [f"{origin}/bad.png"]}
    gone = api.finish(api.submit(start_image_url=f"{origin}/gone.png"))
    bad = api.finish(api.submit(elements=[element]), include_cost="true")
    assert gone["status"] == bad["status"] == "failed" and bad["cost"] == 0
    assert "start_image_url" in gone["error"] and "404" in gone["error"]
    assert "elements[0].reference_image_urls[0]" in bad["error"] and "output" not in bad


def test_a_login_in_front_of_a_picture_gets_no_cookie_back_and_fails_the_job(api):
    seen = []

    class Login(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            """Nothing to the terminal."""

        def do_GET(self):
            seen.append(dict(self.headers))
            self.send_response(200 if self.path == "/login" else 302)
            self.send_header("Set-Cookie", "session=1; Path=/")
            self.send_header("Location", "/login")
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>Sign in</html>")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Login) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        result = api.finish(api.submit(start_image_url=url))
        server.shutdown()
    assert "start_image_url could not be fetched: a web page stands there" in result["error"]
    assert len(seen) == 2 and not {"Authorization", "Cookie"} & set(seen[1])


# The clip


def test_the_clip_is_h264_and_aac_of_the_asked_length_and_the_images_aspect(api):
    with av.open(api.clip(start_image_url=data_uri(picture(size=(400, 600))))) as clip:
        video, audio = clip.streams.video[0], clip.streams.audio[0]
        assert (video.codec.name, video.pix_fmt, audio.codec.name) == ("h264", "yuv420p", "aac")
        assert (video.width, video.height, video.average_rate) == (720, 1080, 24)
        assert (audio.sample_rate, audio.layout.name) == (44100, "stereo")
        assert float(video.duration * video.time_base) == 3
        assert abs(float(audio.duration * audio.time_base) - 3) < 0.03
        assert sum(1 for _ in clip.decode(video=0)) == 72


def test_a_silent_clip_has_no_audio_stream_and_starts_with_its_index(api):
    file = api.clip(generate_audio=False)
    assert 0 < file.getvalue().find(b"moov") < file.getvalue().find(b"mdat")
    with av.open(file) as clip:
        assert not clip.streams.audio


def test_pro_makes_1080_and_4k_makes_2160():
    from pack.nodes.rehearsal.render import Clip
    from pack.nodes.rehearsal.schema import MODELS

    image = Image.new("RGB", (1600, 900))
    sizes = [Clip(image, 3, MODELS[m].short_side_px, False).size for m in (PRO, FOUR_K)]
    assert sizes == [(1920, 1080), (3840, 2160)]


def frames(file, *indexes):
    """Those frames of a clip as [H, W, 3] arrays, wide enough to subtract."""
    with av.open(file) as clip:
        shown = [f for n, f in enumerate(clip.decode(video=0)) if n in indexes]
        return [frame.to_ndarray(format="rgb24").astype(np.int16) for frame in shown]


def test_the_clip_shows_the_submitted_picture_moving_under_a_mark(api):
    first, second, last = frames(api.clip(), 0, 24, 71)
    assert np.abs(first[300:600, 500:1200].mean((0, 1)) - (200, 60, 40)).max() < 6
    assert np.abs(first[:100, :200].mean((0, 1)) - (250, 250, 250)).max() < 6
    assert np.abs(first[:640] - last[:640]).max() > 100
    band = first[-50:]
    assert band.max() > 200 and np.median(band) < 80
    assert np.abs(band - second[-50:]).max() > 100


def test_an_end_image_is_reached_in_the_last_quarter(api):
    end = data_uri(picture(colour=(20, 60, 220)))
    shown = frames(api.clip(model=PRO, end_image_url=end), 50, 71)
    before, last = (frame[400:700, 800:1800].mean((0, 1)) for frame in shown)
    assert np.abs(before - (200, 60, 40)).max() < 6
    assert np.abs(last - (20, 60, 220)).max() < 6


def test_the_mark_shows_the_shot(tmp_path):
    from pack.nodes.rehearsal.render import Clip, render

    def marks(shots):
        clip = Clip(Image.new("RGB", (640, 360)), 3, 360, audio=False, shots=shots)
        render(clip, tmp_path / "clip.mp4", lambda: False)
        # Right of the counter, which changes by itself.
        return [frame[-30:, 190:] for frame in frames(str(tmp_path / "clip.mp4"), 30, 60)]

    plain, (one, two) = marks(()), marks((2, 1))
    assert np.abs(plain[0] - plain[1]).max() < 40
    assert np.abs(one - plain[0]).max() > 100
    assert np.abs(one - two).max() > 100


def test_only_finished_clips_are_in_the_folder_and_served(api, tmp_path):
    api.server.plan(run_s=30)
    running, finished = api.submit(), api.submit()
    api.finish(finished)
    url = f"{api.server.origin}/files/{running}/output.mp4"
    assert requests.get(url, timeout=9).status_code == 404
    assert {p.name for p in (tmp_path / "clips").iterdir()} == {
        f"{running}.mp4",
        f"{finished}.mp4",
    }


def test_the_file_takes_ranges_and_says_what_it_is(api):
    url = api.finish(api.submit())["output"]["video"]
    whole = requests.get(url, timeout=9)
    part = requests.get(url, headers={"Range": "bytes=100-199"}, timeout=9)
    assert int(whole.headers["Content-Length"]) == len(whole.content)
    assert whole.headers["Content-Type"] == "video/mp4"
    assert (part.status_code, part.content) == (206, whole.content[100:200])
    assert part.headers["ETag"] == whole.headers["ETag"] and whole.headers["Last-Modified"]


def test_a_token_sent_to_the_file_is_refused(api):
    url = api.finish(api.submit())["output"]["video"]
    assert requests.get(url, headers=api.headers, timeout=9).status_code == 400
    assert api.server.requests[-1].authorized


# Faults


def test_lost_reply_runs_the_job_and_sends_no_byte(api):
    api.server.plan(Fault(FaultKind.LOST_REPLY))
    with pytest.raises(requests.ConnectionError, match="without response"):
        api.send(prompt="lost")
    (submission,) = api.server.submissions
    assert submission.payload == body(prompt="lost") and submission.model_id == STANDARD
    assert api.finish(submission.request_id)["status"] == "succeeded"


def test_html_502_spoils_the_next_polls_of_its_job_alone(api):
    api.server.plan(Fault("html_502", times=2))
    spoilt, other = api.submit(), api.submit()
    replies = [api.call(spoilt, name) for name in ("status", "result", "status")]
    assert [reply.status_code for reply in replies] == [502, 502, 200]
    assert "text/html" in replies[0].headers["Content-Type"] and "<html" in replies[0].text
    assert api.call(other, "status").status_code == 200


@pytest.mark.parametrize(("retry_after", "header"), [(None, None), (2, "2")])
def test_rate_limit_answers_429_in_json(api, retry_after, header):
    api.server.plan(Fault("rate_limit", retry_after=retry_after))
    request_id = api.submit()
    limited = api.call(request_id, "result")
    assert (limited.status_code, limited.headers.get("Retry-After")) == (429, header)
    assert limited.json()["error_message"]
    assert api.call(request_id, "result").status_code == 200


def test_failed_job_reads_completed_on_status_and_failed_on_result(api):
    api.server.plan(Fault("failed_job", message="content refused"))
    request_id = api.submit()
    result = api.finish(request_id, include_cost="true")
    assert (result["status"], result["error"]) == ("failed", "content refused")
    assert "output" not in result and result["cost"] == 0
    assert api.call(request_id, "status").json()["status"] == "completed"


def get_cut(url, **headers):
    """Headers and body of a GET that must break off in the middle."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
        with pytest.raises(http.client.IncompleteRead) as broken:
            reply.read()
        return reply.headers, broken.value.partial


def test_cut_download_breaks_off_and_a_range_resumes(api):
    api.server.plan(Fault("cut_download", times=2), Fault("cut_download", after_bytes=64))
    url = api.finish(api.submit())["output"]["video"]
    headers, have = get_cut(url)
    size = int(headers["Content-Length"])
    assert len(have) == size // 2
    more_headers, more = get_cut(url, Range=f"bytes={len(have)}-")
    assert more_headers["Content-Range"] == f"bytes {len(have)}-{size - 1}/{size}"
    assert len(get_cut(url)[1]) == 64
    have += more
    rest = requests.get(url, headers={"Range": f"bytes={len(have)}-"}, timeout=9)
    whole = requests.get(url, timeout=9)
    assert have + rest.content == whole.content
    assert whole.headers["ETag"] == headers["ETag"] == more_headers["ETag"]
    assert whole.headers["Last-Modified"] == headers["Last-Modified"]


def test_plans_queue_up_one_job_each_and_a_refused_submit_uses_none(api):
    api.server.plan(Fault("failed_job", message="one"))
    api.server.plan(Fault("failed_job", message="two"))
    api.refusal(duration=1)
    jobs = [api.submit() for _ in range(3)]
    assert [api.finish(job).get("error") for job in jobs] == ["one", "two", None]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "typo"},
        {"kind": "html_502", "times": 0},
        {"kind": "lost_reply", "times": 2},
        {"kind": "rate_limit", "retry_after": -1},
        {"kind": "cut_download", "after_bytes": -1},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_in_words(api, fault):
    with pytest.raises(ValueError, match=r"fault|times|retry_after|after_bytes"):
        Fault(**fault)
    reply = api.post("/rehearsal/plan", json={"faults": [fault]})
    assert reply.status_code == 422 and reply.json()["error_message"]


def test_an_unknown_field_of_a_plan_is_refused(api):
    for plan in ({"fault": []}, {"faults": [{"kind": "html_502", "count": 1}]}, {"run_s": "1"}):
        assert api.post("/rehearsal/plan", json=plan).status_code == 422


def test_a_plan_over_http_sets_faults_and_pace(api):
    plan = {"faults": [{"kind": "html_502"}], "queue_s": 30, "run_s": 1}
    assert api.post("/rehearsal/plan", json=plan).ok
    request_id = api.submit()
    assert api.call(request_id, "status").status_code == 502
    assert api.call(request_id, "status").json()["status"] == "in_queue"


# The record


def test_submissions_over_http_shorten_data_uris(api):
    request_id = api.submit()
    (shown,) = api.get("/rehearsal/submissions").json()["submissions"]
    assert shown["request_id"] == request_id and shown["payload"]["prompt"] == "waves"
    uri = data_uri()
    assert shown["payload"]["start_image_url"].startswith(uri[:60])
    assert str(len(uri)) in shown["payload"]["start_image_url"]
    assert uri[:70] not in shown["payload"]["start_image_url"]


def test_every_request_is_recorded_in_order(api):
    request_id = api.submit()
    api.call(request_id, "result", include_cost="true")
    requests.get(f"{api.server.origin}/nowhere", timeout=9)
    seen = api.server.requests
    assert [(r.method, r.path) for r in seen] == [
        ("POST", f"/v1/models/{STANDARD}"),
        ("GET", f"/v1/requests/{request_id}/result"),
        ("GET", "/nowhere"),
    ]
    assert [r.authorized for r in seen] == [True, True, False]
    assert seen[1].query == "include_cost=true" and seen[0].at <= seen[1].at
    assert len(api.get("/rehearsal/requests").json()["requests"]) == 4


@pytest.mark.parametrize("path", ["submissions", "requests"])
def test_the_record_is_behind_the_bearer(api, path):
    assert requests.get(f"{api.server.origin}/rehearsal/{path}", timeout=9).status_code == 401


# The server


def test_stop_leaves_no_thread_and_no_socket_even_while_rendering(tmp_path):
    before = set(threading.enumerate())
    server = RehearsalServer(tmp_path, queue_s=0, run_s=0).start()
    Client(server).submit(FOUR_K, duration=15)
    origin, started = server.origin, time.monotonic()
    server.stop()
    assert time.monotonic() - started < 5
    assert set(threading.enumerate()) == before
    assert not list(tmp_path.iterdir())
    with pytest.raises(requests.ConnectionError):
        requests.get(origin, timeout=2)


def test_stop_returns_while_a_client_holds_a_connection_open(tmp_path):
    with requests.Session() as session, RehearsalServer(tmp_path) as server:
        session.get(f"{server.origin}/v1/models/{STANDARD}", timeout=9)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 3


def test_tokens_are_random_unless_given(tmp_path):
    one, two = RehearsalServer(tmp_path), RehearsalServer(tmp_path)
    assert one.token != two.token and len(one.token) > 20
    assert RehearsalServer(tmp_path, token="abc").token == "abc"


def test_a_taken_port_is_an_error_at_start(api, tmp_path):
    port = int(api.server.origin.rpartition(":")[2])
    with pytest.raises(OSError):
        RehearsalServer(tmp_path, port=port).start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_says_where_it_listens_and_ends_cleanly(tmp_path, number):
    command = [sys.executable, "-m", "rehearsal", "--token", "abc", "--folder", str(tmp_path)]
    # An empty PYTHONUNBUFFERED is an unset one: the line must arrive by itself.
    environment = os.environ | {"PYTHONPATH": str(NODES), "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        line = program.stdout.readline()
        assert line.startswith("rehearsal API at http://127.0.0.1:")
        reply = requests.get(
            f"{line.split()[-1]}/v1/models/{PRO}",
            headers={"Authorization": "Bearer abc"},
            timeout=9,
        )
        assert reply.status_code == 200
        program.send_signal(number)
        rest, errors = program.communicate(timeout=15)
    assert (program.returncode, rest, errors) == (0, "", "")


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, rehearsal; "
        "print({'aiohttp', 'pydantic', 'av', 'PIL', 'numpy', 'requests'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(NODES)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert out.stdout.decode().strip() == "set()", out.stderr
