"""Which host is used, what is remembered of it, and when it is cleaned up."""

import threading
import time
from dataclasses import replace

import pytest
import requests
from pack.nodes.core import errors, settings
from pack.nodes.core.job import Connection
from pack.nodes.core.ledger import Ledger
from pack.nodes.core.media import images
from pack.nodes.core.states import JobState
from pack.nodes.core.transport import Transport
from pack.nodes.core.upload_settings import UploadSettings
from pack.nodes.core.uploaders import choose
from pack.nodes.core.uploaders.base import Hosted
from pack.nodes.core.uploaders.choose import Hosts
from pack.nodes.core.uploaders.object_store import ObjectStore
from pack.nodes.core.uploads import Uploads
from pack.nodes.rehearsal import Fault, FaultKind
from raw_server import RawServer, answer
from runner_case import PICTURE, REQUEST, connect, make_order, make_runner, quick, until
from s3_server import BUCKET, free_port
from test_temporary_host import StandIn

DATA = b"picture" * 999


class Host:
    """A host that counts, on a server of its own that gives what was uploaded."""

    name, max_bytes = "object_store", 1 << 30
    max_video_bytes, max_total_bytes = 1 << 30, None

    def __init__(self, lives_s=86400.0, reuse_key="bucket", cleans_up=False):
        self.lives_s, self.reuse_key, self.cleans_up = lives_s, reuse_key, cleans_up
        self.uploaded, self.released = [], []
        self.server = RawServer(answer(200, DATA))

    def notice(self, expires_at=None):
        return ""

    def upload(self, data, content_type):
        self.uploaded.append(data)
        url = f"{self.server.origin}/{len(self.uploaded)}.png"
        return Hosted(url, time.time() + self.lives_s)

    def release(self, url):
        self.released.append(url.rpartition("/")[2])


def uploads_of(tmp_path, url=None):
    return Uploads(Ledger(url or f"sqlite:///{tmp_path / 'ledger.db'}"))


# Which host


def chosen(tmp_path, local_api=True, **values):
    return Hosts(tmp_path).choose(UploadSettings(**values), local_api=local_api)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "inline"),
        ({"public_address": "https://a.example.org"}, "public_address"),
        ({"public_address": "cloudflared"}, "public_address"),
        ({"object_store_url": "s3://bucket"}, "object_store"),
        (
            {"object_store_url": "s3://bucket", "public_address": "https://a.example.org"},
            "object_store",
        ),
        ({"host": "inline", "object_store_url": "s3://bucket"}, "inline"),
        (
            {
                "host": "public_address",
                "object_store_url": "s3://b",
                "public_address": "https://a.b",
            },
            "public_address",
        ),
        ({"host": "temporary_host"}, "temporary_host"),
    ],
)
def test_auto_is_the_first_that_is_set_up_and_never_the_public_one(tmp_path, values, name):
    assert chosen(tmp_path, **values).name == name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"host": "object_store"}, "RUNCOMFY_OBJECT_STORE_URL is missing"),
        ({"host": "public_address"}, "RUNCOMFY_PUBLIC_ADDRESS is missing"),
        ({"asset_port": 8190}, "RUNCOMFY_PUBLIC_ADDRESS is missing: set it to the https address"),
        ({"public_address": "http://127.0.0.1:8188"}, "RunComfy cannot fetch from it"),
    ],
)
def test_a_host_half_set_up_says_what_is_missing(tmp_path, values, said):
    one = chosen(tmp_path, local_api=False, **values)  # a finished clip can still be had
    with pytest.raises(errors.ConfigError) as caught:
        one.upload(DATA, "image/png")
    assert said in str(caught.value)
    assert "Nothing was charged" in str(caught.value)


def test_an_asset_port_serves_assets_and_a_taken_one_is_refused_at_upload(tmp_path):
    port = free_port()
    hosts = Hosts(tmp_path)
    wanted = UploadSettings(public_address=f"http://127.0.0.1:{port}", asset_port=port)
    for _ in range(2):  # each run of a node chooses anew
        hosted = hosts.choose(wanted, local_api=True).upload(DATA, "image/png")
        assert requests.get(hosted.url, timeout=9).content == DATA
        assert hosted.notes == ()
    other = Hosts(tmp_path).choose(wanted, local_api=True)
    with pytest.raises(errors.ConfigError, match=f"RUNCOMFY_ASSET_PORT is {port}"):
        other.upload(DATA, "image/png")


