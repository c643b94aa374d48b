"""The ledger's tables, how they come to be, and its clock.

The clock is the database's own, so that machines which share a ledger need not agree.
"""

import os
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from .errors import LedgerError
from .states import NOT_BINDING, JobState

VERSION = 1
BUSY_S = 30
OPEN_TRIES = 100
CLAIM_LOCK = 7239461  # any number of our own
_STATES = ", ".join(f"'{state.value}'" for state in JobState if state != JobState.PREPARING)
# as text and not as parameters: SQLite uses the index only for a query with the very same words
BINDING = sa.text(f"state NOT IN ({', '.join(repr(state.value) for state in NOT_BINDING)})")


class _Now(FunctionElement[float]):
    """Seconds since 1970 by the database's clock."""

    type = sa.Double()
    inherit_cache = True


@compiles(_Now, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(_Now, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


NOW = _Now()
metadata = sa.MetaData()

version = sa.Table("ledger_version", metadata, sa.Column("number", sa.Integer, nullable=False))

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("identity", sa.String(64), nullable=False),
    sa.Column("near_identity", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("account", sa.String(64), nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text),
    sa.Column("workflow", sa.Text),
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("duration_s", sa.Double, nullable=False),
    sa.Column("price_usd", sa.Double, nullable=False),
    sa.Column("cost_usd", sa.Double),
    sa.Column("path", sa.Text),
    sa.Column("file_sha256", sa.String(64)),
    sa.Column("error", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("changed_at", sa.Double, nullable=False),
    sa.Column("post_over_at", sa.Double, nullable=False),
    sa.Column("collected_at", sa.Double),
    sa.CheckConstraint(f"state IN ({_STATES})", name="known_state"),
    sa.Index(
        "one_binding_job",
        "identity",
        unique=True,
        sqlite_where=BINDING,
        postgresql_where=BINDING,
    ),
    sa.Index("jobs_by_near_identity", "near_identity"),
    sa.Index("jobs_by_state", "state"),
    sa.Index("jobs_by_request", "request_id"),
    sa.Index("jobs_by_time", "created_at"),
)

transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("reuse_key", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("good_until", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Index("uploads_by_content", "sha256"),
    sa.Index("uploads_by_url", "url"),
)


def tune_sqlite(engine: sa.Engine) -> None:
    """Make SQLite sync every commit, wait for its turn, and begin writing at once."""

    @sa.event.listens_for(engine, "do_connect")
    def connecting(*_: Any) -> None:
        path = engine.url.database
        if path and path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # prompts and signed addresses are for its owner's eyes
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, stat.S_IRUSR | stat.S_IWUSR))

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")
        for tries_left in reversed(range(OPEN_TRIES)):
            try:
                mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                break
            except sqlite3.OperationalError:  # two switch a new file at once: no busy wait here
                if not tries_left:
                    raise
                time.sleep(0.05)
        if mode not in ("wal", "memory"):  # network folders cannot do WAL, and say so only here
            cursor.execute("PRAGMA journal_mode=DELETE")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(conn: sa.Connection) -> None:
        # taking the write lock at once: a read that turns into a write could fail as busy
        conn.exec_driver_sql("BEGIN IMMEDIATE")


def migrate(conn: sa.Connection, name: str) -> None:
    """Bring an older or empty ledger up to date; raises LedgerError for a newer one."""
    if conn.dialect.name == "postgresql":  # two machines may open a new ledger at once
        conn.exec_driver_sql(f"SELECT pg_advisory_xact_lock({CLAIM_LOCK})")
    version.create(conn, checkfirst=True)
    found = conn.execute(sa.select(version.c.number)).scalar()
    if found is None:
        metadata.create_all(conn)
        conn.execute(sa.insert(version).values(number=VERSION))
    elif found > VERSION:
        raise LedgerError(
            f"The ledger {name} was made by a newer version of this pack (ledger version {found}, "
            f"this pack knows {VERSION}). Update the pack."
        )
