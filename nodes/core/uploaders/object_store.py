"""A bucket of one's own: S3 and what speaks it (R2, B2, MinIO), Google Cloud Storage, Azure.

Objects are named by their content, so the same bytes are one object. RunComfy gets an address that
is signed for a time; the bucket itself stays private.
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError, UploadError
from ..upload_settings import OBJECT_STORE, is_loopback
from . import reach
from .aws_profile import NO_KEY, s3_options
from .base import SUFFIXES, Hosted

INSTALL = "python -m pip install obstore"
_OWN_OBJECTS = secrets.token_hex(8)  # of this process, where objects go when their job ends
_CODE = re.compile(r"<Code>(\w+)</Code>")
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"}
_WRONG_KEY = {
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "InvalidToken",
    "ExpiredToken",
    "AuthenticationFailed",
    "Unauthorized",
}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"}
_KEY_PLACES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


class ObjectStore:
    """One bucket, or a prefix in it.

    Args:
        url: ``s3://bucket/prefix``, or with ``gs``, ``az``.
        hours: How long a signed address works.
        cleanup: Delete objects when their job has ended.
        local_api: RunComfy is a stand-in on this machine, which a store here can serve.
        environ: Where keys and endpoint are.
        clock: Seconds since 1970.
    """

    name = OBJECT_STORE
    max_bytes = max_video_bytes = 5 << 30
    max_total_bytes = None

    def __init__(
        self,
        url: str,
        *,
        hours: int,
        cleanup: bool = False,
        local_api: bool = False,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._scheme, self._bucket = urlsplit(url)[:2]
        self._hours = hours
        self._local_api = local_api
        self._environ = environ
        self._clock = clock
        self._store: Any = None
        self._endpoint = ""
        self.cleans_up = cleanup

    @property
    def reuse_key(self) -> str:
        """Bucket, place and time; with clean-up also this process, which alone cleans up."""
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_PROFILE")
        parts = [self.name, self._url, *(self._environ.get(name, "") for name in names)]
        return " ".join([*parts, str(self._hours), _OWN_OBJECTS if self.cleans_up else ""])

    def notice(self, expires_at: float | None = None) -> str:
        """Nothing to tell."""
        return ""

    def upload(self, data: bytes, content_type: str) -> Hosted:
        """Put the object, in parts where it is large, and sign an address to GET it."""
        store, key = self._open(), self._key(data, content_type)
        obstore = _obstore()
        lives = timedelta(hours=self._hours)
        try:
            obstore.put(store, key, data, attributes={"Content-Type": content_type})
            expires_at = self._clock() + lives.total_seconds()
            url = obstore.sign(store, "GET", key, lives)
        except _failures() as error:
            raise self._refused(str(error)) from None
        self._check_scheme(url)
        return Hosted(url, expires_at, self._checked(url, data))

    def release(self, url: str) -> None:
        """Delete the object, with clean-up."""
        key = urlsplit(url).path.rpartition("/")[2]
        store, obstore = self._open(), _obstore()
        try:
            obstore.delete(store, f"{_OWN_OBJECTS}/{key}")
        except _failures() as error:
            raise UploadError(
                f"The picture could not be deleted from {self._url}: {_first_line(str(error))}"
            ) from None

    def _key(self, data: bytes, content_type: str) -> str:
        name = hashlib.sha256(data).hexdigest() + SUFFIXES.get(content_type, "")
        return f"{_OWN_OBJECTS}/{name}" if self.cleans_up else name

    def _open(self) -> Any:
        if self._store is None:
            options = s3_options(self._environ) if self._scheme == "s3" else {}
            self._endpoint = options.get("endpoint", "")
            self._check_scheme(self._endpoint)
            obstore = _obstore()
            try:
                self._store = obstore.store.from_url(
                    self._url,
                    client_options={
                        "allow_http": self._local_api,
                        "connect_timeout": "15s",
                        "timeout": "300s",
                    },
                    retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=60)},
                    **options,
                )
            except _failures() as error:
                raise ConfigError(
                    f"The bucket {self._url} cannot be used: {_first_line(str(error))} Keys are "
                    f"taken from {_KEY_PLACES[self._scheme]}. Nothing was charged."
                ) from None
        return self._store

    def _check_scheme(self, url: str) -> None:
        parts = urlsplit(url)
        if not url or parts.scheme == "https":
            return
        if not (self._local_api and is_loopback(parts.hostname)):
            raise ConfigError(
                f"The bucket's endpoint is {parts.scheme}://{parts.netloc}, which RunComfy cannot "
                "fetch from: it needs https and a public name. Set AWS_ENDPOINT_URL to such a one. "
                "Nothing was charged."
            )

    def _checked(self, url: str, data: bytes) -> tuple[str, ...]:
        """The bucket's own no is final; what only this machine sees is a warning."""
        sight = reach.look(url, data)
        if sight.is_there:
            return ()
        code = _CODE.search(sight.content.decode("utf-8", "replace"))
        if code:
            raise UploadError(
                f"The bucket {self._bucket} took the picture, but does not give it to the signed "
                f"address that RunComfy would use ({code[1]}). Give the key the right to read "
                "(GetObject), and compare this machine's clock. Nothing was charged."
            )
        return (
            f"The bucket {self._bucket} has the picture, but its signed address, tried from here: "
            f"{sight.saw}.",
        )

    def _refused(self, said: str) -> ConfigError | UploadError:
        found = _CODE.search(said)
        code = found[1] if found else ""
        place = self._endpoint or "its provider"
        keys = _KEY_PLACES[self._scheme]
        if code in _NO_BUCKET:
            return ConfigError(
                f"There is no bucket {self._bucket!r} at {place} ({code}). Create it, or correct "
                f"RUNCOMFY_OBJECT_STORE_URL, which is {self._url}. Nothing was charged."
            )
        if code in _WRONG_KEY or "401 Unauthorized" in said:
            return ConfigError(
                f"The bucket {self._bucket!r} at {place} refused the key ({code or 'HTTP 401'}). "
                f"Compare {keys} with what your provider shows. Nothing was charged."
            )
        if code in _WRONG_REGION:
            return ConfigError(
                f"The bucket {self._bucket!r} is in another region ({code}). Set AWS_REGION to its "
                "own. Nothing was charged."
            )
        if code == "AccessDenied" or "403 Forbidden" in said:
            return ConfigError(
                f"The key may not write to the bucket {self._bucket!r} at {place} "
                f"({code or 'HTTP 403'}). Is it your bucket? Give the key the rights PutObject "
                "and GetObject there. Nothing was charged."
            )
        if "Credential" in said or "AccessKeyId" in said or "169.254." in said:
            return ConfigError(NO_KEY)
        return UploadError(
            f"The bucket {self._bucket!r} at {place} did not take the picture: "
            f"{_first_line(said)} Tried several times. Nothing was charged."
        )


def _obstore() -> Any:
    """The optional package; raises ConfigError that says how to install it."""
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise ConfigError(
            "RUNCOMFY_OBJECT_STORE_URL is set, but the package obstore, which talks to buckets, "
            f"cannot be loaded ({error}). Install it with ComfyUI's own Python: {INSTALL}. "
            "Nothing was charged."
        ) from None
    return obstore


def _failures() -> tuple[type[BaseException], ...]:
    from obstore.exceptions import BaseError

    return (BaseError, OSError, ValueError)


def _first_line(said: str) -> str:
    """The store's own words without its inner workings and without signed queries."""
    line = " ".join(said.partition("\n\nDebug source")[0].split())
    if "Error performing" in line:
        line = line.rpartition(" - ")[2]
    line = re.sub(r"\?\S*", "", line)
    return (line if len(line) <= 300 else line[:299] + "…").rstrip(". ") + "."
