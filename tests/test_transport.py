"""The submit rule, byte by byte, against real sockets that misbehave; and where the token goes."""

import socket
import time
import traceback

import pytest
from pack.nodes.core import errors, transport
from pack.nodes.core.submit_body import SubmitBody
from pack.nodes.core.transport import Transport
from raw_server import RawServer, answer, read_request, reply, reset

TOKEN = "secret-canary"
PATH = "/v1/models/kling/kling-3.0/standard/image-to-video"
SMALL = {"prompt": "x"}
LARGE = {"prompt": "x" * (32 << 20)}  # more than any socket buffer takes in one go
ACCEPTED = {"request_id": "r-1", "status_url": "https://elsewhere.example/"}


def submit(server: RawServer, payload: dict = SMALL):
    return Transport(server.origin, TOKEN).post_job(PATH, payload)


def test_accepted_submit_returns_its_request_id():
    with RawServer(answer(200, ACCEPTED)) as server:
        assert submit(server) == "r-1"


def test_submit_carries_the_token_the_length_and_the_whole_body():
    seen = []

    def script(conn: socket.socket) -> None:
        seen.append(read_request(conn))
        conn.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"request_id": "r1"}')

    with RawServer(script) as server:
        submit(server, {"prompt": "x" * 40000})
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST {PATH} HTTP/1.1".encode())
    assert b"Authorization: Bearer secret-canary" in head
    assert b"Connection: close" in head
    assert b"chunked" not in head.lower()
    assert body == b'{"prompt": "' + b"x" * 40000 + b'"}'


# -- refused: RunComfy's own words, nothing charged


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (401, {"error_code": 400004, "error_message": "bad"}, errors.AuthError, "profile page"),
        (400, {"error_code": 400004, "error_message": "bad"}, errors.AuthError, "profile page"),
        (402, {"error_message": "no money"}, errors.PaymentError, "Add balance"),
        (400, {"error_code": 400002, "error_message": "x"}, errors.PaymentError, "Add balance"),
        (403, {"error_message": "not yours"}, errors.AuthError, "Is the token of the account"),
        (400, {"error_code": 403001, "error_message": "x"}, errors.AuthError, "Is the token"),
        (404, {"error_code": 400001, "error_message": "no model"}, errors.ApiError, "no model"),
        (409, {"error_message": "a conflict"}, errors.ApiError, "a conflict"),
        (409, b"<html>conflict</html>", errors.ApiError, "HTTP 409"),
        (429, {"error_message": "slow down"}, errors.RateLimitError, "slow down"),
        (413, b"<html>too large</html>", errors.ApiError, "HTTP 413"),
        (200, {"error_code": 400002, "error_message": "x"}, errors.PaymentError, "Add balance"),
        (500, {"error_code": 400002, "error_message": "x"}, errors.PaymentError, "Add balance"),
        (
            422,
            {"detail": [{"loc": ["body", "duration"], "msg": "too long", "type": "x"}]},
            errors.ApiError,
            "duration: too long",
        ),
    ],
)
def test_refused_submit(status, body, kind, said):
    with RawServer(answer(status, body)) as server, pytest.raises(kind, match=said) as caught:
        submit(server)
    assert "nothing was charged" in str(caught.value)
    assert server.connections == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("9999", 300), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("soon", None)],
)
def test_refusal_for_the_rate_says_how_long_to_wait(header, seconds):
    with RawServer(answer(429, {"message": "x"}, Retry_After=header)) as server:
        with pytest.raises(errors.RateLimitError) as caught:
            submit(server)
    assert caught.value.retry_after_s == seconds


def test_a_refusals_words_are_shown_only_so_far():
    with RawServer(answer(422, {"detail": "x" * 5000})) as server:
        with pytest.raises(errors.ApiError, match="x…") as caught:
            submit(server)
    assert len(str(caught.value)) < 700


# -- never left: the last byte was not handed over, it may be sent again


