"""Files handed out from this machine: what is served, what is not, and until when."""

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import psutil
import pytest
import requests
from conftest import CANARY_TOKEN, ROOT
from pack.nodes.core import errors
from pack.nodes.core.uploaders import asset_server, cloudflared, public_address
from pack.nodes.core.uploaders.asset_server import AssetListener
from pack.nodes.core.uploaders.assets import PATH, Assets
from pack.nodes.core.uploaders.cloudflared import QuickTunnel
from pack.nodes.core.uploaders.public_address import Door, FixedWay, PublicAddress
from raw_server import RawServer, answer, reset

DATA = bytes(range(256)) * 20
LATER = 4e9


class Clock:
    """Seconds since 1970, as a test wants them."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def assets(tmp_path):
    return Assets(tmp_path / "assets")


@pytest.fixture
def listener(assets):
    one = AssetListener(assets)
    yield one
    one.close()


def address(listener, assets, data=DATA, content_type="image/png"):
    return f"{listener.origin}{PATH}/{assets.add(data, content_type, LATER)}"


def host(assets, origin, **options):
    door = Door(assets, FixedWay(origin), clock=options.get("clock", time.time))
    return PublicAddress(door, hours=24, **options)


# What is served


def test_get_head_and_ranges(listener, assets):
    url = address(listener, assets)
    whole = requests.get(url, timeout=9)
    assert (whole.status_code, whole.content) == (200, DATA)
    assert whole.headers["Content-Type"] == "image/png"
    assert whole.headers["Accept-Ranges"] == "bytes"
    head = requests.head(url, timeout=9)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(DATA))
    part = requests.get(url, headers={"Range": "bytes=100-199"}, timeout=9)
    assert (part.status_code, part.content) == (206, DATA[100:200])
    assert part.headers["Content-Range"] == f"bytes 100-199/{len(DATA)}"
    tail = requests.get(url, headers={"Range": "bytes=-5"}, timeout=9)
    assert (tail.status_code, tail.content) == (206, DATA[-5:])
    past = requests.get(url, headers={"Range": "bytes=99999-"}, timeout=9)
    assert past.status_code == 416


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "video/mp4"])
def test_the_content_type_is_that_of_the_upload(listener, assets, content_type):
    url = address(listener, assets, content_type=content_type)
    assert requests.get(url, timeout=9).headers["Content-Type"] == content_type


def test_no_cache_on_the_way_keeps_a_copy(listener, assets):
    reply = requests.get(address(listener, assets), timeout=9)
    assert reply.headers["Cache-Control"] == "no-store"


def test_tokens_cannot_be_guessed_and_files_are_the_owners_alone(assets, tmp_path):
    tokens = {assets.add(b"x", "image/png", LATER) for _ in range(50)}
    assert len(tokens) == 50
    assert all(re.fullmatch(r"[\w-]{43}", token) for token in tokens)  # 256 bits
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "assets").iterdir()}
    assert modes == {0o600}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        PATH,
        f"{PATH}/",
        f"{PATH}/x",
        f"{PATH}/..%2Fsecret.png",
        f"{PATH}/../secret.png",
        f"{PATH}/%2e%2e%2fsecret.png",
        f"{PATH}/*",
        f"{PATH}/{{name}}",
        f"{PATH}/{{token}}%00",
        f"{PATH}/{{token}}/",
        f"{PATH}/{{token}}.4000000000.png",
        "/settings.json",
        "/view?filename=x.png",
        "/prompt",
        "/object_info",
    ],
)
def test_nothing_else_of_the_machine_is_reachable(listener, assets, tmp_path, path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    token = assets.add(DATA, "image/png", LATER)
    (tmp_path / "assets" / "name").write_bytes(b"secret")
    with socket.create_connection(("127.0.0.1", listener.port), timeout=9) as conn:
        asked = path.format(name="name", token=token)  # raw: no client tidies the path up
        conn.sendall(f"GET {asked} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        said = b"".join(iter(lambda: conn.recv(65536), b""))
    assert said.split(b" ")[1] in (b"404", b"400"), said
    assert b"secret" not in said
    assert DATA not in said


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed_from_outside(listener, assets, method):
    url = address(listener, assets)
    assert requests.request(method, url, data=b"x", timeout=9).status_code == 405
    assert requests.get(url, timeout=9).content == DATA


def test_it_listens_on_loopback_alone_and_a_taken_port_is_named(listener, assets):
    with pytest.raises(errors.ConfigError) as caught:
        AssetListener(assets, listener.port)
    assert f"RUNCOMFY_ASSET_PORT is {listener.port}" in str(caught.value)
    assert asset_server.HOST == "127.0.0.1"


# Until when


def test_an_expired_address_is_gone(tmp_path):
    clock = Clock()
    assets = Assets(tmp_path / "assets", clock)
    listener = AssetListener(assets)
    try:
        url = f"{listener.origin}{PATH}/{assets.add(DATA, 'image/png', 1060.0)}"
        clock.now = 1059.0
        assert requests.get(url, timeout=9).status_code == 200
        clock.now = 1060.0
        reply = requests.get(url, timeout=9)
        assert (reply.status_code, reply.text) == (404, "Not found")
        assets.add(b"another", "image/png", LATER)
        assert len(list((tmp_path / "assets").iterdir())) == 1, "what ended is deleted"
    finally:
        listener.close()


def test_a_restart_hands_out_the_same_files(tmp_path):
    """A job that waits at RunComfy must find its picture after ComfyUI was started again."""
    token = Assets(tmp_path).add(DATA, "image/png", LATER)
    path, content_type = Assets(tmp_path).find(token)
    assert (path.read_bytes(), content_type) == (DATA, "image/png")


def test_it_is_gone_when_it_is_released(listener, assets):
    one = host(assets, listener.origin)
    first, second = one.upload(DATA, "image/png"), one.upload(DATA, "image/png")
    assert first.url != second.url
    one.release(first.url)
    assert requests.get(first.url, timeout=9).status_code == 404
    assert requests.get(second.url, timeout=9).status_code == 200


def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "assets").write_text("a file where the folder should be")
    with pytest.raises(errors.UploadError, match="cannot be kept in"):
        Assets(tmp_path / "assets").add(DATA, "image/png", LATER)


# What a look from here sees; it warns and does not block


def test_an_address_that_works_makes_no_warning(listener, assets):
    hosted = host(assets, listener.origin, clock=Clock(5e9)).upload(DATA, "image/png")
    assert hosted.notes == ()
    assert hosted.expires_at == 5e9 + 24 * 3600


LOGIN = b"<!DOCTYPE html><title>Sign in</title>"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (answer(200, LOGIN, Content_Type="text/html"), "a web page instead of the picture (HTTP"),
        (answer(302, Location="https://login.example.org/x"), "a redirect to login.example.org"),
        (answer(401, b"", WWW_Authenticate="Basic"), "a login or a ban (HTTP 401)"),
        (answer(403, LOGIN, Content_Type="text/html"), "a login or a ban (HTTP 403)"),
        (answer(404, b"nginx"), "a server that does not know the picture (HTTP 404)"),
        (answer(200, b"hello", Content_Type="text/plain"), "perhaps from another server"),
        (
            answer(502, LOGIN, Content_Type="text/html"),
            "a gateway that does not reach this machine (HTTP 502)",
        ),
        (answer(530, b"error 1033"), "a gateway that does not reach this machine (HTTP 530)"),
        (reset, "no answer from 127.0.0.1"),
    ],
    ids=["login", "redirect", "401", "403", "404", "other", "502", "530", "reset"],
)
def test_what_stands_there_instead_is_said_and_does_not_block(assets, script, said):
    with RawServer(script) as server:
        hosted = host(assets, server.origin).upload(DATA, "image/png")
    (warning,) = hosted.notes
    print(f"\n  text: {warning}")
    assert said in warning
    assert "RunComfy may not be able to fetch the picture" in warning
    assert hosted.url.startswith(server.origin)


def test_a_name_that_is_not_known_and_a_nat(assets, monkeypatch):
    (warning,) = host(assets, "https://studio.invalid").upload(DATA, "image/png").notes
    assert "the name studio.invalid is not known here" in warning
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts nothing, answers nothing
        monkeypatch.setattr(public_address.reach, "READ_S", 0.3)
        origin = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (warning,) = host(assets, origin).upload(DATA, "image/png").notes
    assert "Many routers do not let a machine reach its own public address (NAT)" in warning


def test_the_look_sends_no_token_and_no_cookie(assets, monkeypatch):
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", CANARY_TOKEN)
    seen = []

    def script(conn):
        seen.append(conn.recv(65536))
        conn.sendall(b"HTTP/1.1 404 X\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")

    with RawServer(script) as server:
        one = host(assets, server.origin)
        for _ in range(2):
            one.upload(DATA, "image/png")
    for request in seen:
        assert b"authorization" not in request.lower()
        assert b"cookie" not in request.lower()
        assert CANARY_TOKEN.encode() not in request


# cloudflared, by a stand-in program that prints what the real one prints

STAND_IN = """#!{python}
import http.server, json, os, sys, time, urllib.request
target = sys.argv[sys.argv.index("--url") + 1]
config = sys.argv[sys.argv.index("--config") + 1]
note = {{"argv": sys.argv[1:], "config": open(config).read(), "pid": os.getpid(),
        "environ": sorted(os.environ)}}
