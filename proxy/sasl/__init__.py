"""SASL mechanisms as pure code, server side: a response in, a challenge or credentials out (RFC 4422)."""

from __future__ import annotations

from proxy.sasl.external import External
from proxy.sasl.oauthbearer import OAuthBearer
from proxy.sasl.plain import Plain
from proxy.sasl.scram import ScramSha256
from proxy.sasl.xoauth2 import XOAuth2

# In the order in which a client is told of them; many take the first they know.
NAMES = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "XOAUTH2", "OAUTHBEARER", "EXTERNAL")

__all__ = ["NAMES", "External", "OAuthBearer", "Plain", "ScramSha256", "XOAuth2"]