def test_nobody_listening_is_never_left():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(errors.NeverLeft, match="Nothing was charged"):
        Transport(f"http://127.0.0.1:{port}", TOKEN).post_job(PATH, SMALL)


def test_failed_tls_handshake_is_never_left():
    with RawServer(lambda conn: conn.sendall(b"no tls here")) as server:
        origin = server.origin.replace("http:", "https:")
        with pytest.raises(errors.NeverLeft):
            Transport(origin, TOKEN).post_job(PATH, SMALL)


def test_reset_in_the_middle_of_the_body_is_never_left():
    def script(conn: socket.socket) -> None:
        conn.recv(4096)
        reset(conn)

    with RawServer(script) as server, pytest.raises(errors.NeverLeft):
        submit(server, LARGE)
    assert server.connections == 1


def test_a_line_that_takes_no_more_bytes_is_never_left(monkeypatch):
    monkeypatch.setattr(transport, "CONNECT_S", 0.3)
    with RawServer(lambda conn: time.sleep(1)) as server, pytest.raises(errors.NeverLeft):
        submit(server, LARGE)


def take_all(conn: socket.socket) -> None:
    while conn.recv(65536):
        pass


def test_a_send_that_takes_too_long_is_broken_off_before_its_end():
    times = iter([0.0, 0.0, 10_000.0])  # made, first piece, second piece
    with RawServer(take_all) as server:
        slow = Transport(server.origin, TOKEN, clock=lambda: next(times))
        with pytest.raises(errors.NeverLeft, match="more than 542 s"):
            slow.post_job(PATH, LARGE)


@pytest.mark.parametrize("pieces_sent", [0, 1])
@pytest.mark.parametrize("cause", ["stopped", "sending took more than"])
def test_a_send_is_broken_off_before_any_piece_up_to_the_last(pieces_sent, cause):
    now, stopped = [0.0], []
    body = SubmitBody(b"x" * 20000, clock=lambda: now[0], give_up=lambda: bool(stopped))
    for _ in range(pieces_sent):
        body.read(16384)
    if cause == "stopped":
        stopped.append(True)
    else:
        now[0] = 1000.0
    with pytest.raises(TimeoutError, match=cause):
        body.read(16384)
    assert not body.handed_over


def test_a_send_is_not_broken_off_after_its_last_piece():
    now, stopped = [0.0], []
    body = SubmitBody(b"x" * 20000, clock=lambda: now[0], give_up=lambda: bool(stopped))
    assert [len(body.read(16384)) for _ in range(2)] == [16384, 3616]
    now[0], stopped = 1000.0, [True]
    assert body.read(16384) == b""


# -- unknown: the body may have arrived whole


def close_without_answer(conn: socket.socket) -> None:
    read_request(conn)


def reset_without_answer(conn: socket.socket) -> None:
    read_request(conn)
    reset(conn)


def break_off_in_the_head(conn: socket.socket) -> None:
    read_request(conn)
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")


def break_off_in_the_body(conn: socket.socket) -> None:
    read_request(conn)
    conn.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"request_id": "r')


def break_off_in_a_refusal(conn: socket.socket) -> None:
    read_request(conn)
    conn.sendall(b'HTTP/1.1 422 X\r\nContent-Length: 99\r\n\r\n{"detail": "x')


def talk_nonsense(conn: socket.socket) -> None:
    read_request(conn)
    conn.sendall(b"\x00\x01\x02 nonsense\r\n\r\n")


@pytest.mark.parametrize(
    "script",
    [
        close_without_answer,
        reset_without_answer,
        break_off_in_the_head,
        break_off_in_the_body,
        break_off_in_a_refusal,
        talk_nonsense,
        answer(503, b"<html>gateway</html>"),
        answer(503, {"message": "try later"}),
        answer(500, b""),
        answer(200, b"<html>login</html>"),
        answer(200, {"status": "in_queue"}),
        answer(200, {"request_id": ""}),
        answer(200, ["r-1"]),
        answer(302, b"", Location="http://127.0.0.1:9/"),
    ],
)
def test_a_sent_job_without_a_clear_answer_is_unknown_and_sent_once(script):
    with RawServer(script) as server, pytest.raises(errors.SubmitUnknown, match="not sent again"):
        submit(server)
    assert server.connections == 1