with open({log!r}, "a") as log:
    log.write(json.dumps(note) + "\\n")
def say(text):
    print("2026-11-22T10:00:00Z " + text, file=sys.stderr, flush=True)
say("INF Requesting new quick Tunnel on trycloudflare.com...")
{script}
"""
GOOD = """
say("INF |  https://quick-brown-fox-jumps.trycloudflare.com  |")
say("INF Registered tunnel connection connIndex=0")
for _ in range(5000):
    say("INF chatter " * 20)  # more than a pipe holds
time.sleep(120)
"""
FAILING = """
say('ERR Error unmarshaling QuickTunnel response: error code: 1015 error="rate limited"')
sys.exit(1)
"""


@pytest.fixture
def program(tmp_path):
    """Writes the stand-in, which goes by its path; a list of its runs so far."""
    log = tmp_path / "runs.jsonl"

    def make(script=GOOD):
        path = tmp_path / "cloudflared"
        text = STAND_IN.format(python=sys.executable, log=str(log), script=script)
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def runs():
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    make.runs = runs
    return make


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


needs_posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a shebang")


def tunnelled(tmp_path, assets, program, port, **options):
    way = QuickTunnel(port, tmp_path, program=program)
    way.looks = 2
    door = Door(assets, way)
    return PublicAddress(door, hours=24, wait=lambda _: None, **options), way


@needs_posix
def test_a_tunnel_is_opened_for_a_picture_and_closed_after_the_last(
    tmp_path, assets, listener, program, monkeypatch
):
    for name in ("RUNCOMFY_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "TUNNEL_URL"):
        monkeypatch.setenv(name, CANARY_TOKEN)
    monkeypatch.setattr(public_address.reach, "look", lambda url, data: seen.append(url) or there)
    seen, there = [], public_address.reach.Sight("")
    one, way = tunnelled(tmp_path, assets, program(), listener.port)
    assert program.runs() == [], "not before it is needed"
    first, second = one.upload(DATA, "image/png"), one.upload(DATA, "image/png")
    assert first.url.startswith(f"https://quick-brown-fox-jumps.trycloudflare.com{PATH}/")
    (run,) = program.runs()
    assert run["argv"][-2:] == ["--url", f"http://127.0.0.1:{listener.port}"]
    assert run["config"] == "", "the user's own configuration would take the requests"
    assert "PATH" in run["environ"]
    assert not {"RUNCOMFY_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "TUNNEL_URL"} & set(run["environ"])
    one.release(first.url)
    assert is_alive(run["pid"]), "another job still needs it"
    one.release(second.url)
    assert not is_alive(run["pid"])
    assert not way.is_open
    one.upload(DATA, "image/png")
    assert len(program.runs()) == 2
    way.close()
    assert not is_alive(program.runs()[1]["pid"])


@needs_posix
def test_a_tunnel_closes_when_the_last_file_has_ended(tmp_path, listener, program, monkeypatch):
    monkeypatch.setattr(
        public_address.reach, "look", lambda url, data: public_address.reach.Sight("")
    )
    way = QuickTunnel(listener.port, tmp_path, program=program())
    door = Door(Assets(tmp_path / "assets"), way)
    door.add(DATA, "image/png", time.time() + 1)
    (run,) = program.runs()
    end = time.monotonic() + 20
    while is_alive(run["pid"]):
        assert time.monotonic() < end, "the tunnel stays open"
        time.sleep(0.05)


DYING = """
import os, signal, sys, types
pack = sys.modules["pack"] = types.ModuleType("pack")
pack.__path__ = [sys.argv[1]]
from pathlib import Path
from pack.nodes.core.uploaders.cloudflared import QuickTunnel
QuickTunnel(9, Path(sys.argv[2]), program=sys.argv[3]).open()
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_posix
def test_a_tunnel_does_not_outlive_a_comfyui_that_was_killed(tmp_path, program):
    """Its port could then be another program's."""
    command = [sys.executable, "-c", DYING, str(ROOT), str(tmp_path), program()]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    (run,) = program.runs()
    end = time.monotonic() + 20
    while is_alive(run["pid"]):
        assert time.monotonic() < end, "the tunnel stays open"
        time.sleep(0.05)


