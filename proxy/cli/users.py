"""`imap-porter kick`, `move`, `hold`, `release`, `explain`: what becomes of users, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from proxy.cli.options import Call
from proxy.cli.route import show_route
from proxy.cli.running import count, put
from proxy.cli.sessions import session_table
from proxy.cli.terminal import clock, console, plain, table
from proxy.settings.units import duration_text


def kick(call: Call, reason: str, whom: Mapping[str, str | None]) -> int:
    """End sessions.

    Args:
        call: Whom to ask.
        reason: Why.
        whom: As `admin.questions.Kick` has it.
    Returns:
        As running.conversation().
    """

    def show(answer: dict[str, Any]) -> None:
        told = f"{count(answer['sessions'], 'session')} told to end"
        if proxies := answer["proxies"]:
            told += f"; {proxies} other {'proxy is' if proxies == 1 else 'proxies are'} asked, too"
        _say(told, answer)

    return put(call, "kick", show, reason=reason, **whom)


def move(call: Call, user: str, backend: str, for_seconds: float | None, reason: str) -> int:
    """Have a user live at a backend.

    Returns:
        As running.conversation().
    """

    def show(answer: dict[str, Any]) -> None:
        moves = f"{count(answer['sessions'], 'session')} will move there"
        _say(f"{answer['user']} lives at {answer['backend']} {_until(for_seconds)}; {moves}", answer)

    return put(call, "move", show, user=user, backend=backend, for_seconds=for_seconds, reason=reason)


def hold(call: Call, user: str, for_seconds: float | None, reason: str) -> int:
    """Keep a user out.

    Returns:
        As running.conversation().
    """

    def show(answer: dict[str, Any]) -> None:
        _say(
            f"{answer['user']} is held {_until(for_seconds)}; {count(answer['sessions'], 'session')} told to end",
            answer,
        )

    return put(call, "hold", show, user=user, for_seconds=for_seconds, reason=reason)


def release(call: Call, user: str, reason: str) -> int:
    """Undo both.

    Returns:
        As running.conversation(); 2: the user is neither moved nor held.
    """

    def show(answer: dict[str, Any]) -> None:
        was = [*(["held"] if answer["held"] else []), *([f"moved to {answer['backend']}"] if answer["backend"] else [])]
        _say(f"{answer['user']} is released; was {' and '.join(was) or 'neither moved nor held'}", answer)

    return put(call, "release", show, user=user, reason=reason)


def untrace(call: Call, trace: str, reason: str) -> int:
    """End a trace.

    Returns:
        As running.conversation(); 2: there is none of that id.
    """
    return put(call, "untrace", lambda answer: _say("it has ended", answer), trace=trace, reason=reason)


def explain(call: Call, name: str) -> int:
    """Tell all that is known of a user.

    Returns:
        As running.conversation().
    """
    return put(call, "explain", _show_explanation, name=name)


def _until(for_seconds: float | None) -> str:
    return "until released" if for_seconds is None else f"for {duration_text(for_seconds)}"


def _say(text: str, answer: Mapping[str, Any]) -> None:
    out = console()
    out.print(plain(text), soft_wrap=True)
    if answer["warning"]:
        out.print(plain(answer["warning"], "yellow"), soft_wrap=True)


# --- explain, for people ---


def _show_explanation(answer: dict[str, Any]) -> None:
    out = console()
    if answer["route"] is None:
        out.print(plain(f"no route: {answer['problem']}", "red"), soft_wrap=True)
    else:
        show_route(out, answer["route"])
    _show_orders(out, answer["directions"])
    if answer["attributes"]:
        _title(out, f"attributes, by {answer['source']}" if answer["source"] else "attributes")
        rows = table()
        for key, value in answer["attributes"].items():
            rows.add_row(plain(str(key)), plain(str(value)))
        out.print(rows)
    if answer["limits"]:
        _title(out, "limits")
        out.print(_limits(answer["limits"]))
    if answer["sessions"]:
        _title(out, count(len(answer["sessions"]), "session"))
        out.print(session_table(answer["sessions"]))
    if answer["failures"]:
        _title(out, "last refused logins")
        out.print(_failures(answer["failures"]))


def _show_orders(out: Console, directions: Mapping[str, Any] | None) -> None:
    """What an administrator has ordered; the first thing to know where he has."""
    if directions is None:
        return
    orders = [*(["held"] if directions["held"] else [])]
    if directions["backend"]:
        orders.append(f"moved to {directions['backend']}")
    until = "until released" if directions["until"] is None else f"until {clock(directions['until'])}"
    by = f"by {directions['by']} at {clock(directions['since'])}: {directions['reason']}"
    out.print(plain(f"{' and '.join(orders)} {until}, {by}", "yellow"), soft_wrap=True)


def _title(out: Console, text: str) -> None:
    out.print()
    out.print(plain(text, "bold"), soft_wrap=True)


def _limits(limits: list[dict[str, Any]]) -> Any:
    rows = table("limit", "left", "of", "", numbers=("left", "of"))
    for each in limits:
        per = each["per_seconds"]
        low = each["left"] < 1
        rows.add_row(
            plain(each["limit"]),
            Text(f"{each['left']:,.0f}", "red" if low else ""),
            Text(f"{each['most']:,.0f}"),
            Text("" if per is None else f"per {duration_text(per)}"),
        )
    return rows


def _failures(failures: list[dict[str, Any]]) -> Any:
    rows = table("time", "client", "mechanism", "outcome", "detail")
    for each in failures:
        texts = (each["client"], each["mechanism"], each["outcome"], each["detail"])
        rows.add_row(Text(clock(each["time"])), *map(plain, texts))
    return rows