def nested(depth: int) -> bytes:
    return b'{"detail":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_that_breaks_the_parser_is_unknown(status):
    with RawServer(answer(status, nested(100_000))) as server:
        with pytest.raises(errors.SubmitUnknown):
            submit(server)


def test_a_refusal_that_breaks_the_wording_is_still_a_refusal():
    with RawServer(answer(422, nested(600))) as server, pytest.raises(errors.ApiError):
        submit(server)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (504, {"error_code": 504, "error_message": "upstream timed out"}),
        (500, {"error_code": 500001, "error_message": "boom"}),
        (200, {"error_code": 503001, "error_message": "boom"}),
        (502, {"error_code": "Internal", "error_message": "boom"}),
        (408, {"message": "Request Timeout"}),
    ],
)
def test_a_fault_on_the_way_is_no_refusal_whatever_its_code(status, body):
    with RawServer(answer(status, body)) as server, pytest.raises(errors.SubmitUnknown):
        submit(server)


@pytest.mark.parametrize("status", [408, 425, 499])
def test_a_gateways_word_about_a_sent_job_is_unknown(status):
    with RawServer(answer(status, b"stream timeout")) as server:
        with pytest.raises(errors.SubmitUnknown):
            submit(server)


def test_a_gateways_429_is_refused_but_not_for_sending_again():
    with RawServer(answer(429, b"<html>slow down</html>")) as server:
        with pytest.raises(errors.ApiError) as caught:
            submit(server)
    assert not isinstance(caught.value, errors.RateLimitError)


def accepted_but_cut(headers: bytes):
    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\n" + headers)

    return script


@pytest.mark.parametrize(
    "headers",
    [
        b'Content-Length: 24\r\n\r\n{"request_id": "r-77"}',
        b'Transfer-Encoding: chunked\r\n\r\n16\r\n{"request_id": "r-77"}\r\n',
        b'Content-Length: 20\r\n\r\n{"request_id": 77 } ',
    ],
)
def test_a_request_id_that_arrived_whole_is_not_thrown_away(headers):
    with RawServer(accepted_but_cut(headers)) as server:
        assert submit(server) in ("r-77", "77")


@pytest.mark.parametrize("request_id", ["..", "a/../b", "x" * 300, "", True, None, {"a": 1}])
def test_an_odd_request_id_is_unknown(request_id):
    with RawServer(answer(200, {"request_id": request_id})) as server:
        with pytest.raises(errors.SubmitUnknown):
            submit(server)


def test_a_refusal_may_echo_the_whole_request():
    echo = {"detail": [{"loc": ["body", "x"], "msg": "no", "input": "x" * (8 << 20)}]}
    with RawServer(answer(422, echo)) as server, pytest.raises(errors.ApiError, match="x: no"):
        submit(server)


@pytest.mark.parametrize(
    ("status", "kind"), [(503, errors.NeverLeft), (413, errors.ApiError), (302, errors.NeverLeft)]
)
def test_an_answer_before_the_whole_body_means_that_no_job_started(status, kind):
    def script(conn: socket.socket) -> None:
        conn.recv(4096)
        conn.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        time.sleep(0.3)

    with RawServer(script) as server, pytest.raises(kind):
        submit(server, LARGE)


