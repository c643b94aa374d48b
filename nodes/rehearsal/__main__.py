"""The stand-in as a program: `python -m rehearsal --token abc --folder clips`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from .server import RehearsalServer


def main() -> int:
    """Serve until SIGTERM or SIGINT; says on one line where, once it listens."""
    parser = argparse.ArgumentParser(prog="rehearsal", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port (default)")
    parser.add_argument("--token", required=True, help="the bearer token clients must send")
    parser.add_argument("--folder", type=Path, required=True, help="where clips are written")
    parser.add_argument("--queue-seconds", type=float, default=1.0, help="time in the queue")
    parser.add_argument("--run-seconds", type=float, default=4.0, help="shortest run time")
    options = parser.parse_args()

    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    with RehearsalServer(
        options.folder,
        port=options.port,
        token=options.token,
        queue_s=options.queue_seconds,
        run_s=options.run_seconds,
    ) as server:
        sys.stdout.write(f"rehearsal API at {server.origin}\n")
        sys.stdout.flush()
        # A wait without a limit cannot be interrupted on Windows.
        while not done.wait(0.5):
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
