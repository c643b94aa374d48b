"""From RunComfy's result to the file under its name."""

import json
import os
import re
import threading
import time

import av
import pytest
from pack.nodes.core import collect, errors
from pack.nodes.core.media import video
from pack.nodes.core.states import JobState
from raw_server import RawServer, read_request, reply
from runner_case import (
    Folder,
    accepted,
    connect,
    halfway,
    made_clip,
    make_order,
    make_runner,
    packets,
    row_of,
    run,
    scripted,
    until,
)
from test_video import make_clip


def test_every_error_of_a_sent_job_names_its_request(runner, rehearsal, monkeypatch):
    def gone(*_, **__):
        raise errors.NetworkError("cut again and again")

    monkeypatch.setattr(collect, "download", gone)
    with pytest.raises(errors.NetworkError) as caught:
        run(runner, rehearsal)
    assert rehearsal.submissions[0].request_id in str(caught.value)


def test_a_dead_link_is_asked_for_again_by_id(tmp_path):
    links = []

    def api(conn):
        path = read_request(conn).decode().split(" ")[1]
        if path.startswith("/clip"):
            body = made if path == "/clip-2" else b""
            status = 200 if body else 404
        else:
            links.append(path)
            url = (
                f"http://{conn.getsockname()[0]}:{conn.getsockname()[1]}/clip-{min(len(links), 2)}"
            )
            body = json.dumps({"status": "succeeded", "output": {"video": url}}).encode()
            status = 200
        conn.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n".encode())
        conn.sendall(b"Connection: close\r\n\r\n" + body)

    made = make_clip(tmp_path / "made.clip", frames=72).read_bytes()
    _, job, server = scripted(tmp_path, api)
    assert job.waiter().result(30).path.exists()
    server.close()


def test_a_page_in_the_place_of_the_clip_is_fetched_again(tmp_path):
    replies = [reply(200, b"<html>one moment</html>"), reply(200, made_clip(tmp_path))]
    with RawServer() as server:
        _, job = accepted(tmp_path, server, clip=replies, cost=0.25)
        clip = job.waiter().result(30)
    assert clip.info.duration_s == pytest.approx(3, abs=0.1)
    assert clip.notes == ()


def test_a_clip_of_another_length_is_said(tmp_path):
    with RawServer() as server:
        _, job = accepted(tmp_path, server, clip=[reply(200, made_clip(tmp_path, 48))])
        assert job.waiter().result(30).notes == ("The clip lasts 2.0 s; 3 s were asked for.",)


@pytest.mark.parametrize(
    ("late", "cost_usd"),
    [
        (reply(200, {"status": "succeeded", "cost": 0.25}), 0.25),
        (reply(502, b"<html>gateway</html>"), None),
        (reply(404, {"error_code": 404001, "error_message": "gone"}), None),
    ],
    ids=["told", "gateway", "gone"],
)
def test_a_cost_that_is_told_late_is_written_and_one_that_is_not_told_harms_nothing(
    tmp_path, late, cost_usd
):
    with RawServer() as server:
        runner, job = accepted(
            tmp_path, server, clip=[reply(200, made_clip(tmp_path))], result=[late]
        )
        clip = job.waiter().result(30)
    assert clip.path.exists()
    (row,) = runner._ledger.newest(9)
    assert (row.state, row.cost_usd, clip.cost_usd) == (JobState.COMPLETED, cost_usd, cost_usd)


def test_the_connection_is_closed_when_the_job_has_ended(tmp_path):
    closed = []

    def keep_alive(conn):
        for status in ("completed", "failed"):
            read_request(conn)
            conn.sendall(reply(200, {"status": status}).replace(b"Connection: close\r\n", b""))
        closed.append(conn.recv(1) == b"")

    _, job, server = scripted(tmp_path, keep_alive)
    assert isinstance(job.waiter().exception(10), errors.JobFailed)
    until(lambda: closed, 4)
    server.close()


def test_an_odd_request_id_makes_a_plain_file_name(tmp_path):
    names, request_id = [], "a:b.c" + "x" * 100

    def look():
        until(lambda: list(tmp_path.glob(".runcomfy-*")))
        names.extend(path.name for path in tmp_path.glob(".runcomfy-*"))

    with RawServer() as server:
        clip = halfway(made_clip(tmp_path), look)
        _, job = accepted(tmp_path, server, clip=[clip], request_id=request_id)
        assert job.waiter().result(30).request_id == request_id
    assert [re.sub(r"\.[0-9a-f]{8}\.", ".?.", name) for name in names] == [
        f".runcomfy-a_b_c{'x' * 59}.?.part"
    ]