def test_a_redirect_that_names_a_request_is_no_acceptance_but_keeps_the_id():
    with RawServer(answer(302, ACCEPTED, Location="http://127.0.0.1:9/")) as server:
        with pytest.raises(errors.SubmitUnknown) as caught:
            submit(server)
    assert caught.value.request_id == "r-1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_a_submit_is_neither_followed_nor_read(status):
    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(
            f"HTTP/1.1 {status} X\r\nLocation: {server.origin}/x\r\n"
            f"Content-Length: 9999999999\r\n\r\n".encode()
        )
        for _ in range(100):
            conn.sendall(b"x" * 65536)
            time.sleep(0.02)

    with RawServer(script) as server, pytest.raises(errors.SubmitUnknown):
        submit(server)
    assert server.connections == 1


def test_stop_breaks_a_send_off_while_that_is_free():
    asked = iter([False, False, True])
    with RawServer(take_all) as server:
        with pytest.raises(errors.NeverLeft, match="stopped"):
            Transport(server.origin, TOKEN).post_job(PATH, LARGE, give_up=lambda: next(asked, True))


def test_no_answer_in_time_is_unknown(monkeypatch):
    monkeypatch.setattr(transport, "SUBMIT_ANSWER_S", 0.3)

    def script(conn: socket.socket) -> None:
        read_request(conn)
        time.sleep(0.8)

    with RawServer(script) as server, pytest.raises(errors.SubmitUnknown):
        submit(server)
    assert server.connections == 1


def test_an_answer_that_trickles_is_unknown_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(transport, "SUBMIT_ANSWER_S", 0.4)

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
        for _ in range(15):
            conn.sendall(b"x" * 16)
            time.sleep(0.1)

    with RawServer(script) as server, pytest.raises(errors.SubmitUnknown, match="took more than"):
        submit(server)


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_refusal_that_names_a_request_is_unknown_and_keeps_the_id(status):
    body = {"error_code": 1, "error_message": "odd", "request_id": "r-9"}
    with RawServer(answer(status, body)) as server:
        with pytest.raises(errors.SubmitUnknown, match="r-9") as caught:
            submit(server)
    assert caught.value.request_id == "r-9"


# -- other calls


@pytest.mark.parametrize(
    "script",
    [
        answer(502, b"<html>Bad gateway</html>"),
        answer(500, {"message": "x"}),
        answer(429, {"message": "x"}),
        answer(408, {"message": "x"}),
        answer(200, b"<html>login</html>"),
        answer(403, b"<html>proxy</html>"),
        answer(302, {"a": 1}, Location="http://127.0.0.1:9/"),
        break_off_in_the_body,
        close_without_answer,
    ],
)
def test_a_get_without_a_usable_answer_may_be_asked_again(script):
    with RawServer(script) as server, pytest.raises(errors.NetworkError):
        Transport(server.origin, TOKEN).get("/v1/requests/r/result")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("call", [Transport.get, Transport.post])
def test_neither_a_question_nor_a_cancel_follows_a_redirect(call, status):
    with RawServer(answer(200, {"status": "completed", "outcome": "cancelled"})) as elsewhere:
        redirect = answer(status, {"a": 1}, Location=f"{elsewhere.origin}/x")
        with RawServer(redirect) as server, pytest.raises(errors.NetworkError):
            call(Transport(server.origin, TOKEN), "/v1/requests/r/result")
        assert (server.connections, elsewhere.connections) == (1, 0)


def test_an_answer_larger_than_any_is_not_read_on(monkeypatch):
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 1000)
    with RawServer(answer(200, {"a": "x" * 5000})) as server:
        with pytest.raises(errors.NetworkError, match="an answer of more than"):
            Transport(server.origin, TOKEN).get("/x")


def test_an_answer_that_trickles_is_given_up_when_the_time_is_up(monkeypatch):
    monkeypatch.setattr(transport, "READ_S", 0.3)

    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n")
        for piece in b'{"a": "bcd"}':
            conn.sendall(bytes([piece]))
            time.sleep(0.1)

    with RawServer(script) as server, pytest.raises(errors.NetworkError, match="took more than"):
        Transport(server.origin, TOKEN).get("/x")


