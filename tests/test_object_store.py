"""A bucket on a real S3 server: signed addresses, and every way to set it up half or wrong."""

import datetime
import hashlib
import io
import os
import time

import pytest
import requests
from pack.nodes.core import errors
from pack.nodes.core.uploaders import object_store
from pack.nodes.core.uploaders.object_store import ObjectStore
from PIL import Image
from raw_server import RawServer, answer
from s3_server import BUCKET, NO_PROFILE, NO_READER, OWNER, READER, WRITER

pytest.importorskip("obstore")
URL = f"s3://{BUCKET}/kling"


def picture(colour="teal"):
    file = io.BytesIO()
    Image.new("RGB", (320, 320), colour).save(file, "PNG")
    return file.getvalue()


def store(s3, key=WRITER, url=URL, **options):
    environ = options.pop("environ", None) or s3.environ(key)
    return ObjectStore(url, **{"hours": 24, "local_api": True, "environ": environ, **options})


def refused(one, data=b"x"):
    with pytest.raises(errors.RunComfyError) as caught:
        one.upload(data, "image/png")
    print(f"\n  text: {caught.value}")  # shown with -s, for whoever judges the wording
    return caught.value


def test_the_signed_address_gives_the_picture_to_a_plain_get(s3):
    data = picture()
    hosted = store(s3).upload(data, "image/png")
    reply = requests.get(hosted.url, timeout=9)  # as RunComfy: no key, no cookie
    assert reply.content == data
    assert reply.headers["Content-Type"] == "image/png"
    assert hosted.notes == ()
    part = requests.get(hosted.url, headers={"Range": "bytes=2-5"}, timeout=9)
    assert (part.status_code, part.content) == (206, data[2:6])


def test_the_key_is_the_content_below_the_prefix(s3):
    data = picture("navy")
    url = store(s3).upload(data, "image/png").url
    digest = hashlib.sha256(data).hexdigest()
    assert url.startswith(f"{s3.endpoint}/{BUCKET}/kling/{digest}.png?")
    assert WRITER[1] not in url


def test_without_the_signature_or_with_another_nothing_is_given(s3):
    url = store(s3).upload(picture(), "image/png").url
    assert requests.get(url.partition("?")[0], timeout=9).status_code == 403
    assert requests.get(url.replace("Signature=", "Signature=0"), timeout=9).status_code == 403


def test_the_address_ends_with_its_time(s3, monkeypatch):
    class Brief(datetime.timedelta):
        """An hour that lasts a second."""

        def __new__(cls, **_):
            return super().__new__(cls, seconds=1)

    monkeypatch.setattr(object_store, "timedelta", Brief)
    hosted = store(s3, hours=1).upload(picture(), "image/png")
    assert requests.get(hosted.url, timeout=9).status_code == 200
    end = time.monotonic() + 20
    while (reply := requests.get(hosted.url, timeout=9)).status_code == 200:
        assert time.monotonic() < end, "the address did not end"
        time.sleep(0.2)
    assert reply.status_code == 403
    assert "expired" in reply.text


def test_a_video_goes_up_in_parts(s3):
    data = os.urandom(13 << 20)
    hosted = store(s3).upload(data, "video/mp4")
    reply = requests.get(hosted.url, timeout=30)
    assert reply.content == data
    assert reply.headers["Content-Type"] == "video/mp4"
    assert "-" in reply.headers["ETag"], "one part only: no multipart upload"


def test_expiry_is_what_was_asked_for(s3):
    hosted = store(s3, hours=72, clock=lambda: 1000.0).upload(picture(), "image/png")
    assert hosted.expires_at == 1000.0 + 72 * 3600
    assert "X-Amz-Expires=259200&" in hosted.url


def test_clean_up_deletes_the_object_and_is_a_choice(s3):
    data = picture("red")
    kept, cleaned = store(s3), store(s3, cleanup=True)
    stays, goes = kept.upload(data, "image/png").url, cleaned.upload(data, "image/png").url
    assert stays.partition("?")[0] != goes.partition("?")[0], "others' objects must not be deleted"
    cleaned.release(goes)
    assert requests.get(goes, timeout=9).status_code == 404
    assert requests.get(stays, timeout=9).status_code == 200
    assert (kept.cleans_up, cleaned.cleans_up) == (False, True)
    assert kept.reuse_key != cleaned.reuse_key


