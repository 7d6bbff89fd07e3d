"""Which SASL mechanisms a connection is offered: what the sources can judge, and what TLS has told of the client."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from functools import partial

from proxy.model import Mechanism
from proxy.sasl import NAMES, External, OAuthBearer, Plain, ScramSha256, XOAuth2
from proxy.settings.client_models import ClientCertificates
from proxy.transport.door import Door
from proxy.transport.stream import Stream
from proxy.transport.tls import TlsStream

Factories = Mapping[str, Callable[[], Mechanism]]

_SCRAM = "SCRAM-SHA-256"
_SCRAM_PLUS = "SCRAM-SHA-256-PLUS"


class Mechanisms:
    """The mechanisms of a proxy, and what makes an exchange of each for one connection."""

    def __init__(self, judged: Collection[str], *, scopes: str, openid_configuration: str) -> None:
        """Args:
        judged: The mechanisms that the identity sources can judge.
        scopes: What tokens have to be good for, separated by spaces; told to clients whose token was refused.
        openid_configuration: Where such a client finds how to get another; "": not told.
        """
        makers: dict[str, Callable[[], Mechanism]] = {
            "PLAIN": Plain,
            "XOAUTH2": partial(XOAuth2, scopes),
            "OAUTHBEARER": partial(OAuthBearer, scopes, openid_configuration),
        }
        self._always: Factories = {name: makers[name] for name in NAMES if name in makers and name in judged}
        self._scram = _SCRAM in judged
        self.login = "LOGIN" in judged  # whether anybody knows passwords

    def offered(self, stream: Stream, door: Door) -> Factories:
        """What this connection may use."""
        if not self._scram and door.client_certificates is None:
            return self._always
        offered = dict(self._always)
        tls = stream if isinstance(stream, TlsStream) else None
        if self._scram:
            offered[_SCRAM] = partial(_scram, False, tls)
            if tls is not None and tls.binds_channel:
                offered[_SCRAM_PLUS] = partial(_scram, True, tls)
        if tls is not None and door.client_certificates is not None:
            offered |= _external(tls, door.client_certificates)
        return {name: offered[name] for name in NAMES if name in offered}


def _scram(plus: bool, tls: TlsStream | None) -> ScramSha256:
    binding = None if tls is None else tls.channel_binding()
    return ScramSha256(plus, binding, secrets.token_urlsafe(18))


def _external(tls: TlsStream, setting: ClientCertificates) -> Factories:
    """EXTERNAL, if TLS has established who the client is (RFC 4422 Appendix A)."""
    certificate = tls.client_certificate(setting.name)
    if certificate is None:
        return {}
    return {"EXTERNAL": partial(External, certificate.the_name(), certificate.expires_at)}