def test_no_cookie_is_kept_and_nothing_is_wanted_compressed():
    heads = []

    def script(conn: socket.socket) -> None:
        heads.append(read_request(conn).partition(b"\r\n\r\n")[0])
        conn.sendall(reply(200, ACCEPTED, Set_Cookie="a=b"))

    with RawServer(script) as server:
        one = Transport(server.origin, TOKEN)
        one.get("/x")
        one.get("/x")
        one.post("/x")
        one.post_job(PATH, SMALL)
        with one.open_download(f"{server.origin}/clip.mp4") as response:
            assert response.content
    assert len(heads) == 5
    assert not [head for head in heads if b"cookie" in head.lower()]
    assert all(b"Accept-Encoding: identity" in head for head in heads)


@pytest.mark.parametrize("code", [429001, 500001, 503000])
def test_an_error_code_about_the_moment_may_be_asked_again(code):
    with RawServer(answer(200, {"error_code": code, "error_message": "x"})) as server:
        with pytest.raises(errors.NetworkError):
            Transport(server.origin, TOKEN).get("/x")


def test_an_error_code_of_zero_is_none_and_a_state_says_more_than_a_code():
    zero, failed = {"error_code": "0", "a": 1}, {"status": "failed", "error_code": 500001}
    with RawServer(answer(200, zero), answer(200, failed)) as server:
        one = Transport(server.origin, TOKEN)
        assert one.get("/x").body == zero
        assert one.get("/x").body == failed


def test_error_code_in_a_200_is_a_refusal():
    body = {"error_code": 404001, "error_message": "no such request"}
    with RawServer(answer(200, body)) as server:
        with pytest.raises(errors.NotFoundError, match="no such request"):
            Transport(server.origin, TOKEN).get("/v1/requests/r/result")


def test_the_token_and_media_are_taken_out_of_the_servers_words():
    echo = f"bad token {TOKEN} for data:image/png;base64,iVBORw0KGgo= sent"
    with RawServer(answer(401, {"detail": echo})) as server:
        with pytest.raises(errors.AuthError, match=r"\[token\] for \[media\] sent") as caught:
            Transport(server.origin, TOKEN).get("/x")
    assert TOKEN not in str(caught.value)


def echo_the_token(conn: socket.socket) -> None:
    read_request(conn)
    conn.sendall(f"{TOKEN} is no HTTP\r\n\r\n".encode())


def echo_the_token_early(conn: socket.socket) -> None:
    conn.recv(4096)
    conn.sendall(f"{TOKEN} is no HTTP\r\n\r\n".encode())
    time.sleep(0.3)


