"""Where settings come from, in order, and how bad ones are refused."""

import json
import os
import stat

import pytest
from pack.nodes.core import settings
from pack.nodes.core.errors import ConfigError


def write(folder, **values):
    (folder / "settings.json").write_text(json.dumps(values))


def test_defaults_without_environment_and_file(tmp_path):
    now = settings.load(tmp_path / "not-there", {})
    assert (now.token, now.api_base_url) == (None, "https://model-api.runcomfy.net")
    assert (now.rehearsal, now.poll_s, now.timeout_s) == (False, 3.0, 3600.0)


def test_the_tokens_variables_are_tried_in_order_then_the_file(tmp_path):
    names = ["RUNCOMFY_API_TOKEN", "RUNCOMFY_TOKEN", "RUNCOMFY_API_KEY", "YOUR_API_TOKEN"]
    write(tmp_path, api_token="from-file")
    environ = {name: f"from-{name}" for name in names}
    for name in names:
        assert settings.load(tmp_path, environ).token == f"from-{name}"
        environ[name] = " "  # empty counts as not set
    assert settings.load(tmp_path, environ).token == "from-file"


def test_environment_comes_before_the_file(tmp_path):
    write(tmp_path, poll_seconds=5, timeout_seconds=60, rehearsal=True)
    now = settings.load(tmp_path, {"RUNCOMFY_POLL_SECONDS": "7", "RUNCOMFY_REHEARSAL": "0"})
    assert (now.poll_s, now.timeout_s, now.rehearsal) == (7.0, 60.0, False)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_others_can_read_is_closed_to_them(tmp_path, mode):
    write(tmp_path, api_token="t")
    path = tmp_path / "settings.json"
    path.chmod(mode)
    settings.load(tmp_path, {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_token_shows_in_no_repr_and_no_error(tmp_path):
    assert "canary" not in repr(settings.load(tmp_path, {"RUNCOMFY_API_TOKEN": "canary"}))
    with pytest.raises(ConfigError) as caught:
        settings.load(tmp_path, {"RUNCOMFY_API_TOKEN": "Bearer canary"})
    assert "canary" not in str(caught.value)
    (tmp_path / "settings.json").write_text('{"api_token": "canary"')
    with pytest.raises(ConfigError) as caught:
        settings.load(tmp_path, {})
    assert "canary" not in str(caught.value)


def test_a_missing_token_names_the_places_to_set_it(tmp_path):
    with pytest.raises(ConfigError) as caught:
        settings.load(tmp_path, {}).require_token()
    for place in ("RUNCOMFY_API_TOKEN", "settings.json", "RUNCOMFY_REHEARSAL=1"):
        assert place in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RUNCOMFY_POLL_SECONDS", "0", "from 1 to 60"),
        ("RUNCOMFY_POLL_SECONDS", "fast", "'fast'"),
        ("RUNCOMFY_POLL_SECONDS", "nan", "from 1 to 60"),
        ("RUNCOMFY_TIMEOUT_SECONDS", "1e9", "from 10 to 86400"),
        ("RUNCOMFY_REHEARSAL", "maybe", "set it to 1 or 0"),
        ("RUNCOMFY_API_BASE_URL", "http://model-api.runcomfy.net", "unencrypted"),
        ("RUNCOMFY_API_BASE_URL", "https://model-api.runcomfy.net/v1", "has a path"),
        ("RUNCOMFY_API_BASE_URL", "https://me:pw@model-api.runcomfy.net", "user name"),
        ("RUNCOMFY_API_BASE_URL", "model-api.runcomfy.net", "not a web origin"),
        ("RUNCOMFY_API_BASE_URL", "https://x:99999", "not a URL"),
        ("RUNCOMFY_API_TOKEN", "tok\nen", "a space, a quote or another character"),
        ("RUNCOMFY_API_TOKEN", '"quoted"', "without 'Bearer' and quotes"),
    ],
)
def test_bad_values_are_refused_with_their_limits(tmp_path, name, value, said):
    with pytest.raises(ConfigError, match=said):
        settings.load(tmp_path, {name: value})


def test_a_file_from_windows_notepad_is_read(tmp_path):
    (tmp_path / "settings.json").write_bytes(b'\xef\xbb\xbf{"poll_seconds": 5}')
    assert settings.load(tmp_path, {}).poll_s == 5


def test_unknown_keys_and_other_json_are_refused(tmp_path):
    write(tmp_path, api_tokn="x")
    with pytest.raises(ConfigError, match="unknown key 'api_tokn'"):
        settings.load(tmp_path, {})
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(ConfigError, match="one JSON object"):
        settings.load(tmp_path, {})


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://model-api-int.runcomfy.net/", "https://model-api-int.runcomfy.net"),
        ("http://127.0.0.1:8901", "http://127.0.0.1:8901"),
        ("http://localhost:1", "http://localhost:1"),
        ("http://[::1]:5", "http://[::1]:5"),
    ],
)
def test_origins_that_are_taken(given, origin):
    assert settings.parse_origin(given) == origin
