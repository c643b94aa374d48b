"""A public file host that forgets, against a stand-in of its protocol."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from conftest import CANARY_TOKEN
from pack.nodes.core import errors
from pack.nodes.core.uploaders.temporary_host import TemporaryHost

DATA = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9
HTML = b"<html><body>Just a moment...</body></html>"


class StandIn(ThreadingHTTPServer):
    """Takes a multipart POST and answers with the file's address, as the real one does.

    ``replies`` are (status, body) for the next POSTs, instead.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self.replies, self.posts, self.files = [], [], {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def host(self, **options):
        waits = []
        one = TemporaryHost(f"{self.origin}/api.php", hours=options.pop("hours", 24), **options)
        one._wait = waits.append
        one.waits = waits
        return one


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing to the terminal."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((dict(self.headers), body))
        if self.server.replies:
            return self.send(*self.server.replies.pop(0))
        fields = parts_of(self.headers["Content-Type"], body)
        if fields["reqtype"][1] != b"fileupload" or fields["time"][1] not in (
            b"1h",
            b"12h",
            b"24h",
            b"72h",
        ):
            return self.send(400, b"No request type given")
        head, data = fields["fileToUpload"]
        name = "/abc123" + re.search(r"filename=.*(\.\w+)", head)[1]
        self.server.files[name] = data
        return self.send(200, f"{self.server.origin}{name}".encode())

    def do_GET(self):
        data = self.server.files.get(self.path)
        self.send(404 if data is None else 200, data or b"")

    def send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def parts_of(content_type, body):
    boundary = b"--" + content_type.partition("boundary=")[2].encode()
    found = {}
    for part in body.split(boundary)[1:-1]:
        head, _, rest = part.partition(b"\r\n\r\n")
        text = head.decode()
        found[re.search(r'name="(\w+)"', text)[1]] = (text, rest[:-2])
    return found


@pytest.fixture
def server():
    with StandIn() as one:
        yield one
        one.shutdown()


def refused(one):
    with pytest.raises(errors.UploadError) as caught:
        one.upload(DATA, "image/png")
    print(f"\n  text: {caught.value}")
    assert "127.0.0.1 (temporary_host)" in str(caught.value)
    assert "Nothing was charged" in str(caught.value)
    return str(caught.value)


def test_a_picture_goes_up_and_its_address_gives_it(server):
    hosted = server.host().upload(DATA, "image/png")
    assert requests.get(hosted.url, timeout=9).content == DATA


@pytest.mark.parametrize("hours", [1, 12, 24, 72])
def test_the_hours_are_asked_for_and_become_the_expiry(server, hours):
    hosted = server.host(hours=hours, clock=lambda: 1e9).upload(DATA, "image/png")
    assert hosted.expires_at == 1e9 + 3600 * hours
    fields = parts_of(server.posts[0][0]["Content-Type"], server.posts[0][1])
    assert fields["time"][1] == f"{hours}h".encode()


def test_the_text_says_that_the_picture_is_public_and_until_when(server):
    one = server.host(clock=lambda: 1e9)
    said = (
        "temporary_host: the picture is public at 127.0.0.1, at an address that is not to be "
        "guessed, until 10 Sep 2001, 01:46 UTC."
    )
    assert one.notice() == said, "before it is uploaded"
    assert one.notice(one.upload(DATA, "image/png").expires_at) == said


def test_neither_token_nor_file_name_is_told(server, monkeypatch):
    monkeypatch.setenv("RUNCOMFY_API_TOKEN", CANARY_TOKEN)
    server.host().upload(DATA, "image/png")
    headers, body = server.posts[0]
    assert CANARY_TOKEN not in str(headers)
    assert CANARY_TOKEN.encode() not in body
    assert not {"Authorization", "Cookie"} & set(headers)
    assert b'filename="picture.png"' in body


@pytest.mark.parametrize("passing", [(500, b"oops"), (502, HTML), (429, b"slow down")])
def test_what_passes_is_tried_again(server, passing):
    server.replies = [passing, passing]
    one = server.host()
    assert requests.get(one.upload(DATA, "image/png").url, timeout=9).content == DATA
    assert len(server.posts) == 3
    assert one.waits == [2.0, 4.0]


def test_after_three_attempts_the_host_is_named(server):
    server.replies = [(503, HTML)] * 9
    assert "in 3 attempts: HTTP 503" in refused(server.host())
    assert len(server.posts) == 3


def test_a_host_that_is_not_there_is_named(server):
    server.shutdown()
    server.server_close()
    assert "in 3 attempts: " in refused(server.host())


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((403, HTML), "HTTP 403, a web page"),
        ((200, HTML), "HTTP 200, a web page"),
        ((412, b"File type not allowed"), "HTTP 412, 'File type not allowed'"),
        ((200, b""), "HTTP 200, ''"),
        ((200, b"http://example.org/a.png"), "'http://example.org/a.png'"),
        ((200, b"https://example.org/a b.png"), "HTTP 200"),
        ((302, b""), "HTTP 302"),
    ],
)
def test_a_clear_no_is_not_repeated(server, reply, said):
    server.replies = [reply]
    assert said in refused(server.host())
    assert len(server.posts) == 1


def test_an_address_that_does_not_give_the_picture_is_said(server):
    server.replies = [(200, f"{server.origin}/not-there.png".encode())]
    notes = server.host().upload(DATA, "image/png").notes
    assert "tried from here: a server that does not know the picture (HTTP 404)" in notes[0]


def test_the_same_host_and_hours_are_one_for_reuse(server):
    assert server.host().reuse_key == server.host().reuse_key
    assert server.host(hours=1).reuse_key != server.host().reuse_key
    assert not server.host().cleans_up
