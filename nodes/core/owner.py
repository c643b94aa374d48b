"""Who has a job: a process, named so that others on this machine can tell whether it still lives.

A submit whose sender died without an answer is unknown at once, and not only when its time is up.
A job whose owner lives is not picked up by another.
"""

import os
import platform
import threading
from functools import cache
from pathlib import Path

import psutil


def me() -> str:
    """This process: machine, process id, when it started, and which program runs in it."""
    return f"{_name(os.getpid())} {_program()}"


def is_dead(owner: str) -> bool:
    """True if that process surely lives no more; False for one of another machine."""
    machine, pid, started, program = (*owner.split(" "), "", "", "", "")[:4]
    if machine != _machine() or not pid.isdigit():
        return False
    try:
        if _started(int(pid)) != started:
            return True
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True
    except (psutil.Error, OSError):
        return False
    return int(pid) == os.getpid() and program not in ("", _program())


def is_elsewhere(owner: str, is_shared: bool) -> bool:
    """True if that process may be alive and see to its jobs itself.

    A name of before a reboot, or of a container made anew, is nobody's; only where machines share
    a ledger may another machine's name be somebody's.
    """
    machine = owner.split(" ")[0]
    if machine == _machine():
        return owner != me() and not is_dead(owner)
    return is_shared and machine.split("/")[0] != _machine().split("/")[0]


@cache
def _name(pid: int) -> str:
    return f"{_machine()} {pid} {_started(pid)}"


def _program() -> str:
    """A ComfyUI that starts itself anew replaces its program and keeps its id and start.

    The main thread is elsewhere in memory then. The pack loaded anew has the same one.
    """
    return str(threading.main_thread().ident)


@cache
def _machine() -> str:
    """With Linux also this boot and this container: process ids mean nothing elsewhere."""
    name = platform.node().replace(" ", "_")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{name}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return name


def _started(pid: int) -> str:
    """When a process started: by Linux's own count, which no change of the clock moves."""
    if Path("/proc/self/stat").exists():
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{psutil.Process(pid).create_time():.0f}"
