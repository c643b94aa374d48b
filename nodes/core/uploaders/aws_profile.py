"""Keys of an S3 bucket where the AWS tools keep them: the environment, then a profile's files.

obstore itself reads the environment alone; ``aws configure`` writes the files.
"""

import configparser
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError

KEYS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
# with these the AWS tools get keys from elsewhere, and obstore does too
_OTHER_SOURCES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
NO_KEY = (
    "No key for the bucket. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or save them with "
    "`aws configure`. Nothing was charged."
)


def s3_options(environ: Mapping[str, str]) -> dict[str, str]:
    """What obstore cannot find by itself: keys, region and endpoint, as far as they are set.

    Raises:
        ConfigError: Half a key, a profile that is not there, or no key at all.
    """
    name = environ.get("AWS_PROFILE") or "default"
    credentials = _section(environ, "AWS_SHARED_CREDENTIALS_FILE", "credentials", name)
    section = name if name == "default" else f"profile {name}"
    config = _section(environ, "AWS_CONFIG_FILE", "config", section)
    profile = {**config, **credentials}
    options = {}
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if region := region or profile.get("region"):
        options["region"] = region
    endpoint = next(
        filter(
            None,
            (
                environ.get("AWS_ENDPOINT_URL_S3"),
                environ.get("AWS_ENDPOINT_URL"),
                environ.get("AWS_ENDPOINT"),
                profile.get("endpoint_url"),
            ),
        ),
        None,
    )
    if endpoint:
        options["endpoint"] = endpoint.rstrip("/")
    return options | _keys(environ, profile, name)


def _keys(environ: Mapping[str, str], profile: Mapping[str, str], name: str) -> dict[str, str]:
    found = {own: environ[key.upper()] for key, own in KEYS.items() if environ.get(key.upper())}
    place = "the environment"
    if not ("access_key_id" in found or "secret_access_key" in found):
        found = {own: profile[key] for key, own in KEYS.items() if profile.get(key)}
        place = f"the AWS profile {name!r}"
    for own, variable in (
        ("access_key_id", "AWS_ACCESS_KEY_ID"),
        ("secret_access_key", "AWS_SECRET_ACCESS_KEY"),
    ):
        if found and own not in found:
            raise ConfigError(
                f"Half a key for the bucket is in {place}: {variable} is missing. "
                "Nothing was charged."
            )
    if found:
        return found
    if any(environ.get(source) for source in _OTHER_SOURCES):
        return {}
    if environ.get("AWS_PROFILE"):
        raise ConfigError(
            f"The AWS profile {name!r} (AWS_PROFILE) holds no key. A profile that signs in "
            "elsewhere (SSO, a role) cannot be used as it is: run `aws configure "
            "export-credentials --format env` and set what it prints. Nothing was charged."
        )
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise ConfigError(NO_KEY)
    return {}  # the machine may have a role of its own


def _section(
    environ: Mapping[str, str], variable: str, file_name: str, section: str
) -> dict[str, str]:
    path = Path(environ.get(variable) or Path.home() / ".aws" / file_name).expanduser()
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, ValueError):
        raise ConfigError(f"{path} cannot be read as an AWS file of profiles.") from None
    return dict(parser[section]) if parser.has_section(section) else {}
