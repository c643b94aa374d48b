"""Result files to disk: resumed, capped, never taken for whole when they are not."""

import os
import time

import pytest
from pack.nodes.core import download as module
from pack.nodes.core import errors
from pack.nodes.core.download import download
from pack.nodes.core.transport import Transport
from raw_server import RawServer, answer, read_request

DATA = bytes(range(256)) * 4000


def cut_after(size: int):
    def script(conn):
        read_request(conn)
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(DATA)}\r\n\r\n"
        conn.sendall(head.encode() + DATA[:size])

    return script


def rest(seen: list):
    """Answers a range request rightly, and notes what was asked."""

    def script(conn):
        head = read_request(conn).decode()
        start = int(head.split("bytes=")[1].split("-")[0]) if "bytes=" in head else 0
        seen.append(start)
        status = f"206 Partial\r\nContent-Range: bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        head = f"HTTP/1.1 {status if start else '200 OK'}\r\nContent-Length: {len(DATA) - start}"
        conn.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n" + DATA[start:])

    return script


def fetch(tmp_path, *scripts):
    part, waits = tmp_path / "clip.part", []
    with RawServer(*scripts) as server:
        url = f"{server.origin}/clip.mp4"
        download(Transport(server.origin, "t"), url, part, wait=waits.append)
    return part.read_bytes(), waits


def test_a_whole_file(tmp_path):
    assert fetch(tmp_path, answer(200, DATA)) == (DATA, [])


def test_a_cut_file_goes_on_where_it_was_cut(tmp_path):
    seen = []
    content, waits = fetch(tmp_path, cut_after(300_000), rest(seen))
    assert content == DATA
    assert 300_000 - module.PIECE_BYTES < seen[0] <= 300_000
    assert len(waits) == 1


def test_a_server_without_ranges_starts_anew(tmp_path):
    assert fetch(tmp_path, cut_after(300_000), answer(200, DATA))[0] == DATA


def test_a_wrong_range_is_not_glued_on(tmp_path):
    wrong = answer(206, DATA[5:], Content_Range=f"bytes 5-{len(DATA) - 1}/{len(DATA)}")
    assert fetch(tmp_path, cut_after(300_000), wrong, answer(200, DATA))[0] == DATA


def test_an_unsatisfiable_range_starts_anew(tmp_path):
    assert fetch(tmp_path, cut_after(300_000), answer(416), answer(200, DATA))[0] == DATA


def test_gateway_faults_and_the_rate_are_waited_out(tmp_path):
    content, waits = fetch(
        tmp_path, answer(502), answer(429, b"", Retry_After="9"), answer(200, DATA)
    )
    assert content == DATA
    assert waits[1] == 9.0


def test_what_was_there_before_is_not_trusted(tmp_path):
    (tmp_path / "clip.part").write_bytes(b"old bytes")
    assert fetch(tmp_path, answer(200, DATA))[0] == DATA


def test_cut_again_and_again_is_given_up(tmp_path):
    with pytest.raises(errors.NetworkError, match="8 attempts"):
        fetch(tmp_path, lambda conn: None)


def test_a_line_that_brings_something_each_time_is_never_given_up(tmp_path):
    def crawl(conn):
        head = read_request(conn).decode()
        start = int(head.split("bytes=")[1].split("-")[0]) if "bytes=" in head else 0
        end = min(start + 70_000, len(DATA))
        status = f"206 X\r\nContent-Range: bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        lines = f"HTTP/1.1 {status if start else '200 X'}\r\nContent-Length: {len(DATA) - start}"
        conn.sendall(lines.encode() + b"\r\n\r\n" + DATA[start:end])

    content, waits = fetch(tmp_path, crawl)
    assert content == DATA
    assert len(waits) > module.FRUITLESS_ATTEMPTS


