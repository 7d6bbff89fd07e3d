"""The commands that look at the running proxy; the files beside this one do what they say."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from proxy.cli import completion
from proxy.cli.options import Call, UserName, asks

looks = typer.Typer()

AtBackend = Annotated[
    str | None,
    typer.Option("--backend", metavar="NAME", help="At this backend.", autocompletion=completion.backends),
]
OfUser = Annotated[str | None, typer.Option("--user", metavar="USER", help="Of this user.")]
AtAddress = Annotated[str | None, typer.Option("--address", metavar="ADDRESS", help="Of clients at this address.")]


class EventKind(StrEnum):
    """What an event is about."""

    SESSION = "session"
    BACKEND = "backend"
    LIMIT = "limit"
    AUDIT = "audit"
    TRACE = "trace"


@looks.command()
@asks
def who(
    call: Call,
    user: OfUser = None,
    backend: AtBackend = None,
    address: AtAddress = None,
    listener: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Of this listener.")] = None,
    worker: Annotated[str | None, typer.Option(metavar="PROCESS", help="In this worker.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many.")] = 100,
    users: Annotated[bool, typer.Option("--users", help="Users in place of sessions, by number of sessions.")] = False,
) -> int:
    """Who is there: sessions, or with --users users, by number of sessions."""
    from proxy.cli import sessions

    filters = {"user": user, "backend": backend, "address": address, "listener": listener, "worker": worker}
    if not users:
        return sessions.who(call, limit, filters)
    if any(value is not None for value in filters.values()):
        raise typer.BadParameter("--users knows no filters")
    return sessions.users(call, limit)


@looks.command()
@asks
def session(call: Call, session: Annotated[str, typer.Argument(metavar="ID", help="As `who` has it.")]) -> int:
    """One session, and what its worker knows of it."""
    from proxy.cli.sessions import session as run

    return run(call, session)


@looks.command()
@asks
def top(
    call: Call,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many of each kind.")] = 20,
    once: Annotated[
        bool, typer.Option("--once", help="Measure for a second and print it once, as --json does too.")
    ] = False,
) -> int:
    """The busiest users, backends and commands just now. Every two seconds anew, until q or Ctrl-C."""
    from proxy.cli.top import top as run

    return run(call, limit, once)


@looks.command()
@asks
def explain(call: Call, name: UserName) -> int:
    """All that is known of a user: route, orders, limits, sessions, failures."""
    from proxy.cli.users import explain as run

    return run(call, name)


@looks.command()
@asks
def route(call: Call, name: UserName) -> int:
    """Where a user goes at his next login, and why. Where no proxy runs, by the settings alone."""
    from proxy.cli.route import route_by as run

    return run(call, name)


@looks.command()
@asks
def backends(call: Call) -> int:
    """Every backend, with its health. State, weight and who is there, too.

    Exit status, of all commands that ask the running proxy: 0; 1, the settings or options have mistakes, or name no way
    to ask; 2, it cannot be done; 3, the proxy does not answer.
    """
    from proxy.cli.backends import backends as run

    return run(call)


@looks.command()
@asks
def status(call: Call) -> int:
    """The proxy and its processes. Its generations, too: the workers of each reload."""
    from proxy.cli.processes import status as run

    return run(call)


@looks.command()
@asks
def limits(call: Call) -> int:
    """The limits, and how often each was reached."""
    from proxy.cli.in_effect import limits as run

    return run(call)


@looks.command()
@asks
def settings(
    call: Call,
    everything: Annotated[bool, typer.Option("--all", help="Those too that are the default.")] = False,
) -> int:
    """The settings in effect, without secrets. Those that are not the default, with it; --json has all."""
    from proxy.cli.in_effect import settings as run

    return run(call, everything)


@looks.command()
@asks
def events(
    call: Call,
    kind: Annotated[
        list[EventKind] | None,
        typer.Option(
            "--kind", help="Of this kind alone; more than once: of these. By default all but trace.", show_default=False
        ),
    ] = None,
) -> int:
    """What happens, while it does, until Ctrl-C. With --json one object a line."""
    from proxy.cli.live import events as run

    kinds = kind or [each for each in EventKind if each is not EventKind.TRACE]
    return run(call, [str(each) for each in kinds])


@looks.command()
@asks
def figures(call: Call) -> int:
    """What is counted, for live charts. As JSON."""
    from proxy.cli.in_effect import figures as run

    return run(call)


@looks.command()
@asks
def openapi(call: Call) -> int:
    """This API, as an OpenAPI document. It is the API that these commands ask."""
    from proxy.cli.in_effect import openapi as run

    return run(call)
