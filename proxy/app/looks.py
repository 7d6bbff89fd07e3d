"""What administrators who look on are shown by the steward: sessions, users, limits, settings, figures."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import trio

from proxy.admin import questions
from proxy.admin.commands import NotThere
from proxy.admin.placement import route_document
from proxy.app.figures import Figures, reached_by_action
from proxy.app.links import Links
from proxy.auth.authenticator import Authenticator
from proxy.auth.names import NameRules
from proxy.ledger.guests import Guest
from proxy.ledger.resident import Stage
from proxy.limits.reached import ACTIONS
from proxy.model import Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.models import Settings
from proxy.settings.reference import Difference, differences

_HIDDEN = "(hidden)"
_MOST_OF_ONE = 1000  # sessions of one user that are listed
_MOST_FAILURES = 50

Status = Callable[[], Mapping[str, Any]]


class Looks:
    """A verb's name, and what it is answered."""

    def __init__(self, settings: Settings, links: Links, authenticator: Authenticator, status: Status) -> None:
        """Args:
        status: The proxy's processes, as the master tells them.
        """
        self._settings, self._links, self._authenticator, self._status = settings, links, authenticator, status
        self._registry = links.registry
        self._rules = NameRules(settings.names)
        self._figures = Figures()
        self._answers: Mapping[str, Callable[[Any], Awaitable[Mapping[str, Any]]]] = {
            "status": self._show_status,
            "generations": self._show_generations,
            "sessions": self._show_sessions,
            "session": self._show_session,
            "users": self._show_users,
            "top": self._show_top,
            "route": self._show_route,
            "explain": self._explain,
            "limits": self._show_limits,
            "settings": self._show_settings,
            "figures": self._show_figures,
        }

    async def look(self, verb: str, question: Any) -> Mapping[str, Any]:
        """Raises NotThere, Refused: as `admin.commands.House`."""
        return await self._answers[verb](question)

    # --- processes ---

    async def _show_status(self, _question: questions.Nothing) -> Mapping[str, Any]:
        return self._status()

    async def _show_generations(self, _question: questions.Nothing) -> Mapping[str, Any]:
        status = self._status()
        workers: dict[int, list[Mapping[str, Any]]] = {}
        for process in status["processes"]:
            if process.get("role") == "worker":
                workers.setdefault(process["generation"], []).append(process)
        generations = [
            {
                "generation": number,
                "since": min((each["since"] for each in those if "since" in each), default=None),
                "state": "current" if number == status["generation"] else "old",
                "workers": len(those),
                "sessions": sum(each.get("sessions", 0) for each in those),
            }
            for number, those in sorted(workers.items(), reverse=True)
        ]
        return {"generations": generations}

    # --- sessions and users ---

    async def _show_sessions(self, question: questions.Sessions) -> Mapping[str, Any]:
        found, total = self._registry.guests.search(
            user=None if question.user is None else (await self.find_name(question.user))[0],
            backend=question.backend,
            address=question.address,
            listener=question.listener,
            worker=question.worker,
            after=question.after,
            most=question.limit + 1,  # one more tells that there are more
        )
        shown = found[: question.limit]
        more = len(found) > len(shown)
        return {"sessions": _sessions(shown), "total": total, "next": shown[-1].id if more else None}

    async def _show_session(self, question: questions.OneSession) -> Mapping[str, Any]:
        guest = self._registry.guests.get(question.session)
        if guest is None:
            raise NotThere("there is no such session any more")
        told = await self._links.onlookers.inquiries.ask("session", guest.id, workers=[guest.worker])
        details = told.get(guest.worker)
        return {**(details if isinstance(details, dict) else {}), **_sessions([guest])[0]}

    async def _show_users(self, question: questions.Users) -> Mapping[str, Any]:
        guests = self._registry.guests
        rows = [
            {
                "user": name,
                "sessions": sessions,
                "backends": sorted({guest.backend for guest in guests.named(name, _MOST_OF_ONE)}),
            }
            for name, sessions in guests.crowds(question.limit)
        ]
        return {"users": rows, "total": guests.users}

    async def _show_top(self, question: questions.Top) -> Mapping[str, Any]:
        top: Mapping[str, Any] = await self._links.onlookers.top(question.limit)
        return top

    async def _show_route(self, question: questions.OneUser) -> Mapping[str, Any]:
        return await self._route_of(await self._find(question.name))

    async def _explain(self, question: questions.OneUser) -> Mapping[str, Any]:
        """Whatever can be told: that somebody is not known, or has no backend, is what is asked for."""
        name = self._rules.canonical(question.name)
        route, problem, identity = None, "", None
        try:
            identity = await self._find(question.name)
            name = identity.name
            route = await self._route_of(identity)
        except Refused as refusal:
            problem = refusal.detail or str(refusal)
        told: dict[str, Mapping[str, Any]] = {}
        async with trio.open_nursery() as nursery:
            for what in ("limits", "failures"):
                nursery.start_soon(self._ask, told, what, name)
        return {
            "route": route,
            "problem": problem,
            "attributes": {} if identity is None else dict(identity.attributes),
            "source": "" if identity is None else identity.source,
            "directions": self._registry.directions.document(name),
            "limits": _least([*await self._registry.limits_left(name), *_rows(told["limits"])]),
            "sessions": _sessions(self._registry.guests.named(name, _MOST_OF_ONE)),
            "failures": sorted(_rows(told["failures"]), key=_when, reverse=True)[:_MOST_FAILURES],
        }

    async def _ask(self, told: dict[str, Mapping[str, Any]], what: str, name: str) -> None:
        told[what] = await self._links.onlookers.inquiries.ask(what, name)

    async def _find(self, name: str) -> Identity:
        """Raises: Refused: The name is none, nobody knows it, or a source that would is out."""
        self._rules.canonical(name)  # raises what is wrong with it, if it is no name
        identity = await self._authenticator.find(name)
        if identity is None:
            raise Refused(Outcome.AUTHENTICATION_FAILED, "no source knows the name")
        return identity

    async def find_name(self, spelled: str) -> tuple[str, bool]:
        """As `admin.commands.House` has it.

        Raises:
            Refused: It is no name.
        """
        canonical = self._rules.canonical(spelled)
        if self._registry.guests.named(canonical, 1):
            return canonical, True
        try:
            return (await self._find(spelled)).name, True
        except Refused:
            return canonical, False

    async def _route_of(self, identity: Identity) -> dict[str, Any]:
        registry = self._registry
        explanation = registry.cluster.explain(identity)
        whereabouts = await registry.whereabouts(identity.name)
        return route_document(identity, explanation, whereabouts, trio.current_time())

    # --- what is set, and what is counted ---

    async def _show_limits(self, _question: questions.Nothing) -> Mapping[str, Any]:
        values = self._settings.limits.model_dump(mode="json")
        rows = [{"limit": limit, "value": values.get(limit), "reached": reached_by_action(limit)} for limit in ACTIONS]
        return {"limits": rows}

    async def _show_settings(self, _question: questions.Nothing) -> Mapping[str, Any]:
        document = self._settings.model_dump(mode="json")
        _hide(document)
        return {"settings": document, "differs": [_shown(each) for each in differences(self._settings)]}

    async def _show_figures(self, _question: questions.Nothing) -> Mapping[str, Any]:
        registry = self._registry
        document = self._figures.document(registry.guests, list(registry.cluster.snapshot(time.monotonic())))
        status = self._status()
        # Metrics call the workers of all generations by their place alone.
        places = {
            f"worker-{process['process'].split('.')[1]}": process["process"]
            for process in status["processes"]
            if process.get("role") == "worker" and process["generation"] == status["generation"]
        }
        for worker in document["workers"]:
            worker["process"] = places.get(worker["process"], worker["process"])
        return document


