"""The set-up's own rules: what it reuses, what it refuses. The real thing runs before any test."""

import io
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from pack.dev import setup

ROOT = Path(__file__).resolve().parents[1]
OLD_PYTHON = """
import runpy, sys
sys.version_info, sys.version = (3, 6, 15), "3.6.15 (default)"
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_engine_is_comfyui_dir_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert setup.engine_dir() == tmp_path.resolve()
    monkeypatch.delenv("COMFYUI_DIR")
    assert setup.engine_dir() == setup.ENGINE / "ComfyUI"


def test_a_comfyui_dir_without_comfyui_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(setup.SetupError, match="no ComfyUI"):
        setup.make_engine()


def test_old_python_is_refused_with_a_way_out() -> None:
    script = ROOT / "dev" / "start_setup.py"
    command = [sys.executable, "-c", OLD_PYTHON, str(script)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "this is 3.6.15" in refused.stderr
    assert "make PYTHON=" in refused.stderr
    # what Python 2.7 and 3.4 cannot read: such an import, f-strings, annotations, letters
    source = script.read_text(encoding="ascii")
    assert not re.search(r"__future__|\bf\"|->|: \w+ =", source)


def test_ctrl_c_stops_the_set_up_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def pressed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "ENGINE", tmp_path / ".engine")
    monkeypatch.setattr(setup, "make_venv", pressed)
    assert setup.main() == 130
    assert capsys.readouterr().err == "\nStopped.\n"


def test_what_may_not_be_installed_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without apt-get; then with it, for a user who is not root and has no sudo."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    with pytest.raises(
        setup.SetupError, match=r"^No browser\. Install chromium, then try again\.$"
    ):
        setup.install("chromium", "No browser.")
    for name, code in (("apt-get", 0), ("sudo", 1)):
        with pytest.raises(setup.SetupError) as refused:
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\nexit {code}\n")
            program.chmod(0o755)
            setup.install("chromium", "No browser.")
        assert str(refused.value) == "No browser. Run: sudo apt-get install chromium"


def test_clean_keeps_clips_and_the_record_of_paid_jobs(tmp_path: Path) -> None:
    clip, record = tmp_path / ".demo/output/paid.mp4", tmp_path / ".demo/user/ledger.db"
    made = tmp_path / ".venv/bin/python"
    for file in (clip, record, made):
        file.parent.mkdir(parents=True)
        file.touch()
    make = ["make", "-f", str(ROOT / "Makefile"), "clean"]
    said = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert clip.exists() and record.exists() and not made.parent.parent.exists()
    assert "Kept: your clips in .demo/output" in said


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_no_command_that_pip_wrote_is_used() -> None:
    """They do not start where the folder has a $ in its name."""
    dry = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True)
    assert re.findall(r"\.venv/bin/(\S+)", dry.stdout) == ["python"] * 5


def test_an_interrupted_environment_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The stamp comes last: until then a second run starts from the beginning."""
    commands: list[str] = []

    def run(*command: str, **_: object) -> None:
        commands.append(" ".join(command))
        setup.VENV.mkdir(exist_ok=True)
        if "-r" in command and len(commands) == 2:
            raise setup.SetupError("the network went away")

    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "run", run)
    monkeypatch.setattr(setup, "drop_unloadable_torchaudio", lambda: None)
    with pytest.raises(setup.SetupError, match="went away"):
        setup.make_venv()
    setup.make_venv()
    assert [("venv --clear" in command) for command in commands] == [
        True,
        False,
        True,
        False,
        False,
    ]
    commands.clear()
    setup.make_venv()
    assert commands == []


def test_only_the_engine_is_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as source:
        for name in ("x-1/setup.py", "x-1/vendor/ComfyUI/main.py", "x-1/vendor/ComfyUI/a/b.py"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            source.addfile(entry, io.BytesIO(b"ok"))
    setup.unpack_engine(archive, tmp_path / "engine")
    files = [path for path in (tmp_path / "engine").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["b.py", "main.py"]