@needs_posix
def test_several_jobs_share_one_tunnel(tmp_path, assets, listener, program, monkeypatch):
    monkeypatch.setattr(
        public_address.reach, "look", lambda url, data: public_address.reach.Sight("")
    )
    one, way = tunnelled(tmp_path, assets, program(), listener.port)
    threads = [threading.Thread(target=one.upload, args=(DATA, "image/png")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(program.runs()) == 1
    way.close()


@needs_posix
def test_a_tunnel_that_does_not_open_says_what_the_program_said(
    tmp_path, assets, listener, program
):
    one, way = tunnelled(tmp_path, assets, program(FAILING), listener.port)
    with pytest.raises(errors.UploadError) as caught:
        one.upload(DATA, "image/png")
    assert "cloudflared opened no tunnel (it ended with code 1)" in str(caught.value)
    assert "rate limited" in str(caught.value)
    assert "Nothing was charged" in str(caught.value)
    assert list((tmp_path / "assets").glob("*")) == []
    assert not way.is_open


@needs_posix
def test_a_program_that_gives_no_name_is_ended(tmp_path, assets, listener, program, monkeypatch):
    monkeypatch.setattr(cloudflared, "START_S", 1.0)
    one, _ = tunnelled(tmp_path, assets, program("time.sleep(120)"), listener.port)
    with pytest.raises(errors.UploadError, match="no name in 1 s"):
        one.upload(DATA, "image/png")
    (run,) = program.runs()
    assert not is_alive(run["pid"])


def test_without_the_program_the_text_says_so(tmp_path, assets, listener):
    one, _ = tunnelled(tmp_path, assets, "cloudflared-not-here", listener.port)
    with pytest.raises(errors.ConfigError) as caught:
        one.upload(DATA, "image/png")
    assert "that program is not installed" in str(caught.value)


@needs_posix
def test_a_new_name_is_looked_for_more_than_once(tmp_path, assets, listener, program, monkeypatch):
    sights = [public_address.reach.Sight("nothing yet"), public_address.reach.Sight("")]
    monkeypatch.setattr(public_address.reach, "look", lambda url, data: sights.pop(0))
    one, way = tunnelled(tmp_path, assets, program(), listener.port)
    assert one.upload(DATA, "image/png").notes == ()
    way.close()
