"""The commands that change something in the running proxy; the files beside this one do what they say."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from proxy.cli import completion
from proxy.cli.looks import AtAddress, AtBackend, OfUser
from proxy.cli.options import Backend, Call, For, Reason, UserName, asks, seconds_of

changes = typer.Typer()


class LogLevel(StrEnum):
    """The least important lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@changes.command()
@asks
def drain(
    call: Call,
    reason: Reason,
    name: Annotated[
        str | None,
        typer.Argument(metavar="BACKEND", help="Its name.", autocompletion=completion.backends, show_default=False),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The backend, to be emptied as the proxy is by SIGTERM, within --over.",
            autocompletion=completion.backends,
        ),
    ] = None,
    over: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Move the users who are there, one after the other, within so long, e.g. 5m. With --backend: by "
            "default timeouts.drain.",
        ),
    ] = None,
) -> int:
    """No new users for a backend, and those that are there may be moved.

    Those with a session there stay together, unless --over or --backend moves them.
    """
    from proxy.cli.backends import change

    named = [each for each in (name, backend) if each is not None]
    if len(named) != 1:
        raise typer.BadParameter("expected either BACKEND or --backend NAME")
    over_seconds = seconds_of(over, "--over")
    return change(call, "drain", named[0], reason, over_seconds=over_seconds, over_drain=backend is not None)


@changes.command()
@asks
def undrain(call: Call, name: Backend, reason: Reason) -> int:
    """A backend serves as before. After a drain, or after it was set down."""
    from proxy.cli.backends import change

    return change(call, "undrain", name, reason)


@changes.command()
@asks
def down(call: Call, name: Backend, reason: Reason) -> int:
    """A backend is not to be used. With backends.failover its users go to their next choice, else they are refused."""
    from proxy.cli.backends import change

    return change(call, "down", name, reason)


@changes.command()
@asks
def weight(
    call: Call,
    name: Backend,
    weight: Annotated[
        int, typer.Argument(metavar="WEIGHT", min=0, max=1000, help="Relative to the others; 0: no one by hash.")
    ],
    reason: Reason,
) -> int:
    """A backend's share of users. It counts for those who are placed anew."""
    from proxy.cli.backends import change

    return change(call, "weight", name, reason, weight=weight)


@changes.command()
@asks
def kick(
    call: Call,
    reason: Reason,
    session: Annotated[str | None, typer.Option(metavar="ID", help="This one, as `who` has it.")] = None,
    user: OfUser = None,
    address: AtAddress = None,
    backend: AtBackend = None,
) -> int:
    """End sessions; the user may log in again. Exactly one option says whose."""
    from proxy.cli.users import kick as run

    return run(call, reason, {"session": session, "user": user, "address": address, "backend": backend})


@changes.command()
@asks
def move(call: Call, user: UserName, backend: Backend, reason: Reason, for_: For = None) -> int:
    """A user lives at this backend from now on. His sessions elsewhere move, whatever the hash says."""
    from proxy.cli.users import move as run

    return run(call, user, backend, seconds_of(for_, "--for"), reason)


@changes.command()
@asks
def hold(call: Call, user: UserName, reason: Reason, for_: For = None) -> int:
    """A user's logins are refused for now, and his sessions end."""
    from proxy.cli.users import hold as run

    return run(call, user, seconds_of(for_, "--for"), reason)


@changes.command()
@asks
def release(call: Call, user: UserName, reason: Reason) -> int:
    """Undo move and hold."""
    from proxy.cli.users import release as run

    return run(call, user, reason)


@changes.command()
@asks
def trace(
    call: Call,
    user: UserName,
    reason: Reason,
    for_: Annotated[str, typer.Option("--for", metavar="DURATION", help="For so long, at most 1h.")] = "1m",
) -> int:
    """Show a user's protocol lines, without secrets and bodies, as events. They are printed as they come.

    Ctrl-C ends it. With --json one object a line.
    """
    from proxy.cli.live import trace as run

    seconds = seconds_of(for_, "--for")
    assert seconds is not None
    return run(call, user, seconds, reason)


@changes.command()
@asks
def untrace(
    call: Call,
    trace: Annotated[str, typer.Argument(metavar="ID", help="As the log's admin.changed has it.")],
    reason: Reason,
) -> int:
    """End a trace. For one whose `trace` has ended without that."""
    from proxy.cli.users import untrace as run

    return run(call, trace, reason)


@changes.command()
@asks
def reload(call: Call, reason: Reason) -> int:
    """Read the settings anew. All or nothing, and no session is lost.

    It prints what changed, or every mistake. Where admin.socket is another in the new settings, send the first process
    SIGHUP in place of this.
    """
    from proxy.cli.processes import reload as run

    return run(call, reason)


@changes.command("log-level")
@asks
def log_level(
    call: Call,
    level: Annotated[
        LogLevel,
        typer.Argument(metavar="LEVEL", help="debug, info, warning or error: the least important that is written."),
    ],
    reason: Reason,
) -> int:
    """How much all processes log, until the next reload."""
    from proxy.cli.processes import log_level as run

    return run(call, level, reason)
