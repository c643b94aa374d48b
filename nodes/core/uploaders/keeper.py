"""Runs a program for as long as its own standard input stays open: a script of its own.

Whoever starts it holds the other end. However that process ends, also by a crash, the end closes
and the program is ended with it: a tunnel must not outlive what it leads to.
"""

import os
import subprocess
import sys
import threading

END_S = 5.0


def main(command: list[str]) -> int:
    """Run ``command`` to its end; its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - by its own starter

    def end_with_the_starter() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would hold up the end of this process
            pass
        child.terminate()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            child.kill()

    threading.Thread(target=end_with_the_starter, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
