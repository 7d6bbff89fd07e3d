"""Asking the issuer what a token is worth (RFC 7662).

The endpoint is asked about whatever a stranger sends: so there is a bound to the questions under way, another to those
that wait, and what comes beyond gets "can't say now". A refusal of our own credentials is an outage, not a wrong token.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any
from urllib.parse import quote_plus

import trio

from proxy.auth.oauth.strict_json import NotAnObject, read_object
from proxy.auth.source import NotMine, Probe
from proxy.auth.web import Web, WebAnswer, WebFailed
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_models import Introspection
from proxy.settings.identity_values import without_query

MAX_ANSWER_BYTES = 64 * 1024
MAX_UNDER_WAY = 32  # fewer than the connections that Web opens, so that keys can be fetched beside
MAX_WAITING = 256
_MADE_UP = "imap-porter-check-made-up-token"


class Asked(StrEnum):
    """How a question ended."""

    ACTIVE = "active"
    INACTIVE = "inactive"
    FAILED = "failed"
    OVERLOADED = "overloaded"  # not asked: too many are


_log = get_logger()
_introspections = metrics.counter(
    "porter_oauth_introspections_total",
    "Tokens that the issuer was asked about.",
    source=None,
    outcome=tuple(Asked),
)


class Introspector:
    """One introspection endpoint."""

    def __init__(self, settings: Introspection, web: Web, timeout_seconds: float, source: str) -> None:
        self._url = settings.url
        self._web = web
        self._timeout_seconds = timeout_seconds
        self._source = source
        self._limiter = trio.CapacityLimiter(MAX_UNDER_WAY)
        self._out = False
        self._settings = settings
        self._counts = {outcome: _introspections.labels(source, outcome) for outcome in Asked}

    async def ask(self, token: str) -> Mapping[str, Any] | NotMine:
        """What the issuer says of a token: its claims, or that it knows no such token, or none that is good.

        Raises:
            Refused: UNAVAILABLE.
        """
        try:
            answer = await self._post(token)
            found = _active(answer)
        except _Overloaded:
            self._counts[Asked.OVERLOADED].inc()
            raise Refused(Outcome.UNAVAILABLE, "introspection: too many questions are under way") from None
        except (WebFailed, _Failed) as exc:
            self._counts[Asked.FAILED].inc()
            if not self._out:
                self._out = True
                _log.warning("oauth.introspection_failed", source=self._source, problem=str(exc))
            raise Refused(Outcome.UNAVAILABLE, f"introspection: {exc}") from None
        self._out = False
        self._counts[Asked.INACTIVE if isinstance(found, NotMine) else Asked.ACTIVE].inc()
        return found

    async def probe(self) -> Probe:
        """Ask about a token that nobody has issued."""
        began = trio.current_time()
        problem = ""
        try:
            if not isinstance(_active(await self._post(_MADE_UP)), NotMine):
                problem = "it says of a made-up token that it is active"
        except (WebFailed, _Failed, _Overloaded) as exc:
            problem = str(exc)
        return Probe(f"{without_query(self._url)}: introspection", problem, seconds=trio.current_time() - began)

    async def _post(self, token: str) -> WebAnswer:
        if self._limiter.available_tokens < 1 and self._limiter.statistics().tasks_waiting >= MAX_WAITING:
            raise _Overloaded
        with trio.move_on_after(self._timeout_seconds) as waiting:
            await self._limiter.acquire()
        if waiting.cancelled_caught:
            raise _Overloaded
        try:
            form = {"token": token, "token_type_hint": "access_token"}
            basic: tuple[str, str] | None = None
            # RFC 6749 Appendix A.2: visible ASCII. What is not will be refused by the endpoint, and told there.
            name, secret = self._settings.client_id, self._settings.client_secret.value.decode("utf-8", "replace")
            if self._settings.method == "basic":
                # RFC 6749 §2.3.1: form-urlencoded first, so that a colon in the name does no harm.
                basic = quote_plus(name), quote_plus(secret)
            else:
                form |= {"client_id": name, "client_secret": secret}
            return await self._web.post_form(self._url, form, max_bytes=MAX_ANSWER_BYTES, basic=basic)
        finally:
            self._limiter.release()


class _Failed(Exception):
    """There was an answer, and it tells nothing about the token. The text is for the log."""


class _Overloaded(Exception):
    """Too many questions are under way and waiting."""


def _active(answer: WebAnswer) -> Mapping[str, Any] | NotMine:
    """The claims of an active token. Source: RFC 7662 §2.2 and §2.3."""
    if answer.status in (401, 403):
        raise _Failed(f"HTTP {answer.status}: the endpoint refuses client_id and client_secret of the settings")
    try:
        found = read_object(answer.body)
    except NotAnObject as exc:
        raise _Failed(f"HTTP {answer.status}" if answer.status != 200 else str(exc)) from None
    # RFC 7009 §2.2.1, used here too: some endpoints judge opaque tokens alone.
    if answer.status == 400 and found.get("error") == "unsupported_token_type":
        return NotMine("introspection does not judge tokens of this kind")
    if answer.status != 200:
        raise _Failed(f"HTTP {answer.status}")
    active = found.get("active")
    if not isinstance(active, bool):
        raise _Failed("the answer does not say whether the token is active")
    return found if active else NotMine("not active")