def _shown(each: Difference) -> dict[str, Any]:
    name = each.key.rpartition(".")[2]
    told = {name: each.value}
    _hide(told)
    return {"key": each.key, "value": told[name], "default": each.default}


def _hide(told: Any) -> None:
    """Hashes of tokens, and headers for a web service, of which any may be a secret."""
    if isinstance(told, list):
        for each in told:
            _hide(each)
    if isinstance(told, dict):
        for key, value in told.items():
            if key == "hash" and isinstance(value, str) and value.startswith("$"):
                told[key] = _HIDDEN
            elif key in ("url", "jwks_url") and isinstance(value, str) and "?" in value:
                told[key] = f"{value.partition('?')[0]}?{_HIDDEN}"
            elif key == "headers" and isinstance(value, dict):
                told[key] = {name: _HIDDEN if isinstance(text, str) else text for name, text in value.items()}
            else:
                _hide(value)


def _sessions(guests: Iterable[Guest]) -> list[dict[str, Any]]:
    now = time.monotonic()
    began = time.time() - now
    return [
        {
            "id": guest.id,
            "user": guest.name,
            "client": guest.client,
            "listener": guest.listener,
            "worker": guest.worker,
            "backend": guest.backend,
            "state": "open" if guest.stage is Stage.OPENED else "logging_in",
            "why": guest.why,
            "since": round(began + guest.since, 3),
            "seconds": round(now - guest.since, 3),
        }
        for guest in guests
    ]


def _rows(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What all workers have listed."""
    return [row for rows in told.values() if isinstance(rows, list) for row in rows if isinstance(row, dict)]


def _least(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each limit once: every worker counts what it has heard of, and the one that has heard most is nearest."""
    least: dict[Any, dict[str, Any]] = {}
    for row in rows:
        known = least.get(row["limit"])
        if known is None or row["left"] < known["left"]:
            least[row["limit"]] = row
    return list(least.values())


def _when(failure: Mapping[str, Any]) -> float:
    return float(failure.get("time", 0))
