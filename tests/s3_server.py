"""A real S3 server for tests: SeaweedFS on loopback, which checks signatures, rights and expiry."""

import contextlib
import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import requests

OWNER = ("OWNERKEY", "owner-secret")  # may do all
WRITER = ("WRITERKEY", "writer-secret")
READER = ("READERKEY", "reader-secret")
NO_READER = ("NOREADERKEY", "no-reader-secret")
BUCKET = "pictures"
PORTS = ("master", "volume", "filer", "s3")


def free_port():
    """A port with its neighbour 10000 above free as well, where SeaweedFS talks to itself."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
        if port < 50000:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 10000)):
                return port


class S3Server:
    """One process. ``environ(key)`` is the environment that reaches it with that key."""

    def __init__(self, folder: Path) -> None:
        identities = [
            _identity("owner", OWNER, "Admin", "Read", "Write", "List"),
            _identity("writer", WRITER, "Read", "Write", "List"),
            _identity("reader", READER, "Read", "List"),
            _identity("no_reader", NO_READER, "Write"),
        ]
        config = folder / "s3.json"
        config.write_text(json.dumps({"identities": identities}))
        program = Path(sys.executable).parent / "weed"
        ports = {name: free_port() for name in PORTS}
        sockets = [f"-{name}.localSocket={folder}/{name}.sock" for name in ("filer", "s3")]
        command = [shutil.which(program) or "weed", "server", f"-dir={folder}", "-ip=127.0.0.1"]
        command += ["-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3"]
        command += [f"-{name}.port={port}" for name, port in ports.items()]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false"]
        command += ["-s3.autoCreateBucket=false"]
        command += [f"-s3.config={config}", "-master.volumeSizeLimitMB=64", "-volume.max=8"]
        self.log = folder / "log.txt"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command + sockets, stdout=log, stderr=log)
        self.endpoint = f"http://127.0.0.1:{ports['s3']}"
        self._wait()

    def environ(self, key=WRITER, **more):
        """What the S3 tools read, and nothing of this machine's own."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": key[0],
            "AWS_SECRET_ACCESS_KEY": key[1],
            **NO_PROFILE,
            **more,
        }

    def make_bucket(self) -> None:
        """By a signed PUT, as obstore itself makes none."""
        obstore = importlib.import_module("obstore")
        keys = {"access_key_id": OWNER[0], "secret_access_key": OWNER[1]}
        store = importlib.import_module("obstore.store").S3Store(
            BUCKET, endpoint=self.endpoint, client_options={"allow_http": True}, **keys
        )
        made = requests.put(obstore.sign(store, "PUT", "", timedelta(minutes=1)), timeout=9)
        assert made.status_code == 200, made.text

    def close(self) -> None:
        """End it at once: nothing in it is wanted any more."""
        self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(self.endpoint, timeout=2).status_code == 403:
                    return
            time.sleep(0.1)
        self.close()
        raise RuntimeError(f"the S3 server did not start:\n{self.log.read_text()[-2000:]}")


# no profile of this machine, and no question to its cloud provider
NO_PROFILE = {
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def _identity(name, key, *actions):
    credentials = [{"accessKey": key[0], "secretKey": key[1]}]
    return {"name": name, "credentials": credentials, "actions": list(actions)}