def echo_the_token_as_a_length(conn: socket.socket) -> None:
    read_request(conn)
    conn.sendall(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{TOKEN}\r\n".encode())


def fetch_clip(one: Transport, path: str) -> None:
    with one.open_download(one.origin + path) as response:
        b"".join(one.pieces(response))


@pytest.mark.parametrize(
    "call",
    [
        Transport.get,
        Transport.post,
        lambda one, path: one.post_job(path, SMALL),
        fetch_clip,
    ],
    ids=["get", "cancel", "submit", "download"],
)
@pytest.mark.parametrize(
    "script",
    [echo_the_token, echo_the_token_as_a_length]
    + [answer(status, {"message": f"so {TOKEN}"}) for status in (302, 400, 401, 429, 502)],
)
def test_no_error_shows_the_token_not_even_in_its_traceback(script, call):
    with RawServer(script) as server, pytest.raises(errors.RunComfyError) as caught:
        call(Transport(server.origin, TOKEN), "/x")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_a_job_that_never_left_does_not_show_the_token_either():
    with RawServer(echo_the_token_early) as server:
        with pytest.raises(errors.NeverLeft, match=r"\[token\]") as caught:
            submit(server, LARGE)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_the_words_of_a_fault_are_shown_with_the_token_taken_out():
    scripts = [echo_the_token, answer(503, {"message": f"so {TOKEN}"})]
    with RawServer(*scripts, *scripts) as server:
        one = Transport(server.origin, TOKEN)
        for call in (lambda: one.get("/x"), lambda: one.post_job(PATH, SMALL)):
            for said in (r"\[token\] is no HTTP", r"so \[token\]"):
                with pytest.raises(errors.RunComfyError, match=said):
                    call()


def test_this_machine_is_reached_without_the_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with RawServer(answer(200, ACCEPTED), answer(200, {"a": 1}), answer(200, b"clip")) as server:
        one = Transport(server.origin, TOKEN)
        assert one.post_job(PATH, SMALL) == "r-1"
        assert one.get("/x").body == {"a": 1}
        with one.open_download(f"{server.origin}/clip.mp4") as response:
            assert b"".join(one.pieces(response)) == b"clip"


def test_a_proxy_that_refuses_means_never_left_and_shows_no_password(monkeypatch):
    refuses = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"

    def script(conn: socket.socket) -> None:
        conn.recv(4096)
        conn.sendall(refuses)

    with RawServer(script) as proxy:
        address = proxy.origin.replace("http://", "http://user:hunter2@")
        for value in (address, "http://user:hunter2/x@host"):
            monkeypatch.setenv("https_proxy", value)
            with pytest.raises(errors.NeverLeft) as caught:
                Transport("https://model-api.runcomfy.invalid", TOKEN).post_job(PATH, SMALL)
            assert "hunter2" not in str(caught.value)


def test_netrc_neither_replaces_the_token_nor_reaches_the_files_host(monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen = []

    def script(conn: socket.socket) -> None:
        seen.append(read_request(conn))
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    with RawServer(script) as server:
        one = Transport(server.origin, TOKEN)
        one.get("/x")
        with one.open_download(f"{server.origin}/clip.mp4") as response:
            assert response.content == b"{}"
    assert b"Authorization: Bearer secret-canary" in seen[0]
    assert b"authorization" not in seen[1].lower()


@pytest.mark.parametrize(
    "url",
    [
        "http://files.runcomfy.net/a.mp4",
        "https://example.org/a.mp4",
        "https://runcomfy.net.example.org/a.mp4",
        "https://evilruncomfy.net/a.mp4",
        "https://user@files.runcomfy.net/a.mp4",
        "https://files.runcomfy.net:8443/a.mp4",
        "http://127.0.0.1:1/a.mp4",
        "file:///etc/passwd",
        "https://[broken/a.mp4",
        "https://evil.example\\.runcomfy.net/a.mp4",
        "https://evil.example\t.runcomfy.net/a.mp4",
        "https://runcomfy.net@evil.example/a.mp4",
        "",
    ],
)
def test_clips_are_not_fetched_from_elsewhere(url):
    with pytest.raises(errors.ForeignAddress, match="not one that RunComfy's results come from"):
        with Transport("http://127.0.0.1:2", TOKEN).open_download(url):
            pass


def test_a_clips_address_is_shown_without_the_token():
    with pytest.raises(errors.ForeignAddress, match=r"token=\[token\]"):
        with Transport("http://127.0.0.1:2", TOKEN).open_download(f"https://e/?token={TOKEN}"):
            pass


def test_a_redirect_of_a_clip_is_not_followed():
    with RawServer(answer(302, b"", Location="http://127.0.0.1:9/x")) as server:
        with pytest.raises(errors.ApiError, match="HTTP 302"):
            with Transport(server.origin, TOKEN).open_download(f"{server.origin}/clip.mp4"):
                pass


def test_no_part_of_the_token_is_shown_of_a_long_address():
    url = f"https://example.org/{'a' * 172}{TOKEN}"
    with pytest.raises(errors.ForeignAddress) as caught:
        with Transport("http://127.0.0.1:2", TOKEN).open_download(url):
            pass
    assert TOKEN[:8] not in str(caught.value)