def test_whoever_wants_an_address_gets_one_in_a_rehearsal_and_a_reason_else(tmp_path):
    hosts = Hosts(tmp_path)
    hosted = hosts.choose_address(UploadSettings(), local_api=True).upload(DATA, "image/png")
    assert requests.get(hosted.url, timeout=9).content == DATA
    for local_api, host in ((False, "auto"), (False, "inline"), (True, "inline")):
        with pytest.raises(errors.ConfigError) as caught:
            hosts.choose_address(UploadSettings(host=host), local_api=local_api)
        assert str(caught.value) == choose.NO_ADDRESS


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "UPLOAD_HOST",
            "s3",
            "set it to one of auto, object_store, public_address, temporary_host",
        ),
        ("UPLOAD_HOURS", "2", "set it to one of 1, 12, 24, 72"),
        ("UPLOAD_CLEANUP", "maybe", "set it to 1 or 0"),
        ("PUBLIC_ADDRESS", "http://a.example.org", "over https only"),
        ("PUBLIC_ADDRESS", "https://a.example.org/comfy", "with a path"),
        ("PUBLIC_ADDRESS", "https://me:pw@a.example.org", "a user name or password"),
        ("PUBLIC_ADDRESS", "https://localhost:x", "not a URL"),
        ("PUBLIC_ADDRESS", "https://studio", "over https only"),
        ("ASSET_PORT", "0", "from 1 to 65535"),
        ("ASSET_PORT", "http", "from 1 to 65535"),
        ("OBJECT_STORE_URL", "pictures", "it begins with s3://, gs://, az://"),
        ("OBJECT_STORE_URL", "s3://", "names a bucket"),
        ("OBJECT_STORE_URL", "s3://key:canary@bucket", "holds more than a bucket"),
        ("OBJECT_STORE_URL", "az://bucket?sig=canary", "holds more than a bucket"),
        ("TEMPORARY_HOST_URL", "http://files.example.org", "set it to an https address"),
    ],
)
def test_a_bad_setting_names_its_value_and_the_way_out(tmp_path, name, value, said):
    with pytest.raises(errors.ConfigError) as caught:
        settings.load(tmp_path, {f"RUNCOMFY_{name}": value})
    assert said in str(caught.value)
    assert f"RUNCOMFY_{name}" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert "pw@" not in str(caught.value)


def test_good_settings_of_uploads(tmp_path):
    environ = {
        "RUNCOMFY_UPLOAD_HOURS": "72",
        "RUNCOMFY_UPLOAD_CLEANUP": "1",
        "RUNCOMFY_PUBLIC_ADDRESS": "https://Pictures.example.org:8443/",
        "RUNCOMFY_ASSET_PORT": "8190",
        "RUNCOMFY_OBJECT_STORE_URL": "s3://bucket/a/b/",
    }
    now = settings.load(tmp_path, environ).uploads
    assert now == UploadSettings(
        hours=72,
        cleanup=True,
        public_address="https://pictures.example.org:8443",
        asset_port=8190,
        object_store_url="s3://bucket/a/b",
    )
    assert settings.load(tmp_path, {"RUNCOMFY_PUBLIC_ADDRESS": "Cloudflared"}).uploads == (
        UploadSettings(public_address="cloudflared")
    )


# What is remembered


def test_the_same_bytes_go_up_once_also_after_a_restart(tmp_path):
    host = Host()
    first = uploads_of(tmp_path).put(host, DATA, "image/png")
    again = uploads_of(tmp_path).put(host, DATA, "image/png")
    assert again.url == first.url
    assert again.expires_at == pytest.approx(first.expires_at, abs=5)
    assert len(host.uploaded) == 1


def test_other_bytes_another_host_and_other_settings_go_up(tmp_path):
    uploads, host = uploads_of(tmp_path), Host()
    uploads.put(host, DATA, "image/png")
    uploads.put(host, DATA + b"x", "image/png")
    host.reuse_key = "another"
    uploads.put(host, DATA, "image/png")
    assert len(host.uploaded) == 3