def test_half_a_file_is_not_taken_for_whole(tmp_path):
    half = answer(206, DATA[:100], Content_Range=f"bytes 0-99/{len(DATA)}")
    short = answer(206, DATA[300_000:300_100], Content_Range=f"bytes 300000-300099/{len(DATA)}")
    assert fetch(tmp_path, half, cut_after(300_000), short, answer(200, DATA))[0] == DATA


def test_a_file_that_changed_meanwhile_is_not_glued_together(tmp_path):
    asked = []

    def old(conn):
        read_request(conn)
        head = f'HTTP/1.1 200 OK\r\nETag: "one"\r\nContent-Length: {len(DATA)}\r\n\r\n'
        conn.sendall(head.encode() + DATA[:300_000])

    def new(conn):
        asked.append(read_request(conn).decode())
        head = f'HTTP/1.1 200 OK\r\nETag: "two"\r\nContent-Length: {len(DATA)}\r\n\r\n'
        conn.sendall(head.encode() + DATA[::-1])

    assert fetch(tmp_path, old, new)[0] == DATA[::-1]
    assert 'If-Range: "one"' in asked[0]


def test_a_trickle_comes_to_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALL_S", 0.2)
    monkeypatch.setattr(module, "FRUITLESS_ATTEMPTS", 1)

    def trickle(conn):
        read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n")
        for _ in range(40):
            conn.sendall(b"x")
            time.sleep(0.05)

    def gone(conn):
        read_request(conn)

    with pytest.raises(errors.NetworkError):
        fetch(tmp_path, trickle, gone)


def test_a_ca_file_that_is_missing_is_the_lines_fault_not_the_disks(tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/gone/ca.pem")
    monkeypatch.setattr(module, "FRUITLESS_ATTEMPTS", 1)
    with pytest.raises(errors.NetworkError, match="ca.pem"):
        url = "https://files.runcomfy.net/a.mp4"
        download(
            Transport("https://files.runcomfy.net", "t"), url, tmp_path / "p", wait=lambda _: None
        )


def test_a_missing_file_is_said_at_once(tmp_path):
    with pytest.raises(errors.ApiError, match="HTTP 404"):
        fetch(tmp_path, answer(404))


def test_too_large_a_file_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLIP_BYTES", 50000)
    with pytest.raises(errors.MediaError, match="larger than"):
        fetch(tmp_path, answer(200, DATA))
    assert not (tmp_path / "clip.part").exists()


def test_too_large_a_file_that_does_not_say_its_size_is_broken_off(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLIP_BYTES", 50000)

    def chunked(conn):
        read_request(conn)
        conn.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(DATA), 4096):
            piece = DATA[start : start + 4096]
            conn.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        conn.sendall(b"0\r\n\r\n")

    with pytest.raises(errors.MediaError, match="larger than"):
        fetch(tmp_path, chunked)
    assert (tmp_path / "clip.part").stat().st_size <= 50000


def test_a_file_is_synced_to_disk_when_it_is_whole(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(file):
        synced.append((os.fstat(file).st_ino, os.fstat(file).st_size))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    fetch(tmp_path, cut_after(300_000), rest([]))
    assert synced == [((tmp_path / "clip.part").stat().st_ino, len(DATA))]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with RawServer(answer(200, DATA)) as server:
        url = f"{server.origin}/clip.mp4"
        part = tmp_path / "missing" / "clip.part"
        with pytest.raises(errors.MediaError, match="cannot be written.*queue again"):
            download(Transport(server.origin, "t"), url, part, wait=lambda _: None)


def test_too_large_a_clips_address_is_shown_without_the_token(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_CLIP_BYTES", 50_000)
    with RawServer(answer(200, DATA)) as server, pytest.raises(errors.MediaError) as caught:
        download(
            Transport(server.origin, "secret-canary"),
            f"{server.origin}/clip?token=secret-canary",
            tmp_path / "p",
            wait=lambda _: None,
        )
    assert "secret-canary" not in str(caught.value)