def test_leftovers_of_dead_processes_are_removed_once_they_are_an_hour_old(tmp_path):
    old, young = tmp_path / ".runcomfy-r-1.aaaa.part", tmp_path / ".runcomfy-r-1.bbbb.part"
    for path, age_s in ((old, 3700), (young, 3500)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s,) * 2)
    with RawServer() as server:
        _, job = accepted(tmp_path, server, clip=[reply(200, made_clip(tmp_path))])
        job.waiter().result(30)
    assert list(tmp_path.glob(".runcomfy-*")) == [young]


def test_parallel_jobs_get_names_of_their_own(runner, rehearsal, tmp_path):
    jobs = [runner.start(make_order(seed=n), connect(rehearsal)) for n in range(4)]
    assert len({job.waiter().result(60).path for job in jobs}) == 4
    assert len(list(tmp_path.glob("*.mp4"))) == 4


def test_a_name_that_was_taken_meanwhile_is_not_overwritten(runner, rehearsal, monkeypatch):
    candidate, taken = Folder.candidate, []

    def beaten(self, *args):
        path = candidate(self, *args)
        if not taken:
            taken.append(path)
            path.write_bytes(b"somebody else's")
        return path

    monkeypatch.setattr(Folder, "candidate", beaten)
    clip = run(runner, rehearsal)
    assert clip.path != taken[0]
    assert taken[0].read_bytes() == b"somebody else's"


def test_two_processes_that_have_the_clip_at_once_save_it_once(rehearsal, tmp_path, monkeypatch):
    together, add_metadata = threading.Barrier(2), video.add_metadata

    def both(part, **graph):
        add_metadata(part, **graph)
        if part.parent == tmp_path:
            together.wait(60)

    monkeypatch.setattr(video, "add_metadata", both)
    runners = [make_runner(tmp_path) for _ in range(2)]
    jobs = [one.start(make_order(), connect(rehearsal)) for one in runners]
    paths = {job.waiter().result(90).path for job in jobs}
    assert list(tmp_path.glob("*.mp4")) == list(paths)


def test_a_name_whose_file_never_comes_holds_nobody_up(runner, rehearsal, monkeypatch, tmp_path):
    def named_elsewhere(*_, **__):
        row = row_of(runner, rehearsal)
        runner._ledger.name_clip(row.id, str(tmp_path / "gone.mp4"), "0" * 64, instead_of=None)

    monkeypatch.setattr(video, "add_metadata", named_elsewhere)
    clip = run(runner, rehearsal)
    assert list(tmp_path.glob("*.mp4")) == [clip.path]
    assert row_of(runner, rehearsal).path == str(clip.path)


@pytest.mark.skipif(os.name != "posix", reason="folders are synced on POSIX only")
def test_the_clip_and_its_name_are_synced_to_disk(runner, rehearsal, monkeypatch, tmp_path):
    synced, fsync = [], os.fsync

    def noted(file):
        synced.append(os.fstat(file).st_ino)
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    clip = run(runner, rehearsal)
    assert synced.index(clip.path.stat().st_ino) < synced.index(tmp_path.stat().st_ino)


def test_a_disk_without_hard_links_will_do(runner, rehearsal, monkeypatch, tmp_path):
    def no_links(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    assert run(runner, rehearsal).info.duration_s == pytest.approx(3, abs=0.1)
    assert not list(tmp_path.glob(".*"))


def test_the_graph_is_in_the_files_metadata_and_the_streams_are_untouched(runner, rehearsal):
    graph = {"prompt": {"1": {"class_type": "X"}}, "workflow": {"nodes": [1, "é"]}}
    clip = run(runner, rehearsal, make_order(**graph))
    (original,) = rehearsal._folder.glob("*.mp4")
    with av.open(str(clip.path)) as container:
        assert json.loads(container.metadata["prompt"]) == graph["prompt"]
        assert json.loads(container.metadata["workflow"]) == graph["workflow"]
    assert packets(clip.path) == packets(original)
