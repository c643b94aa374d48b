"""The ledger: claims, states, time and what it does when the database will not have it."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pack.nodes.core import owner
from pack.nodes.core.errors import LedgerError, TransitionRefused
from pack.nodes.core.ledger import Ledger, sqlite_url
from pack.nodes.core.rows import NewJob
from pack.nodes.core.states import JobState

NEW = NewJob(
    identity="a" * 64,
    near_identity="b" * 64,
    origin="https://api.example",
    account="me",
    model_id="kling/x",
    payload={"prompt": "é", "duration": 3},
    price_usd=0.25,
    prefix="video/x",
    duration_s=3,
    prompt={"1": {}},
    workflow=None,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A new database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgresql_url")


@pytest.fixture
def ledger(url):
    opened = Ledger(url)
    yield opened
    opened.close()


def claim(ledger, new=NEW, post_limit_s=60.0):
    return ledger.claim(new, post_limit_s=post_limit_s)


def in_queue(ledger, **changes):
    row, _ = claim(ledger, replace(NEW, **changes))
    return ledger.advance(row.id, JobState.IN_QUEUE, request_id="r-1")


def test_a_claim_is_read_back_as_it_was_written(ledger):
    row, is_ours = claim(ledger)
    assert is_ours
    assert row == ledger.find(NEW.identity) == ledger.get(row.id)
    assert (row.state, row.payload, row.prompt, row.workflow) == (
        JobState.SUBMITTING,
        NEW.payload,
        {"1": {}},
        None,
    )
    assert abs(row.created_at - time.time()) < 60


def test_the_second_claim_of_an_identity_gets_the_first_ones_row(ledger):
    first, _ = claim(ledger)
    assert claim(ledger) == (first, False)
    assert claim(ledger, replace(NEW, identity="c" * 64))[1]


@pytest.mark.parametrize("end", [JobState.FAILED, JobState.CANCELLED])
def test_failed_and_cancelled_jobs_do_not_bind(ledger, end):
    row = in_queue(ledger)
    ledger.advance(row.id, end)
    assert ledger.find(NEW.identity) is None
    again, is_ours = claim(ledger)
    assert is_ours and again.id != row.id


def test_of_many_claims_at_once_one_wins(url):
    results, ready = [], threading.Barrier(8)

    def race():
        own = Ledger(url)
        ready.wait()
        results.append(claim(own))
        own.close()

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(is_ours for _, is_ours in results) == [False] * 7 + [True]
    assert len({row.id for row, _ in results}) == 1


def test_a_submit_that_must_be_over_is_unknown_by_the_databases_clock(ledger):
    row, _ = claim(ledger, post_limit_s=-61.0)
    found = ledger.find(NEW.identity)
    assert found.state == JobState.UNKNOWN
    assert [state for state, _ in ledger.times(row.id)] == [JobState.SUBMITTING, JobState.UNKNOWN]
    assert claim(ledger) == (found, False)


def dead_owner():
    """What a process that is gone called itself."""
    child = subprocess.run(
        [sys.executable, "-c", "import owner; print(owner.me())"],
        cwd=Path(owner.__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return child.stdout.strip()


def test_a_submit_whose_sender_died_is_unknown_at_once(ledger):
    row, _ = claim(ledger)
    ledger.set(row.id, owner=dead_owner())
    assert ledger.find(NEW.identity).state == JobState.UNKNOWN


@pytest.mark.parametrize("sender", ["elsewhere 1 1.00", "nonsense"])
def test_a_sender_elsewhere_is_not_taken_for_dead(ledger, sender):
    row, _ = claim(ledger)
    ledger.set(row.id, owner=sender)
    assert ledger.find(NEW.identity).state == JobState.SUBMITTING


def test_a_renewed_submit_is_not_over(ledger):
    row, _ = claim(ledger, post_limit_s=-61.0)
    ledger.renew(row.id, post_limit_s=60)
    assert ledger.find(NEW.identity).state == JobState.SUBMITTING


def test_a_late_answer_ends_the_unknown(ledger):
    row, _ = claim(ledger, post_limit_s=-61.0)
    assert ledger.find(NEW.identity).state == JobState.UNKNOWN
    assert ledger.advance(row.id, JobState.IN_QUEUE, request_id="r").request_id == "r"


def test_a_job_goes_through_its_states_and_each_is_timed(ledger):
    row = in_queue(ledger)
    for state in (JobState.IN_PROGRESS, JobState.DOWNLOADING, JobState.COMPLETED):
        row = ledger.advance(row.id, state, cost_usd=0.24)
    times = ledger.times(row.id)
    assert [state.value for state, _ in times] == [
        "submitting",
        "in_queue",
        "in_progress",
        "downloading",
        "completed",
    ]
    assert [at for _, at in times] == sorted(at for _, at in times)
    assert row.cost_usd == 0.24


@pytest.mark.parametrize(
    ("state", "to"),
    [
        (JobState.IN_QUEUE, JobState.SUBMITTING),
        (JobState.IN_QUEUE, JobState.COMPLETED),
        (JobState.IN_QUEUE, JobState.UNKNOWN),
        (JobState.FAILED, JobState.IN_QUEUE),
        (JobState.CANCELLED, JobState.COMPLETED),
    ],
)
def test_states_that_make_no_sense_are_refused(ledger, state, to):
    row = in_queue(ledger)
    ledger.advance(row.id, state)
    with pytest.raises(TransitionRefused, match=f"{state.value} cannot become {to.value}"):
        ledger.advance(row.id, to)
    assert ledger.get(row.id).state == state


def test_a_state_that_is_there_already_is_no_step(ledger):
    row = in_queue(ledger)
    ledger.advance(row.id, JobState.IN_QUEUE, error="x")
    assert len(ledger.times(row.id)) == 2
    assert ledger.get(row.id).error == "x"


def test_an_unknown_column_and_an_unknown_row_are_refused(ledger):
    row = in_queue(ledger)
    with pytest.raises(LedgerError, match="no colour"):
        ledger.advance(row.id, JobState.IN_PROGRESS, colour="red")
    with pytest.raises(LedgerError, match="no job number 99"):
        ledger.get(99)


def test_a_near_job_is_found_until_it_was_collected(ledger):
    row = in_queue(ledger)
    assert ledger.find_near(NEW.near_identity, NEW.identity) is None
    assert ledger.find_near(NEW.near_identity, "other").id == row.id
    assert ledger.find_near("other", "other") is None
    ledger.collected(row.id)
    assert ledger.find_near(NEW.near_identity, "other") is None


def test_unfinished_jobs_are_those_runcomfy_has(ledger):
    first = in_queue(ledger)
    second = in_queue(ledger, identity="c" * 64)
    claim(ledger, replace(NEW, identity="d" * 64))
    done = in_queue(ledger, identity="e" * 64)
    ledger.advance(done.id, JobState.CANCELLED)
    assert [row.id for row in ledger.take_over(NEW.origin, NEW.account)] == [first.id, second.id]
    assert ledger.take_over("https://elsewhere", NEW.account) == []
    assert ledger.take_over(NEW.origin, "another account") == []


def test_unfinished_jobs_are_left_to_whoever_lives_and_go_to_one_heir(ledger):
    row = in_queue(ledger)
    script = "import owner, sys; print(owner.me(), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(owner.__file__).parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        ledger.set(row.id, owner=other.stdout.readline().strip())
        assert ledger.take_over(NEW.origin, NEW.account) == []
        other.communicate()
    (taken,) = ledger.take_over(NEW.origin, NEW.account)
    assert taken == ledger.get(row.id)
    assert taken.owner == owner.me()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a program cannot be replaced")
def test_a_comfyui_that_starts_itself_anew_is_not_taken_for_the_one_before():
    last = "import owner, sys; print(owner.is_dead(sys.argv[1]), owner.is_dead(owner.me()))"
    first = "import os, owner, sys; os.execv(sys.argv[1], [*sys.argv[1:], owner.me()])"
    done = subprocess.run(
        [sys.executable, "-c", first, sys.executable, "-c", last],
        cwd=Path(owner.__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False"]


def test_a_clip_is_named_by_one_of_those_who_saw_it_unnamed(ledger):
    row = in_queue(ledger)
    first, is_firsts = ledger.name_clip(row.id, "/out/1.mp4", "1" * 64, instead_of=None)
    second, is_seconds = ledger.name_clip(row.id, "/out/1.mp4", "2" * 64, instead_of=None)
    assert (is_firsts, is_seconds) == (True, False)
    assert first == second == ledger.get(row.id)
    assert (first.path, first.file_sha256) == ("/out/1.mp4", "1" * 64)
    third, is_thirds = ledger.name_clip(row.id, "/out/2.mp4", "3" * 64, instead_of="/out/1.mp4")
    assert is_thirds and third.path == "/out/2.mp4"


def test_what_is_written_survives_reopening(url):
    first = Ledger(url)
    row, _ = claim(first)
    first.close()
    second = Ledger(url)
    assert second.get(row.id) == row
    second.close()


# -- SQLite's own


def path_of(tmp_path):
    return tmp_path / "sub" / "ledger.db"


def sqlite_ledger(tmp_path):
    return Ledger(f"sqlite:///{path_of(tmp_path)}")


def test_every_commit_is_synced_and_the_journal_is_wal(tmp_path):
    ledger = sqlite_ledger(tmp_path)
    with ledger._transaction("read") as conn:
        assert conn.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert conn.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_nothing_is_opened_before_it_is_needed(tmp_path):
    sqlite_ledger(tmp_path)
    assert not path_of(tmp_path).parent.exists()


def test_two_rows_that_bind_one_identity_are_impossible(tmp_path):
    ledger = sqlite_ledger(tmp_path)
    row = in_queue(ledger)
    columns = "identity, near_identity, state, origin, account, model_id, payload, prefix, "
    columns += "duration_s, price_usd, created_at, changed_at, post_over_at"
    with sqlite3.connect(path_of(tmp_path)) as raw, pytest.raises(sqlite3.IntegrityError):
        raw.execute(f"INSERT INTO jobs ({columns}) SELECT {columns} FROM jobs WHERE id={row.id}")


def test_unknown_states_are_refused_in_and_out(tmp_path):
    ledger = sqlite_ledger(tmp_path)
    row = in_queue(ledger)
    with sqlite3.connect(path_of(tmp_path)) as raw:
        with pytest.raises(sqlite3.IntegrityError):
            raw.execute("UPDATE jobs SET state='paused'")
        raw.execute("PRAGMA ignore_check_constraints=1")
        raw.execute("UPDATE jobs SET state='paused'")
    with pytest.raises(LedgerError, match="number 1 in the ledger is damaged"):
        ledger.get(row.id)


def test_a_ledger_of_a_newer_version_is_refused(tmp_path):
    claim(sqlite_ledger(tmp_path))
    with sqlite3.connect(path_of(tmp_path)) as raw:
        raw.execute("UPDATE ledger_version SET number=99")
    with pytest.raises(LedgerError, match=r"newer version.*99.*Update the pack"):
        claim(sqlite_ledger(tmp_path))


@pytest.mark.parametrize("damage", [b"this is no database at all, but long enough to be one" * 40])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, damage):
    path_of(tmp_path).parent.mkdir()
    path_of(tmp_path).write_bytes(damage)
    with pytest.raises(LedgerError, match=r"ledger\.db.*none is sent"):
        claim(sqlite_ledger(tmp_path))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LedgerError, match="none is sent"):
        claim(sqlite_ledger(tmp_path))


def test_a_path_that_is_a_folder_is_an_error(tmp_path):
    path_of(tmp_path).mkdir(parents=True)
    with pytest.raises(LedgerError, match="none is sent"):
        claim(sqlite_ledger(tmp_path))


def test_a_ledger_that_is_removed_while_in_use_refuses_new_jobs(tmp_path):
    ledger = sqlite_ledger(tmp_path)
    claim(ledger)
    path_of(tmp_path).unlink()
    with pytest.raises(LedgerError, match="removed or replaced"):
        claim(ledger, replace(NEW, identity="c" * 64))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_the_ledger_is_for_its_owners_eyes(tmp_path):
    claim(sqlite_ledger(tmp_path))
    assert path_of(tmp_path).stat().st_mode & 0o077 == 0


def test_a_path_with_odd_characters_is_one_file(tmp_path):
    path = tmp_path / "what?" / "a#b%20 é.db"
    claim(Ledger(sqlite_url(path)))
    assert path.is_file()


def test_a_late_id_is_not_overwritten_by_aging(ledger):
    row, _ = claim(ledger, post_limit_s=-61.0)
    ledger.advance(row.id, JobState.IN_QUEUE, request_id="r")
    assert ledger.find(NEW.identity).state == JobState.IN_QUEUE


def test_what_was_gone_may_be_back(ledger):
    row = in_queue(ledger)
    ledger.advance(row.id, JobState.EXPIRED)
    assert ledger.advance(row.id, JobState.IN_QUEUE).state == JobState.IN_QUEUE


def test_an_unknown_job_with_an_id_is_unfinished(ledger):
    row, _ = claim(ledger)
    ledger.advance(row.id, JobState.UNKNOWN, request_id="r-7")
    assert [one.request_id for one in ledger.take_over(NEW.origin, NEW.account)] == ["r-7"]


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysql://me:secret@host/db",
        "sqlitee:///x",
        "postgresql+psycopg//u:secret@h/db",
        "postgresql+psycopg://u:secret@h:port/db",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_other_databases_are_refused_without_their_password(url):
    with pytest.raises(LedgerError) as caught:
        Ledger(url)
    assert "secret" not in str(caught.value)
