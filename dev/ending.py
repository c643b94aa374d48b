"""How a run ends: in order when it is told to, and never outliving the one that started it.

A closed terminal, `kill` and a killed `make` end a run as Ctrl-C does: every `with` block is left,
and so what it started is ended too. What does not end in order ends by force.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

GRACE_S = 10.0


def end_in_order() -> None:
    """Call first in a program that `make` starts: KeyboardInterrupt is then how it ends.

    Raised for Ctrl-C and SIGTERM, when the terminal is closed, and when `make` is gone. What the
    caller has ignored stays ignored, so `nohup make demo` goes on; so does a program started from
    a shell that ends.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    # A terminal without a shell in it tells `make` alone of its end, and that waits for us.
    in_terminal = os.isatty(0) and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    make = os.getppid() if "MAKELEVEL" in os.environ else None
    _end_when(
        lambda: (in_terminal and not os.isatty(0)) or (make is not None and os.getppid() != make)
    )


def end_with(parent: int) -> None:
    """From now on, end by SIGTERM, then by force, when process `parent` is no more our parent."""
    _end_when(lambda: os.getppid() != parent)


def _end_when(over: Callable[[], bool]) -> None:
    def watch() -> None:
        while not over():
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