def age(uploads, seconds):
    """Let time pass for all that is remembered."""
    with uploads._ledger.transaction("written") as conn:
        conn.exec_driver_sql(
            f"UPDATE uploads SET good_until = good_until - {seconds}, "
            f"expires_at = expires_at - {seconds}"
        )


@pytest.mark.parametrize(
    ("lives_s", "passed_s", "times"),
    [(86400, 82700, 1), (86400, 82900, 2), (3600, 300, 1), (3600, 420, 2)],
)
def test_an_address_that_ends_too_soon_for_a_queued_job_is_not_reused(
    tmp_path, lives_s, passed_s, times
):
    """The last hour is for jobs that have it already; of a single hour, nine tenths are."""
    uploads, host = uploads_of(tmp_path), Host(lives_s)
    url = uploads.put(host, DATA, "image/png").url
    age(uploads, passed_s)
    assert uploads.is_good(url) == (times == 1)
    uploads.put(host, DATA, "image/png")
    assert len(host.uploaded) == times


def test_an_address_that_does_not_give_the_picture_any_more_is_not_reused(tmp_path):
    uploads, host = uploads_of(tmp_path), Host()
    uploads.put(host, DATA, "image/png")
    host.server.scripts = [answer(404)]
    uploads.put(host, DATA, "image/png")
    assert len(host.uploaded) == 2


def test_many_at_once_upload_once(tmp_path):
    uploads, host = uploads_of(tmp_path), Host()
    upload, begun = host.upload, threading.Event()

    def slow(data, content_type):
        begun.wait(0.3)
        return upload(data, content_type)

    host.upload = slow
    urls = []
    threads = [
        threading.Thread(target=lambda: urls.append(uploads.put(host, DATA, "image/png").url))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(host.uploaded), len(urls), len(set(urls))) == (1, 6, 1)


def test_inline_is_never_remembered(tmp_path):
    uploads = uploads_of(tmp_path)
    hosted = uploads.put(chosen(tmp_path), DATA, "image/png")
    assert hosted.url.startswith("data:image/png;base64,")
    assert uploads.known(hosted.url) is None


def test_it_works_on_postgresql_too(tmp_path, postgresql_url):
    uploads, host = uploads_of(tmp_path, postgresql_url), Host(cleans_up=True)
    url = uploads.put(host, DATA, "image/png", user="job").url
    assert uploads.put(host, DATA, "image/png", user="job").url == url
    assert (uploads.known(url).host, uploads.is_good(url)) == ("object_store", True)
    uploads.release("job")
    assert (uploads.known(url).is_over, uploads.is_good(url)) == (True, False)


# Clean-up


def test_the_last_user_takes_it_away(tmp_path):
    uploads, host = uploads_of(tmp_path), Host(cleans_up=True)
    for user in ("a", "b"):
        uploads.put(host, DATA, "image/png", user=user)
    uploads.release("a")
    assert host.released == []
    uploads.release("b")
    assert host.released == ["1.png"]
    uploads.put(host, DATA, "image/png", user="c")
    assert len(host.uploaded) == 2, "what was taken away is not handed out again"


def test_without_clean_up_and_without_a_user_it_stays(tmp_path):
    uploads, kept, pinned = uploads_of(tmp_path), Host(), Host(reuse_key="p", cleans_up=True)
    uploads.put(kept, DATA, "image/png", user="a")
    uploads.put(pinned, DATA, "image/png", user="a")
    uploads.put(pinned, DATA, "image/png")  # Upload Image: until it expires
    uploads.release("a")
    assert (kept.released, pinned.released) == ([], [])


def test_a_clean_up_that_fails_ends_nothing(tmp_path, caplog):
    uploads, host = uploads_of(tmp_path), Host(cleans_up=True)

    def fail(url):
        raise errors.UploadError("the bucket is away")

    host.release = fail
    uploads.put(host, DATA, "image/png", user="a")
    uploads.release("a")
    assert "the bucket is away" in caplog.text


# In jobs


def linked(rehearsal, uploader):
    return replace(connect(rehearsal), uploader=uploader)