def test_no_bucket(s3):
    error = refused(store(s3, OWNER, url="s3://no-such-bucket/kling"))
    assert f"There is no bucket 'no-such-bucket' at {s3.endpoint} (NoSuchBucket)" in str(error)
    assert "RUNCOMFY_OBJECT_STORE_URL" in str(error)
    assert "Nothing was charged" in str(error)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ((WRITER[0], "wrong-secret"), "refused the key (SignatureDoesNotMatch)"),
        (("NOBODY", "wrong-secret"), "refused the key (InvalidAccessKeyId)"),
        (READER, "may not write to the bucket 'pictures'"),
        (NO_READER, "Give the key the right to read (GetObject)"),
    ],
    ids=["wrong secret", "unknown key", "may not write", "may not read"],
)
def test_a_wrong_key(s3, key, said):
    error = refused(store(s3, key))
    assert said in str(error)
    assert "Nothing was charged" in str(error)
    assert key[1] not in str(error)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "No key for the bucket. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "A"}, "AWS_SECRET_ACCESS_KEY is missing"),
        ({"AWS_SECRET_ACCESS_KEY": "A"}, "AWS_ACCESS_KEY_ID is missing"),
        ({"AWS_PROFILE": "studio"}, "The AWS profile 'studio' (AWS_PROFILE) holds no key"),
    ],
    ids=["none", "no secret", "no id", "empty profile"],
)
def test_half_a_key_says_which_half_is_missing(s3, environ, said):
    error = refused(store(s3, environ={**NO_PROFILE, **environ}))
    assert isinstance(error, errors.ConfigError)
    assert said in str(error)


def test_a_store_that_does_not_answer_is_named(s3):
    error = refused(store(s3, environ=s3.environ(AWS_ENDPOINT_URL="http://127.0.0.1:9")))
    assert "The bucket 'pictures' at http://127.0.0.1:9 did not take the picture" in str(error)
    assert "Debug source" not in str(error)


def test_a_store_that_stumbles_is_asked_again():
    """The real server does not stumble when asked to, so this one is scripted."""
    with RawServer(answer(503), answer(500), answer(200, ETag='"e"'), answer(200, b"x")) as server:
        environ = {
            "AWS_ENDPOINT_URL": server.origin,
            "AWS_ACCESS_KEY_ID": "A",
            "AWS_SECRET_ACCESS_KEY": "B",
        }
        one = ObjectStore(URL, hours=1, local_api=True, environ={**NO_PROFILE, **environ})
        assert one.upload(b"x", "image/png").notes == ()
        assert server.connections == 4


@pytest.mark.parametrize("endpoint", ["http://minio.example.org", "http://127.0.0.1:9000"])
def test_an_endpoint_that_runcomfy_cannot_fetch_from_is_refused_before_any_upload(s3, endpoint):
    one = store(s3, environ=s3.environ(AWS_ENDPOINT_URL=endpoint), local_api=False)
    assert "it needs https and a public name" in str(refused(one))


def test_without_the_package_the_text_says_how_to_install_it(s3, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    assert "python -m pip install obstore" in str(refused(store(s3)))


def test_keys_region_and_endpoint_come_from_a_profile_too(s3, tmp_path):
    (tmp_path / "credentials").write_text(
        f"[studio]\naws_access_key_id = {WRITER[0]}\naws_secret_access_key = {WRITER[1]}\n"
    )
    (tmp_path / "config").write_text(
        f"[profile studio]\nregion = eu-central-1\nendpoint_url = {s3.endpoint}/\n"
    )
    environ = {
        "AWS_PROFILE": "studio",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }
    url = store(s3, environ=environ).upload(picture(), "image/png").url
    assert "eu-central-1" in url
    assert requests.get(url, timeout=9).status_code == 200


def test_the_environments_key_comes_before_the_profiles(s3, tmp_path):
    path = tmp_path / "credentials"
    path.write_text("[default]\naws_access_key_id = NOBODY\naws_secret_access_key = no\n")
    store(s3, environ=s3.environ(AWS_SHARED_CREDENTIALS_FILE=str(path))).upload(b"x", "image/png")


def test_google_and_azure_addresses_are_signed(tmp_path, monkeypatch):
    """Their servers are not at hand: this is as far as signing goes without one."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "studio")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0LWtleQ==")
    opened = ObjectStore("az://pictures/kling", hours=24)
    obstore = object_store._obstore()
    url = obstore.sign(opened._open(), "GET", "a.png", datetime.timedelta(hours=24))
    assert url.startswith("https://studio.blob.core.windows.net/pictures/kling/a.png?")
    assert "sig=" in url
