"""`imap-porter who`, `session`: sessions and users of the running proxy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from proxy.cli.options import Call
from proxy.cli.running import Proxy, conversation, count, put, rough_duration
from proxy.cli.terminal import clock, console, plain, size, table

_PAGE = 1000  # the most that one answer holds
_STATES = {"open": "green", "logging_in": "yellow"}
_ROWS = ("id", "user", "client", "listener", "worker", "backend", "state", "why")
_TOLD = ("mechanism", "source", "secure", "activity", "commands")


def who(call: Call, limit: int, filters: Mapping[str, str | None]) -> int:
    """Show sessions.

    Args:
        call: Whom to ask.
        limit: At most so many, over as many answers as it takes.
        filters: As `admin.questions.Sessions` has them.
    Returns:
        As running.conversation().
    """

    def request(proxy: Proxy) -> dict[str, Any]:
        return _sessions(proxy, limit, filters)

    def show(answer: dict[str, Any]) -> None:
        out = console()
        if answer["sessions"]:
            out.print(session_table(answer["sessions"]))
        out.print(_summary(len(answer["sessions"]), answer["total"], "session"), soft_wrap=True)

    return conversation(call, request, show)


def users(call: Call, limit: int) -> int:
    """Show those who have the most sessions.

    Returns:
        As running.conversation().
    """

    def show(answer: dict[str, Any]) -> None:
        rows = table("user", "sessions", "backends", numbers=("sessions",))
        for each in answer["users"]:
            rows.add_row(plain(each["user"]), Text(f"{each['sessions']}"), plain(", ".join(each["backends"])))
        out = console()
        if answer["users"]:
            out.print(rows)
        out.print(_summary(len(answer["users"]), answer["total"], "user"), soft_wrap=True)

    return put(call, "users", show, limit=min(limit, _PAGE))


def session(call: Call, session: str) -> int:
    """Show one session, with what its worker knows of it.

    Returns:
        As running.conversation().
    """

    def show(answer: dict[str, Any]) -> None:
        rows = table()
        for key in (*_ROWS, *_TOLD):
            if answer.get(key) not in (None, ""):
                rows.add_row(Text(key, "bold"), plain(_word(answer[key])))
        for key in ("octets_up", "octets_down"):
            if answer.get(key) is not None:
                rows.add_row(Text(key, "bold"), Text(size(answer[key])))
        since = f"{clock(answer['since'])}, for {rough_duration(answer['seconds'])}"
        rows.add_row(Text("since", "bold"), Text(since))
        console().print(rows)

    return put(call, "session", show, session=session)


def session_table(sessions: Iterable[Mapping[str, Any]]) -> Table:
    """Sessions, one a line."""
    rows = table("session", "user", "client", "listener", "worker", "backend", "state", "for", "why", numbers=("for",))
    for each in sessions:
        rows.add_row(
            *(plain(each[key]) for key in ("id", "user", "client", "listener", "worker", "backend")),
            plain(each["state"], _STATES.get(each["state"], "")),
            Text(rough_duration(each["seconds"])),
            plain(each["why"]),
        )
    return rows


def _sessions(proxy: Proxy, limit: int, filters: Mapping[str, str | None]) -> dict[str, Any]:
    """Page by page; `next` is where more are to be had."""
    found: list[Any] = []
    after, total = None, 0
    while True:
        values: dict[str, Any] = {**filters, "limit": min(_PAGE, limit - len(found)), "after": after}
        page = proxy.ask("sessions", **values)
        found += page["sessions"]
        after, total = page["next"], page["total"]
        if after is None or not page["sessions"] or len(found) >= limit:
            return {"sessions": found, "total": total, "next": after}


def _summary(shown: int, total: int, noun: str) -> str:
    if shown < total:
        return f"{shown:,} of {count(total, noun)}; --limit shows more"
    return count(total, noun)


def _word(value: object) -> str:
    """As people say it."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