def run(runner, rehearsal, uploader, order=None):
    job = runner.start(order or make_order(), linked(rehearsal, uploader))
    return job, job.waiter().result(30)


def public(tmp_path):
    return Hosts(tmp_path / "assets").choose_address(UploadSettings(), local_api=True)


def test_a_public_address_serves_the_job_and_is_gone_when_it_ends(tmp_path, rehearsal):
    runner, uploader = make_runner(tmp_path), public(tmp_path)
    _, clip = run(runner, rehearsal, uploader)
    url = rehearsal.submissions[0].payload["start_image_url"]
    assert url.startswith("http://127.0.0.1:")
    until(lambda: requests.get(url, timeout=9).status_code == 404)
    assert clip.notes == ()


def test_a_login_in_front_of_the_address_warns_and_does_not_block(tmp_path, rehearsal):
    """This machine meets a login where RunComfy gets through."""
    data = images.encode(images.check(PICTURE, "x"), max_bytes=1 << 20).data
    login = answer(302, Location="https://login.example.org/")
    with RawServer(login, answer(200, data, Content_Type="image/png")) as proxy:
        wanted = UploadSettings(public_address=proxy.origin)
        uploader = Hosts(tmp_path / "assets").choose(wanted, local_api=True)
        _, clip = run(make_runner(tmp_path), rehearsal, uploader)
    (warning,) = clip.notes
    print(f"\n  text: {warning}")
    assert "tried from here: a redirect to login.example.org (HTTP 302)" in warning


def test_a_failed_job_takes_its_picture_back_too(tmp_path, rehearsal):
    rehearsal.plan(Fault(FaultKind.FAILED_JOB))
    runner, uploader = make_runner(tmp_path), public(tmp_path)
    job = runner.start(make_order(), linked(rehearsal, uploader))
    assert isinstance(job.waiter().exception(30), errors.JobFailed)
    until(lambda: not list((tmp_path / "assets").iterdir()))


def test_what_goes_on_at_runcomfy_keeps_its_picture(tmp_path, rehearsal):
    """Nobody waits for the job any more, but it still stands in the queue."""
    rehearsal.plan(queue_s=30)
    runner, uploader = make_runner(tmp_path), public(tmp_path)
    connection = replace(linked(rehearsal, uploader), timeout_s=1)
    job = runner.start(make_order(), connection)
    assert isinstance(job.waiter().exception(30), errors.JobTimeout)
    until(lambda: not any(t.name == "runcomfy-job" for t in threading.enumerate()))
    url = rehearsal.submissions[0].payload["start_image_url"]
    assert requests.get(url, timeout=9).status_code == 200


def test_an_unknown_submit_keeps_its_picture(tmp_path):
    """RunComfy may have the job, and then it fetches the picture."""
    with RawServer(answer(200, b"<html>")) as server:
        uploader = public(tmp_path)
        connection = Connection(Transport(server.origin, "t"), uploader, poll_s=1, timeout_s=9)
        job = make_runner(tmp_path).start(make_order(), connection)
        assert isinstance(job.waiter().exception(30), errors.SubmitUnknown)
    assert len(list((tmp_path / "assets").iterdir())) == 1


def test_jobs_of_a_batch_upload_one_picture_once(tmp_path, rehearsal):
    with StandIn() as server:
        runner = make_runner(tmp_path)
        jobs = [
            runner.start(make_order(seed=seed), linked(rehearsal, server.host()))
            for seed in range(4)
        ]
        clips = [job.waiter().result(60) for job in jobs]
        server.shutdown()
    assert len(server.posts) == 1
    assert len({s.payload["start_image_url"] for s in rehearsal.submissions}) == 1
    assert len(rehearsal.submissions) == 4
    for clip in clips:  # also those that uploaded nothing themselves
        assert any("the picture is public at" in note for note in clip.notes)


def test_a_bucket_serves_the_job_and_is_cleaned_up(tmp_path, rehearsal, s3):
    runner = make_runner(tmp_path)
    environ = s3.environ()
    bucket = ObjectStore(
        f"s3://{BUCKET}/jobs", hours=1, cleanup=True, local_api=True, environ=environ
    )
    run(runner, rehearsal, bucket)
    url = rehearsal.submissions[0].payload["start_image_url"]
    assert url.startswith(f"{s3.endpoint}/{BUCKET}/jobs/")
    until(lambda: requests.get(url, timeout=9).status_code == 404)


