"""The one door to httpx: requests of identity sources to the web, bounded in time and size.

No redirects: a secret goes where the settings say, and nowhere else. Nothing of the environment is used, neither
proxies nor .netrc. No cookies: what one person's answer sets would go along with the next one's question. No
compression: a small answer could grow to any size before it is counted.

Requests wait for one another here and never inside httpcore: of those that expire together while they wait there, some
leave a connection behind that nobody opens or closes, and each of them takes a place for ever.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import httpx
import trio

_MAX_CONNECTIONS = 50
_KEPT_CONNECTIONS = 10
_KEPT_SECONDS = 4.0  # Node and Apache close theirs after 5 s: a request then must not be on its way

# They tell each request with its URL, and below that header fields, in which passwords stand.
for _library in ("httpx", "httpcore"):
    logging.getLogger(_library).setLevel(logging.WARNING)


class WebFailed(Exception):
    """There was no answer that could be used. The text is for the log; it holds nothing that was sent."""


@dataclass(frozen=True, slots=True)
class WebAnswer:
    """What came back. Header fields are the octets that came, in their order; their names are in lower case."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


class Web:
    """Requests to one service. It belongs to one trio loop, and may be made before that runs."""

    def __init__(self, ca: Path | None, timeout_seconds: float) -> None:
        """Make ready; nothing is connected to.

        Args:
            ca: PEM file of the authorities to trust; None: the system's.
            timeout_seconds: For each whole request, from the name's lookup to the last octet of the answer.
        """
        self._timeout_seconds = timeout_seconds
        self._limiter = trio.CapacityLimiter(_MAX_CONNECTIONS)
        self._client = httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=None if ca is None else str(ca)),
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=_KEPT_CONNECTIONS,
                keepalive_expiry=_KEPT_SECONDS,
            ),
            timeout=timeout_seconds,
            headers={"user-agent": "imap-porter", "accept-encoding": "identity"},
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=())),
            follow_redirects=False,
            trust_env=False,
        )

    async def get(self, url: str, *, max_bytes: int, headers: Mapping[str, str | bytes] | None = None) -> WebAnswer:
        """GET.

        Raises:
            WebFailed: No connection, no TLS, too late, too large, or no HTTP.
        """
        return await self._ask("GET", url, max_bytes, headers=headers)

    async def post_form(
        self, url: str, form: Mapping[str, str], *, max_bytes: int, basic: tuple[str, str] | None = None
    ) -> WebAnswer:
        """POST a form, perhaps with HTTP Basic credentials, already encoded as RFC 6749 §2.3.1 asks.

        Raises:
            WebFailed: As for get().
        """
        auth = None if basic is None else httpx.BasicAuth(*basic)
        headers = {"accept": "application/json"}
        return await self._ask("POST", url, max_bytes, headers=headers, data=dict(form), auth=auth)

    async def _ask(self, method: str, url: str, max_bytes: int, **parts: Any) -> WebAnswer:
        answer: WebAnswer | None = None
        with trio.move_on_after(self._timeout_seconds):
            try:
                async with self._limiter:
                    answer = await self._exchange(method, url, max_bytes, **parts)
            # Their texts repeat what was to be sent: part of a URL, a header field with a password.
            except (httpx.InvalidURL, httpx.LocalProtocolError, UnicodeError) as exc:
                raise WebFailed(f"{type(exc).__name__}: it cannot be put into a request of HTTP") from None
            except httpx.RemoteProtocolError:  # and that of an answer repeats the line that is at fault
                raise WebFailed("RemoteProtocolError: the answer is no HTTP, or was cut short") from None
            except httpx.HTTPError as exc:
                raise WebFailed(_told(exc)) from None
        if answer is None:
            raise WebFailed(f"no answer within {self._timeout_seconds:g} s")
        return answer

    async def _exchange(self, method: str, url: str, max_bytes: int, **parts: Any) -> WebAnswer:
        async with self._client.stream(method, url, **parts) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise WebFailed("the answer is compressed, which was not asked for")
            body = bytearray()
            with trio.CancelScope() as reading:
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > max_bytes:
                        # An exception here would leave the library's nested generators half-way; this ends each.
                        reading.cancel()
            if len(body) > max_bytes:
                raise WebFailed(f"the answer is larger than {max_bytes} octets")
            headers = tuple((name.lower(), value) for name, value in response.headers.raw)
            return WebAnswer(response.status_code, headers, bytes(body))

    async def close(self) -> None:
        """Give connections back."""
        await self._client.aclose()


def _told(error: httpx.HTTPError) -> str:
    """What went wrong.

    With TLS the error itself is mute, and one that it was raised from says why. Of a connection it says only that all
    attempts have failed; why stands in a group further down, an error for each address of the name.
    """
    said, reasons = "", ""
    cause: BaseException | None = error
    while cause is not None and not reasons:
        said = said or str(cause)
        if isinstance(cause, ExceptionGroup):
            numbers = [each.errno for each in cause.exceptions if isinstance(each, OSError) and each.errno]
            reasons = ", ".join(dict.fromkeys(map(os.strerror, numbers)))
        cause = cause.__cause__ or cause.__context__
    return ": ".join(filter(None, (type(error).__name__, said, reasons)))
