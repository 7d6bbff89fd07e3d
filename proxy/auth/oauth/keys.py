"""An issuer's keys: where they are, and when they are fetched again.

The idea: a token is judged by the keys at hand. Only where they don't know its key is the issuer asked, and the answer
is waited for.

- One fetch at a time, whoever waits for it, and one in FETCH_SECONDS at most: anybody can make up the name of a key.
- "No such key" is said only of keys that were asked for after the token was shown. A key that is used the moment it is
  made is thus found: its first users wait until the next fetch may begin, FETCH_SECONDS at most. To tell them "wrong
  token" would make their clients ask for another; to tell strangers "can't say" would not count as a failure of theirs.
- While fetches fail, the keys at hand go on; for others it can't be said whose tokens they are.
- Keys older than OLD_SECONDS are fetched anew while logins go on with the old: so those leave that the issuer has
  withdrawn. After a silence, with keys of twice that age and nobody asked for OLD_SECONDS, the first logins wait for
  that fetch: else a key withdrawn days ago would count once more. If it fails they go on with the old keys, and those
  after them don't wait.

A fetch belongs to no login: the one that needed it may be gone before the others have their answer. So it is a system
task of trio, which ends by itself within the time of its requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit, urlunsplit

import trio

from proxy.auth.oauth.strict_json import NotAnObject, read_object, shown
from proxy.auth.oauth.tokens import Jwt, KeySet, Signature, read_keys
from proxy.auth.source import Probe
from proxy.auth.web import Web, WebFailed
from proxy.observe import metrics
from proxy.observe.log import get_logger
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_values import parse_web_url, without_query

MAX_DOCUMENT_BYTES = 256 * 1024
FETCH_SECONDS = 5.0
OLD_SECONDS = 3600.0
_ACCEPT = {"accept": "application/json, application/jwk-set+json"}


class Fetch(StrEnum):
    """How a fetch of keys ended."""

    OK = "ok"
    FAILED = "failed"


_log = get_logger()
_fetches = metrics.counter(
    "porter_oauth_key_fetches_total",
    "Fetches of an issuer's keys, discovery included.",
    source=None,
    outcome=tuple(Fetch),
)


class KeysFailed(Exception):
    """The keys could not be had. The text is for the log."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose keys they are, and where."""

    name: str  # `iss`
    jwks_url: str | None  # None: by discovery

    @property
    def discovery_urls(self) -> tuple[str, ...]:
        """Where its metadata may be, the likeliest first.

        Source: OpenID Connect Discovery 1.0 §4; RFC 8414 §3 and §5.
        """
        parts = urlsplit(self.name)
        path = parts.path.rstrip("/")
        ends = (
            f"{path}/.well-known/openid-configuration",
            f"/.well-known/oauth-authorization-server{path}",
            f"/.well-known/openid-configuration{path}",
        )
        return tuple(dict.fromkeys(urlunsplit((parts.scheme, parts.netloc, end, "", "")) for end in ends))


