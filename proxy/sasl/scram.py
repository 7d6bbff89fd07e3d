"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS: who knows the password shows it without sending it (RFC 5802, RFC 7677).

    client  n,,n=ann,r=<its nonce>                      the GS2 header and client-first-message-bare
    server  r=<both nonces>,s=<salt>,i=<iterations>     server-first-message
    client  c=<binding>,r=<both nonces>,p=<proof>       client-final-message
    server  v=<signature>                               server-final-message: the server shows that it knows the keys
    client                                              an empty response; then it is logged in

Everything but the proof is signed by the proof, so what was parsed is kept as the octets that came. A name that nobody
knows is given an account too, with keys that no password has: it fails where a wrong password fails.

PLUS binds the exchange to the TLS connection by `tls-exporter` (RFC 9266): who sits between client and server has two
connections with two values. A client that could bind and was told of no PLUS says so by "y", and since it is signed
nobody in between can hide PLUS from it.

The server's side of the scramp library knows neither `tls-exporter` nor authorization identities, and wants the keys in
the midst of a call; so the four messages are ours, and scramp makes the keys (`auth/scram_keys.py`) and plays the
client, and the second opinion, in the tests.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

from proxy.model import Account, AccountWanted, Challenge, Credentials, MalformedResponse, ScramKeys
from proxy.outcome import Outcome
from proxy.sasl.gs2 import SASLNAME, Gs2Header, decode_saslname, split_gs2_header

_TLS_EXPORTER = "p=tls-exporter"
_MAX_NONCE_OCTETS = 256  # clients send 18 to 64

_NONCE = rb"[\x21-\x2b\x2d-\x7e]+"
# RFC 5802 §5.1: those that nobody knows are ignored; the attributes it defines have their places elsewhere.
_EXTENSIONS = rb"(?:,(?![aceimnprsv])[A-Za-z]=[^\0,]+)*"
_CLIENT_FIRST_BARE = re.compile(rb"n=(" + SASLNAME + rb"),r=(" + _NONCE + rb")" + _EXTENSIONS)
_CLIENT_FINAL_WITHOUT_PROOF = re.compile(rb"c=([A-Za-z0-9+/=]+),r=(" + _NONCE + rb")" + _EXTENSIONS)


