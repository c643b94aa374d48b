"""Who sends a job: a process, named so that others on this machine can tell whether it still lives.

A submit whose sender died without an answer is unknown at once, and not only when its time is up.
"""

import os
import platform

import psutil


def me() -> str:
    """This process: machine, process id, and when it started."""
    pid = os.getpid()
    return f"{platform.node()} {pid} {psutil.Process(pid).create_time():.2f}"


def is_dead(owner: str) -> bool:
    """True if that process surely lives no more; False for one of another machine."""
    machine, _, process = owner.partition(" ")
    if machine != platform.node():
        return False
    pid, _, started = process.partition(" ")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != started
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False
