"""The ledger: every paid job, written and synced before its POST, so none is paid twice or lost.

A row is found by its identity: everything that makes the request what it is. The ledger's one lock
is a unique index on the identity over all rows that are not failed or cancelled: inserting a
``submitting`` row *is* the claim to send the job, and whoever loses the race attaches to the row
that won. A ``submitting`` row whose sender died, or whose POST must be over, is ``unknown``: nobody
can tell whether the job arrived.

SQLite by default, PostgreSQL where several machines share one; times are seconds since 1970 by the
database's own clock. Every change is one transaction, synced before the call returns.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from . import budget, owner
from .errors import LedgerError, TransitionRefused
from .ledger_schema import BINDING, CLAIM_LOCK, NOW, jobs, migrate, transitions, tune_sqlite
from .rows import NewJob, Row, columns_of, row_of
from .states import AT_RUNCOMFY, JobState, may_become

POST_MARGIN_S = 60.0
PAID_LOOK = 20  # with sound and without, among them


def sqlite_url(path: Path) -> sa.URL:
    """The URL of a ledger in a file, whatever characters its path has."""
    return sa.URL.create("sqlite", database=str(path))


class Ledger:
    """One database of jobs. Safe to use from several threads and processes.

    Nothing is opened before the first call, which also brings an older ledger up to date. Every
    call raises LedgerError when the database cannot be used or a newer version of the pack made it.
    """

    def __init__(self, url: str | sa.URL) -> None:
        """Take an SQLAlchemy URL of SQLite or PostgreSQL; raises LedgerError for any other."""
        try:
            parsed = sa.make_url(url)
            is_sqlite = parsed.get_backend_name() == "sqlite"
            self._engine = sa.create_engine(parsed, pool_pre_ping=not is_sqlite)
        except (sa.exc.SQLAlchemyError, ImportError, ValueError):  # may quote the password
            raise LedgerError(
                "RUNCOMFY_LEDGER_URL cannot be used. Set it to sqlite:///path or, with the psycopg "
                "package installed, to postgresql+psycopg://user@host/database."
            ) from None
        if is_sqlite and parsed.database in (None, "", ":memory:"):
            raise LedgerError("A ledger in memory forgets what was paid. Name a file.")
        self._name = parsed.set(query={}).render_as_string(hide_password=True)
        if self._engine.dialect.name not in ("sqlite", "postgresql"):
            raise LedgerError(f"The ledger {self._name} is neither SQLite nor PostgreSQL.")
        if self._engine.dialect.name == "sqlite":
            tune_sqlite(self._engine)
        self._is_open = False
        self._file: tuple[int, int] | None = None
        self._opening = threading.Lock()

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()

    # -- writing --

    def claim(
        self, new: NewJob, *, post_limit_s: float, budget_usd: float | None = None
    ) -> tuple[Row, bool]:
        """Write a ``submitting`` row, or find the one that already binds this identity.

        Args:
            new: The job that is about to be sent.
            post_limit_s: The longest that its POST can take, in seconds.
            budget_usd: What may be spent today (UTC), this job included; None for no limit.

        Returns:
            The row, and whether it is ours: only then may the job be sent.

        Raises:
            BudgetExceeded: The job would pass the budget. Nothing was written.
            LedgerError: Nothing was written, so nothing may be sent.
        """
        self._check_file()
        with self._transaction("written") as conn:
            taken = _find_for_insert(conn, new.identity)
            if taken is not None:
                return taken, False
            if budget_usd is not None:
                budget.check(conn, new.origin, new.price_usd, budget_usd)
            post_over_at = NOW + post_limit_s + POST_MARGIN_S
            values = {"post_over_at": post_over_at}
            return _insert(conn, new, JobState.SUBMITTING, **values), True

    def adopt(self, new: NewJob, request_id: str) -> Row:
        """Write a job that was sent elsewhere, or find what is here of the same identity."""
        with self._transaction("written") as conn:
            found = _find_for_insert(conn, new.identity)
            values = {"request_id": request_id, "post_over_at": NOW}
            return found or _insert(conn, new, JobState.IN_QUEUE, **values)

    def advance(self, row_id: int, state: JobState, **values: Any) -> Row:
        """Move a job to ``state`` and set ``values`` (request_id, path, error, cost_usd, ...).

        A job that is in ``state`` already stays there: another process may have been quicker.

        Raises:
            TransitionRefused: The job cannot come to ``state`` from where it is.
            LedgerError: Nothing was written.
        """
        unknown = set(values) - set(jobs.columns.keys())
        if unknown:
            raise LedgerError(f"A job has no {', '.join(sorted(unknown))}.")
        with self._transaction("written") as conn:
            row = _get(conn, row_id, lock=True)
            if not may_become(row.state, state):
                raise TransitionRefused(
                    f"A job that is {row.state.value} cannot become {state.value}.",
                    request_id=row.request_id,
                )
            conn.execute(
                sa.update(jobs)
                .where(jobs.c.id == row_id)
                .values(state=state.value, changed_at=NOW, **values)
            )
            if state != row.state:
                _note(conn, row_id, state)
            return _get(conn, row_id)

    def name_clip(
        self, row_id: int, path: str, file_sha256: str, *, instead_of: str | None
    ) -> tuple[Row, bool]:
        """Give a clip its name, unless another process did so since the name was ``instead_of``.

        Returns:
            The row, and whether the name in it is ours.
        """
        query = sa.update(jobs).where(
            jobs.c.id == row_id, jobs.c.path.is_not_distinct_from(instead_of)
        )
        with self._transaction("written") as conn:
            named = conn.execute(query.values(path=path, file_sha256=file_sha256, changed_at=NOW))
            return _get(conn, row_id), bool(named.rowcount)

    def reopen(self, row_id: int) -> None:
        """A completed job whose file is gone is downloaded again."""
        query = sa.update(jobs).where(jobs.c.id == row_id, jobs.c.state == JobState.COMPLETED.value)
        with self._transaction("written") as conn:
            if conn.execute(query.values(state=JobState.DOWNLOADING.value)).rowcount:
                _note(conn, row_id, JobState.DOWNLOADING)

    def set(self, row_id: int, **values: Any) -> None:
        """Set ``values`` of a job that keeps its state."""
        with self._transaction("written") as conn:
            conn.execute(sa.update(jobs).where(jobs.c.id == row_id).values(**values))

    def renew(self, row_id: int, *, post_limit_s: float) -> None:
        """Say that a claimed job is sent later or again: its POST is over after this time."""
        self.set(row_id, post_over_at=NOW + post_limit_s + POST_MARGIN_S)

    def collected(self, row_id: int) -> None:
        """Note that the clip was handed to a graph."""
        self.set(row_id, collected_at=NOW)

    def take_over(self, origin: str, account: str) -> list[Row]:
        """This account's unfinished jobs of this process and of dead ones, ours from now on.

        Unfinished is what RunComfy may have and what has no clip yet. What another owner has that
        may be alive is left to it.
        """
        me, states = owner.me(), (*AT_RUNCOMFY, JobState.UNKNOWN)
        query = (
            sa.select(jobs)
            .where(
                jobs.c.origin == origin,
                jobs.c.account == account,
                jobs.c.request_id.is_not(None),
                jobs.c.state.in_([state.value for state in states]),
            )
            .order_by(jobs.c.id)
            .with_for_update()
        )
        is_shared = self._engine.dialect.name != "sqlite"
        with self._transaction("written") as conn:
            _age(conn)
            rows = [row_of(found) for found in conn.execute(query)]
            ours = [row for row in rows if not owner.is_elsewhere(row.owner, is_shared)]
            for row in ours:
                conn.execute(sa.update(jobs).where(jobs.c.id == row.id).values(owner=me))
            return [replace(row, owner=me) for row in ours]

    # -- reading --

    def check_budget(self, origin: str, this_usd: float, limit_usd: float) -> None:
        """Raise BudgetExceeded if a run of ``this_usd`` would pass the limit of the day."""
        with self._transaction("read") as conn:
            _age(conn)
            budget.check(conn, origin, this_usd, limit_usd)

    def find(self, identity: str) -> Row | None:
        """The row that binds this identity, if any: neither failed nor cancelled."""
        with self._transaction("read") as conn:
            _age(conn)
            return _find(conn, identity)

    def get(self, row_id: int) -> Row:
        """One row by its number."""
        with self._transaction("read") as conn:
            _age(conn)
            return _get(conn, row_id)

    def find_request(self, origin: str, request_id: str) -> Row | None:
        """The newest row of a request id."""
        query = (
            sa.select(jobs)
            .where(jobs.c.request_id == request_id, jobs.c.origin == origin)
            .order_by(jobs.c.id.desc())
            .limit(1)
        )
        with self._transaction("read") as conn:
            found = conn.execute(query).first()
            return row_of(found) if found else None

    def paid_usd(
        self, origin: str, model_id: str, duration_s: float, generate_audio: bool
    ) -> float | None:
        """What the newest clip of this model, length and sound really cost, if there was one."""
        query = (
            sa.select(jobs)
            .where(
                jobs.c.origin == origin,  # what a rehearsal says is no cost
                jobs.c.model_id == model_id,
                jobs.c.duration_s == duration_s,
                jobs.c.state == JobState.COMPLETED.value,
                jobs.c.cost_usd > 0,
            )
            .order_by(jobs.c.id.desc())
            .limit(PAID_LOOK)
        )
        with self._transaction("read") as conn:
            rows = [row_of(found) for found in conn.execute(query)]
        alike = (row for row in rows if row.payload.get("generate_audio") == generate_audio)
        return next((row.cost_usd for row in alike), None)

    def find_near(self, near_identity: str, identity: str) -> Row | None:
        """The newest other job that differs in pixels only and was never handed to a graph."""
        query = (
            sa.select(jobs)
            .where(
                jobs.c.near_identity == near_identity,
                jobs.c.identity != identity,
                jobs.c.collected_at.is_(None),
                BINDING,
            )
            .order_by(jobs.c.id.desc())
            .limit(1)
        )
        with self._transaction("read") as conn:
            found = conn.execute(query).first()
            return row_of(found) if found else None

    def newest(self, limit: int) -> list[Row]:
        """The newest jobs, newest first."""
        with self._transaction("read") as conn:
            _age(conn)
            query = sa.select(jobs).order_by(jobs.c.id.desc()).limit(limit)
            return [row_of(found) for found in conn.execute(query)]

    def times(self, row_id: int) -> list[tuple[JobState, float]]:
        """Every state a job came to, and when."""
        query = (
            sa.select(transitions.c.state, transitions.c.at)
            .where(transitions.c.job_id == row_id)
            .order_by(transitions.c.id)
        )
        with self._transaction("read") as conn:
            return [(JobState(state), float(at)) for state, at in conn.execute(query)]

    def transaction(self, what: str) -> AbstractContextManager[sa.Connection]:
        """One transaction on a table of another module's; ``what`` is "read" or "written"."""
        return self._transaction(what)

    def _file_id(self) -> tuple[int, int] | None:
        path = self._engine.url.database
        if self._engine.dialect.name != "sqlite" or path is None:
            return None
        try:
            found = Path(path).stat()
        except OSError:
            return (0, 0)
        return (found.st_dev, found.st_ino)

    def _check_file(self) -> None:
        """A deleted file goes on for whoever has it open, and is forgotten with the process."""
        if self._is_open and self._file_id() != self._file:
            raise LedgerError(
                f"The ledger of jobs ({self._name}) was removed or replaced while ComfyUI runs, so "
                "nothing is sent. Put it back, or start ComfyUI again to begin a new one: it will "
                "not know what was paid before."
            )

    @contextmanager
    def _transaction(self, what: str) -> Iterator[sa.Connection]:
        try:
            with self._opening:
                if not self._is_open:
                    with self._engine.begin() as conn:
                        migrate(conn, self._name)
                    self._is_open, self._file = True, self._file_id()
            with self._engine.begin() as conn:
                yield conn
        except (sa.exc.SQLAlchemyError, OSError, ValueError) as error:
            cause = getattr(error, "orig", None) or error
            raise LedgerError(
                f"The ledger of jobs ({self._name}) could not be {what}: {cause}. Without it a "
                "job could be paid twice or lost, so none is sent. Make room or give write access "
                "there, or set RUNCOMFY_LEDGER_URL to another place."
            ) from None