class ScramSha256:
    """One exchange of SCRAM-SHA-256, or of SCRAM-SHA-256-PLUS."""

    __slots__ = ("_account", "_binding", "_client_first_bare", "_header", "_mechanism", "_name", "_nonce", "_plus",
                 "_proven", "_server_first")  # fmt: skip

    def __init__(self, plus: bool, binding: bytes | None, nonce: str) -> None:
        """Before the first message.

        Args:
            plus: Whether the client chose the mechanism with -PLUS.
            binding: The connection's `tls-exporter` value. None: it has none, and PLUS is not offered on it.
            nonce: The server's part of it, new for each exchange: printable ASCII without a comma.
        """
        if plus and not binding:
            raise ValueError("nothing to bind to")
        self._plus = plus
        self._mechanism = "SCRAM-SHA-256-PLUS" if plus else "SCRAM-SHA-256"
        self._binding = binding or b""
        self._nonce = nonce.encode("ascii")  # from the first message on: the client's and ours
        self._header: Gs2Header | None = None
        self._name = ""
        self._client_first_bare = b""
        self._server_first = b""
        self._account: Account | None = None
        self._proven = False

    def step(self, response: bytes | None) -> Challenge | Credentials | AccountWanted:
        """Take the client's next message.

        Args:
            response: Decoded octets. None: no initial response was sent. b"": an empty one ("=", RFC 4959 §3).
        Returns:
            Credentials without `proven` as soon as the exchange cannot succeed.
        Raises:
            MalformedResponse: It doesn't fit.
        """
        if response is None:
            return Challenge(b"")
        if self._header is None:
            return self._client_first(response)
        if self._proven:
            if response:
                raise MalformedResponse("expected an empty response to the server's signature")
            return self._credentials(self._account)
        return self._client_final(response)

    def supply(self, account: Account) -> Challenge:
        """Go on with the account that was wanted; it has SCRAM keys."""
        keys = _keys(account)
        self._account = account
        salt = base64.b64encode(keys.salt)
        self._server_first = b"r=%b,s=%b,i=%d" % (self._nonce, salt, keys.iterations)
        return Challenge(self._server_first)

    def failure(self, outcome: Outcome) -> Challenge | None:
        """None: the tagged NO tells it. RFC 5802's `e=` would tell unknown names from wrong passwords."""
        return None

    def _client_first(self, response: bytes) -> Credentials | AccountWanted:
        header, bare = split_gs2_header(response)
        match = _CLIENT_FIRST_BARE.fullmatch(bare)  # "m=", an extension that must be understood, fails here
        if match is None:
            raise MalformedResponse("expected a name, a nonce, and extensions behind them only")
        if len(match[2]) > _MAX_NONCE_OCTETS:
            raise MalformedResponse("the nonce is too long")
        self._header = header
        self._name = decode_saslname(match[1])
        self._nonce = match[2] + self._nonce
        self._client_first_bare = bare
        if (header.binding == _TLS_EXPORTER) is not self._plus or (header.binding[0] == "p" and not self._plus):
            raise MalformedResponse("another channel binding than the mechanism's")  # RFC 5802 §6
        if header.binding == "y" and self._binding:
            return self._credentials(None, "the client was not told of PLUS, which was offered: a downgrade?")
        return AccountWanted(self._mechanism, self._name, header.authorization_identity)

    def _client_final(self, response: bytes) -> Challenge | Credentials:
        assert self._header is not None
        if self._account is None:
            return self._credentials(None)  # it has failed already; nobody tries a second proof on the same nonce
        without_proof, _, encoded_proof = response.rpartition(b",p=")
        match = _CLIENT_FINAL_WITHOUT_PROOF.fullmatch(without_proof)
        if match is None:
            raise MalformedResponse("expected a channel binding, the nonce and a proof")
        try:
            proof = binascii.a2b_base64(encoded_proof, strict_mode=True)
        except binascii.Error:
            raise MalformedResponse("the proof is not base64") from None
        bound_to = self._header.octets + self._binding if self._plus else self._header.octets
        keys = _keys(self._account)
        signed = b"%b,%b,%b" % (self._client_first_bare, self._server_first, without_proof)
        self._proven = (
            hmac.compare_digest(match[1], base64.b64encode(bound_to))
            and hmac.compare_digest(match[2], self._nonce)
            and _proves(proof, signed, keys)
        )
        if not self._proven:
            self._account = None
            return self._credentials(None)
        return Challenge(b"v=" + base64.b64encode(hmac.digest(keys.server_key, signed, "sha256")))

    def _credentials(self, proven: Account | None, problem: str = "") -> Credentials:
        return Credentials(
            mechanism=self._mechanism,
            authentication_identity=self._name,
            authorization_identity="" if self._header is None else self._header.authorization_identity,
            secret=b"",
            proven=proven,
            problem=problem,
        )


def _keys(account: Account) -> ScramKeys:
    assert account.scram is not None, "an account without SCRAM keys was supplied"
    return account.scram


def _proves(proof: bytes, signed: bytes, keys: ScramKeys) -> bool:
    """Whether a proof comes from somebody who knows the client key.

    ClientProof is ClientKey XOR HMAC(StoredKey, AuthMessage); StoredKey is H(ClientKey).

    Source: RFC 5802 §3.
    """
    signature = hmac.digest(keys.stored_key, signed, "sha256")
    if len(proof) != len(signature):
        return False
    client_key = (int.from_bytes(proof, "big") ^ int.from_bytes(signature, "big")).to_bytes(len(signature), "big")
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), keys.stored_key)
