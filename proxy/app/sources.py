"""From the settings' identity sources to those that are asked.

What a kind of source needs is imported where the settings name one: ldap3, httpx, dnspython and coredis are 38 MiB
that each process would carry for nobody. preflight() does so before the first fork, so that all share them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from proxy.auth.authenticator import Authenticator
from proxy.auth.cache import cached
from proxy.auth.file import FileSource
from proxy.auth.names import NameRules
from proxy.auth.passthrough import PassthroughSource
from proxy.auth.passwords import PasswordVerifier
from proxy.auth.source import IdentitySource
from proxy.session.mechanisms import Mechanisms
from proxy.settings.models import IdentitySource as SourceSettings
from proxy.settings.models import Settings

_ROOMS = {"ldap": "proxy.auth.ldap.source", "oauth": "proxy.auth.oauth.source", "http": "proxy.auth.http"}
NO_USERS: Mapping[Path, bytes] = MappingProxyType({})


def import_rooms(settings: Settings) -> None:
    """Import what these settings need and others do not; to be called before processes are forked."""
    kinds = {given.kind for given in settings.identity}
    for kind, room in _ROOMS.items():
        if kind in kinds:
            import_module(room)
    if settings.backends.discovery is not None:
        import_module("proxy.backends.discovery")
    if settings.fleet is not None:
        import_module("proxy.app.fleet_hands")


def sources_for(settings: Settings, rules: NameRules, users: Mapping[Path, bytes] = NO_USERS) -> list[IdentitySource]:
    """The identity sources, one for each of the settings. Nothing is connected to.

    Args:
        users: What users files hold, so far as that is known; others are read.
    Raises:
        SettingsError: A users file has mistakes.
    """
    verifier = PasswordVerifier()
    count: Counter[str] = Counter()
    sources: list[IdentitySource] = []
    for given in settings.identity:
        count[given.kind] += 1
        name = given.kind if count[given.kind] == 1 else f"{given.kind}-{count[given.kind]}"
        if given.file is not None:
            sources.append(FileSource(given.file.path, rules, verifier, name, users.get(given.file.path)))
        elif given.ldap is not None:
            from proxy.auth.ldap.source import ldap_source

            sources.append(ldap_source(given.ldap, rules, name))
        elif given.oauth is not None:
            from proxy.auth.oauth.source import OAuthSource

            sources.append(OAuthSource(given.oauth, rules, name))
        elif given.http is not None:
            from proxy.auth.http import HttpSource

            sources.append(HttpSource(given.http, rules, name))
        else:
            sources.append(PassthroughSource(tokens=settings.backends.login.method == "token"))
    return sources


def authenticator_for(settings: Settings, rules: NameRules, sources: Sequence[IdentitySource]) -> Authenticator:
    """The sources in their order, with what is remembered of their answers."""
    remembering = [
        cached(source, settings.cache) if _is_remembered(given) else source
        for given, source in zip(settings.identity, sources, strict=True)
    ]
    return Authenticator(remembering, rules, decoy_key=_decoy_key(settings))


def mechanisms_for(settings: Settings, authenticator: Authenticator, sources: Sequence[IdentitySource]) -> Mechanisms:
    """The SASL mechanisms, with what clients are told about tokens that were refused."""
    issuers = [given.oauth for given in settings.identity if given.oauth is not None]
    scopes = dict.fromkeys(scope for issuer in issuers for scope in issuer.scopes)
    # One client can be told of one issuer: the first.
    found = [getattr(source, "openid_configuration", None) for source in sources]  # sources of tokens have one
    configuration = next((url for url in found if url), "")
    return Mechanisms(authenticator.mechanisms, scopes=" ".join(scopes), openid_configuration=configuration)


def _is_remembered(given: SourceSettings) -> bool:
    if given.http is not None:
        return given.http.cache
    return given.backend is None  # its answers are no answers


def _decoy_key(settings: Settings) -> Callable[[], bytes] | None:
    """Tells a secret that every proxy of a site has, and keeps over a restart: unknown names' salts don't change."""
    login = settings.backends.login
    if not login.needs_no_secret:
        return None
    password = login.password
    assert password is not None
    # Made each time: the file of that password may change, and does so for all processes.
    return lambda: blake2b(password.value, digest_size=32, person=b"porter-scram").digest()
