"""The set-up's own rules: what it reuses, what it refuses. The real thing runs before any test."""

import io
import tarfile
from pathlib import Path

import pytest
from pack.dev import setup


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


def test_old_python_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 18))
    with pytest.raises(setup.SetupError, match="make PYTHON="):
        setup.check_python()


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