def test_a_host_that_fails_costs_nothing_and_is_named(tmp_path, rehearsal):
    with StandIn() as server:
        server.replies = [(503, b"")] * 3
        runner = make_runner(tmp_path)
        job = runner.start(make_order(), linked(rehearsal, server.host()))
        error = job.waiter().exception(30)
        server.shutdown()
    assert isinstance(error, errors.UploadError)
    assert "127.0.0.1 (temporary_host)" in str(error)
    assert "Nothing was charged" in str(error)
    assert rehearsal.submissions == []
    assert runner._ledger.newest(9) == []


def test_what_is_finished_needs_no_host(tmp_path, rehearsal):
    runner = make_runner(tmp_path)
    run(runner, rehearsal, chosen(tmp_path))
    broken = chosen(tmp_path, host="object_store")
    _, clip = run(runner, rehearsal, broken)
    assert clip.reused


def by_url(url, **values):
    return make_order(None, start_image_url=url, **values)


def test_the_same_picture_at_a_new_address_is_the_same_request(tmp_path, rehearsal):
    """An address ends, the picture is uploaded again: that must not be paid again."""
    runner, uploader = make_runner(tmp_path), public(tmp_path)
    data = images.encode(images.check(PICTURE, "x"), max_bytes=1 << 20).data
    first, second = (runner.uploads.put(uploader, data, "image/png").url for _ in range(2))
    assert first != second
    _, paid = run(runner, rehearsal, uploader, by_url(first))
    _, again = run(make_runner(tmp_path), rehearsal, uploader, by_url(second))
    assert (paid.reused, again.reused) == (False, True)
    assert len(rehearsal.submissions) == 1
    assert requests.get(first, timeout=9).status_code == 200, "it is not the job's to take away"


def test_an_address_of_our_own_that_has_ended_is_refused_before_any_charge(tmp_path, rehearsal):
    runner, host = make_runner(tmp_path), Host(lives_s=-60)
    url = runner.uploads.put(host, DATA, "image/png").url
    job = runner.start(by_url(url), linked(rehearsal, host))
    error = job.waiter().exception(30)
    print(f"\n  text: {error}")
    assert isinstance(error, errors.InputError)
    assert "start_image_url is an address that Upload Image made at object_store" in str(error)
    assert "It ended on " in str(error)
    assert "Run Upload Image again" in str(error)
    assert rehearsal.requests == []


def test_a_finished_clip_comes_back_although_its_address_has_ended(tmp_path, rehearsal):
    runner, uploader = make_runner(tmp_path), public(tmp_path)
    data = images.encode(images.check(PICTURE, "x"), max_bytes=1 << 20).data
    url = runner.uploads.put(uploader, data, "image/png").url
    run(runner, rehearsal, uploader, by_url(url))
    runner.uploads._forget(url)
    _, again = run(runner, rehearsal, uploader, by_url(url))
    assert again.reused


def test_an_address_that_runcomfy_cannot_fetch_fails_the_job_with_its_reason(tmp_path, rehearsal):
    runner = make_runner(tmp_path)
    with RawServer(answer(403, b"<Code>AccessDenied</Code>Request has expired")) as server:
        job = runner.start(by_url(f"{server.origin}/old.png"), connect(rehearsal))
        error = job.waiter().exception(30)
    print(f"\n  text: {error}")
    assert isinstance(error, errors.JobFailed)
    assert "start_image_url could not be fetched: HTTP 403" in str(error)
    assert runner._ledger.newest(1)[0].state == JobState.FAILED


def test_the_notice_is_shown_before_the_upload(tmp_path, rehearsal):
    with StandIn() as server:
        host = server.host()
        post, shown = host._post, []
        runner = make_runner(tmp_path, wait=quick)
        job = runner.start(
            make_order(request=replace(REQUEST, prompt="another")), linked(rehearsal, host)
        )
        host._post = lambda *args: (shown.append(job.text()), post(*args))[1]
        job.waiter().result(30)
        server.shutdown()
    assert "the picture is public at 127.0.0.1" in shown[0]