class KeyRing:
    """The keys of one issuer, as they were when they were last fetched."""

    def __init__(self, issuer: Issuer, web: Web, source: str) -> None:
        self._issuer = issuer
        self._web = web
        self._source = source
        self._keys = KeySet()
        self._old_at = 0.0  # when these keys are too old; counts only once there are some
        self._next_at = float("-inf")  # when a fetch may begin
        self._tried_at = float("-inf")  # when the last one ended, well or not
        self._begun = 0  # fetches so far
        self._fetch = 0  # the one that brought these keys
        self._under_way: trio.Event | None = None
        self._problem = ""  # of the last fetch
        for outcome in Fetch:
            _fetches.labels(source, outcome)

    async def verify(self, jwt: Jwt) -> bool:
        """Whether the issuer has signed the token.

        Raises:
            Refused: AUTHENTICATION_FAILED, as KeySet.verify() does. UNAVAILABLE: its key is not at hand, and cannot
                be had.
        """
        begun = self._begun
        now = trio.current_time()
        if self._keys.keys and now >= self._old_at:
            if now >= self._next_at:
                self._begin()
            if self._under_way is not None and now >= max(self._old_at, self._tried_at) + OLD_SECONDS:
                await self._under_way.wait()
        while (signature := self._keys.verify(jwt)) is Signature.UNKNOWN_KEY:
            if self._fetch > begun:
                return False
            await self._newer()
        return signature is Signature.GOOD

    async def probe(self) -> list[Probe]:
        """Discovery and keys, asked for now."""
        probes = []
        url = self._issuer.jwks_url
        began = trio.current_time()
        if url is None:
            what = f"{self._issuer.name}: discovery"
            try:
                url = await self._discover()
            except KeysFailed as exc:
                return [Probe(what, str(exc), seconds=trio.current_time() - began)]
            probes.append(Probe(what, "", f"its keys are at {without_query(url)}", trio.current_time() - began))
            began = trio.current_time()
        what = f"{without_query(url)}: keys"
        try:
            keys = await self._download(url)
        except KeysFailed as exc:
            probes.append(Probe(what, str(exc), seconds=trio.current_time() - began))
        else:
            probes.append(Probe(what, "", ", ".join(map(shown, keys.kids)), trio.current_time() - began))
        return probes

    async def _newer(self) -> None:
        """Wait for the end of a fetch: the one under way, or another.

        Raises:
            Refused: UNAVAILABLE.
        """
        if self._under_way is None:
            if self._problem and trio.current_time() < self._next_at:
                raise self._unavailable()
            self._begin()
        under_way = self._under_way
        assert under_way is not None
        await under_way.wait()
        if self._problem:
            raise self._unavailable()

    def _unavailable(self) -> Refused:
        return Refused(Outcome.UNAVAILABLE, f"the issuer's keys: {self._problem}")

    def _begin(self) -> None:
        if self._under_way is None:
            self._under_way = trio.Event()
            trio.lowlevel.spawn_system_task(self._run, self._under_way, name="oauth keys")

    async def _run(self, ended: trio.Event) -> None:
        """One fetch, once it may begin. Nothing leaves it: what a system task raises would end the program."""
        try:
            await trio.sleep_until(self._next_at)
            self._next_at = trio.current_time() + FETCH_SECONDS
            self._begun += 1
            try:
                keys = await self._download(self._issuer.jwks_url or await self._discover())
            except KeysFailed as exc:
                self._failed(str(exc))
            else:
                self._took(keys)
        except Exception as exc:
            _log.exception("oauth.keys_crashed", source=self._source)
            self._failed(type(exc).__name__)
        finally:
            self._under_way = None
            self._tried_at = trio.current_time()
            ended.set()

    def _took(self, keys: KeySet) -> None:
        _fetches.labels(self._source, Fetch.OK).inc()
        if self._problem or keys.kids != self._keys.kids:
            _log.info("oauth.keys_fetched", source=self._source, keys=keys.kids)
        self._keys, self._fetch, self._problem = keys, self._begun, ""
        self._old_at = trio.current_time() + OLD_SECONDS

    def _failed(self, problem: str) -> None:
        _fetches.labels(self._source, Fetch.FAILED).inc()
        if not self._problem:
            _log.warning("oauth.keys_failed", source=self._source, problem=problem, keys=self._keys.kids)
        self._problem = problem

    async def _discover(self) -> str:
        """The URL of the keys, from the issuer's metadata.

        Raises:
            KeysFailed: It can't be had, or it isn't this issuer's.
        """
        first: KeysFailed | None = None
        for url in self._issuer.discovery_urls:
            try:
                metadata = await self._read(url)
            except _NotThere as exc:
                first = first or exc
                continue
            return self._jwks_url(metadata, url)
        assert first is not None
        raise first

    def _jwks_url(self, document: bytes, url: str) -> str:
        try:
            metadata = read_object(document)
        except NotAnObject as exc:
            raise KeysFailed(f"{url}: {exc}") from None
        # RFC 8414 §3.3: otherwise somebody else's metadata could give his keys for this issuer's.
        if metadata.get("issuer") != self._issuer.name:
            raise KeysFailed(f"{url} is about the issuer {shown(metadata.get('issuer'))}, not {self._issuer.name!r}")
        try:
            return parse_web_url(metadata.get("jwks_uri"))
        except ValueError as exc:
            raise KeysFailed(f"{url}: jwks_uri: {exc}") from None

    async def _download(self, url: str) -> KeySet:
        """Raises:
        KeysFailed: They can't be had, or there are none that can be used.
        """
        document = await self._read(url)
        try:
            return read_keys(document)
        except NotAnObject as exc:
            raise KeysFailed(f"{without_query(url)}: {exc}") from None

    async def _read(self, url: str) -> bytes:
        where = without_query(url)
        try:
            answer = await self._web.get(url, max_bytes=MAX_DOCUMENT_BYTES, headers=_ACCEPT)
        except WebFailed as exc:
            raise KeysFailed(f"{where}: {exc}") from None
        if 400 <= answer.status < 500:
            raise _NotThere(f"{where}: HTTP {answer.status}")
        if answer.status != 200:
            raise KeysFailed(f"{where}: HTTP {answer.status}")
        return answer.body


class _NotThere(KeysFailed):
    """The server says that there is no such document."""
