"""What a process asks of the system before it serves: descriptors, no core dumps, nobody's rights but its own."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import struct

from proxy.observe.log import get_logger

log = get_logger()

# For listeners, the log, metrics and whoever asks for them, password threads, name lookups.
_RESERVED_DESCRIPTORS = 128
# Source: prctl(2), linux/prctl.h.
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38
# Source: capset(2): version 3 of the header, which is followed by this process's number; two sets of three words.
_CAPABILITY_VERSION = 0x20080522


def raise_descriptors() -> int:
    """Raise the limit on descriptors as far as allowed; gives it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def prepare(connections: int, *, each: int = 2) -> int:
    """Raise the limit on descriptors, and see for how many clients that is enough.

    Args:
        connections: How many clients the settings allow.
        each: How many descriptors one may need.
    Returns:
        How many clients there is really room for.
    """
    hard = raise_descriptors()
    room = connections if hard == resource.RLIM_INFINITY else max(1, (hard - _RESERVED_DESCRIPTORS) // each)
    if room < connections:
        log.warning("process.few_descriptors", limit=hard, connections=connections, room=room)
    return room


def harden() -> None:
    """Nobody else may look into this process, nor find what it leaves: passwords and keys are in there.

    No core dumps, no ptrace(2) and no /proc/PID/mem but for root, and no program that it starts gains rights. Changing
    user or program makes a process dumpable anew, so this is called after each.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def become(user: str | None) -> None:
    """Give up root's rights for a user's; None, or somebody who is not root: stay who we are.

    Raises:
        KeyError: There is no such user.
    """
    if user is None or os.geteuid() != 0:
        return
    account = pwd.getpwnam(user)
    os.initgroups(user, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    if os.getresuid() != (account.pw_uid,) * 3 or os.getresgid() != (account.pw_gid,) * 3:
        raise PermissionError(f"this process has not become {user}")


def drop_capabilities() -> None:
    """Whoever is not root may still have some of root's rights (AmbientCapabilities of a unit): give them up."""
    if os.geteuid() == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)
    if libc.capset(header, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def set_name(name: str) -> None:
    """What ps and top show: at most 15 octets."""
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))


def _prctl(option: int, value: int | ctypes.Array[ctypes.c_char]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    argument = ctypes.c_ulong(value) if isinstance(value, int) else value
    if libc.prctl(option, argument, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