def _age(conn: sa.Connection) -> None:
    """Submits that must be over, or whose sender died, are unknown from now on."""
    query = sa.select(jobs.c.id, jobs.c.owner, (jobs.c.post_over_at < NOW).label("is_over"))
    for row_id, sender, is_over in conn.execute(
        query.where(jobs.c.state == JobState.SUBMITTING.value)
    ).all():
        if not (is_over or owner.is_dead(sender)):
            continue
        aged = conn.execute(
            sa.update(jobs)
            .where(jobs.c.id == row_id, jobs.c.state == JobState.SUBMITTING.value)
            .values(state=JobState.UNKNOWN.value, changed_at=NOW)
        )
        if aged.rowcount:  # its sender may have written the answer meanwhile
            _note(conn, row_id, JobState.UNKNOWN)


def _find_for_insert(conn: sa.Connection, identity: str) -> Row | None:
    """What binds this identity; until the transaction ends, nobody else inserts it."""
    if conn.dialect.name == "postgresql":  # SQLite's transactions exclude each other anyway
        conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CLAIM_LOCK})")
    _age(conn)
    return _find(conn, identity)


def _insert(conn: sa.Connection, new: NewJob, state: JobState, **values: Any) -> Row:
    inserted = conn.execute(
        sa.insert(jobs).values(
            state=state.value,
            owner=owner.me(),
            created_at=NOW,
            changed_at=NOW,
            **columns_of(new),
            **values,
        )
    )
    row_id = inserted.inserted_primary_key[0]  # type: ignore[index]  # one row: there is one
    _note(conn, row_id, state)
    return _get(conn, row_id)


def _find(conn: sa.Connection, identity: str) -> Row | None:
    found = conn.execute(sa.select(jobs).where(jobs.c.identity == identity, BINDING)).first()
    return row_of(found) if found else None


def _get(conn: sa.Connection, row_id: int, *, lock: bool = False) -> Row:
    query = sa.select(jobs).where(jobs.c.id == row_id)
    found = conn.execute(query.with_for_update() if lock else query).first()
    if found is None:
        raise LedgerError(f"The ledger has no job number {row_id}.")
    return row_of(found)


def _note(conn: sa.Connection, row_id: int, state: JobState) -> None:
    conn.execute(sa.insert(transitions).values(job_id=row_id, state=state.value, at=NOW))
