"""A real OpenID provider, and tokens that it would never issue, signed with its own keys."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import Algorithm, get_default_algorithms

from tests.servers.accounts import USERS
from tests.servers.pki import Pki
from tests.servers.ports import wait_until_listening
from tests.servers.programs import require, require_node_module

SCRIPT = Path(__file__).parent / "openid_provider.mjs"
AUDIENCE = "imap"
WEBMAIL = ("webmail", "webmail: its secret+1")  # a client that gets tokens
INTROSPECTOR = ("imap-porter", "porter: its secret+1")  # a client that asks about them
TOKENS = {kind: f"urn:mail:{kind}" for kind in ("rs256", "es256", "opaque", "plain-typ", "other")}

_ALGORITHMS = get_default_algorithms()


@dataclass(frozen=True)
class SigningKey:
    """A private key, and what it signs."""

    kid: str | None
    algorithm: str
    private_key: Any = field(repr=False)

    def jwk(self, *, private: bool = False) -> dict[str, Any]:
        """As it stands in a JWK set."""
        key = self.private_key if private else self.private_key.public_key()
        jwk = dict(_reader(self.algorithm).to_jwk(key, as_dict=True))
        jwk.pop("key_ops", None)
        named = {} if self.kid is None else {"kid": self.kid}
        return {**jwk, **named, "use": "sig", "alg": self.algorithm}

    def mint(self, claims: Mapping[str, Any] | bytes, **header: Any) -> str:
        """A signed JWT with these claims; in its header None takes a member away."""
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        return self.sign({"alg": self.algorithm, "typ": "at+jwt", "kid": self.kid, **header}, payload)

    def sign(self, header: Mapping[str, Any] | bytes, payload: bytes) -> str:
        """Any header before any payload."""
        if not isinstance(header, bytes):
            header = json.dumps({key: value for key, value in header.items() if value is not None}).encode()
        signed = f"{encoded(header)}.{encoded(payload)}"
        return f"{signed}.{encoded(_reader(self.algorithm).sign(signed.encode(), self.private_key))}"


def encoded(octets: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def new_rsa_key(kid: str | None, algorithm: str = "RS256", bits: int = 2048) -> SigningKey:
    return SigningKey(kid, algorithm, rsa.generate_private_key(65537, bits))


def new_ec_key(
    kid: str | None, algorithm: str = "ES256", curve: Callable[[], ec.EllipticCurve] = ec.SECP256R1
) -> SigningKey:
    return SigningKey(kid, algorithm, ec.generate_private_key(curve()))


def _reader(algorithm: str) -> Algorithm:
    return _ALGORITHMS[algorithm]


class OpenIdProvider:
    """oidc-provider from npm, in a process of its own. What it issues it forgets when it stops, its keys excepted."""

    def __init__(self, folder: Path, port: int, pki: Pki) -> None:
        self.issuer = f"https://localhost:{port}"
        self.introspection = f"{self.issuer}/token/introspection"
        self.folder = folder
        self.rsa, self.ec = new_rsa_key("rsa1"), new_ec_key("ec1")
        self._port = port
        self._pki = pki
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it accepts."""
        modules = require_node_module("oidc-provider")
        self.folder.mkdir(exist_ok=True)
        # An ES module looks for packages beside itself, NODE_PATH or not.
        script = self.folder / SCRIPT.name
        script.write_bytes(SCRIPT.read_bytes())
        if not (beside := self.folder / "node_modules").is_symlink():
            beside.symlink_to(modules)
        keys = self.folder / "keys.json"
        keys.write_text(json.dumps({"keys": [key.jwk(private=True) for key in (self.rsa, self.ec)]}))
        environment = {
            **os.environ,
            "PORT": str(self._port),
            "CERTIFICATE": str(self._pki.certificate),
            "PRIVATE_KEY": str(self._pki.private_key),
            "KEYS": str(keys),
            "USERS": json.dumps(USERS),
        }
        with (self.folder / "out").open("ab") as output:
            self._process = subprocess.Popen(
                [require("node"), script], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
            )
        try:
            wait_until_listening({self._port}, 20, self._check_alive)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it; connections break."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)
            self._process = None

    def rotate(self) -> None:
        """Start again with new keys under new names; the old are gone."""
        self.stop()
        number = int(str(self.rsa.kid)[3:]) + 1
        self.rsa, self.ec = new_rsa_key(f"rsa{number}"), new_ec_key(f"ec{number}")
        self.start()

    def token(self, name: str, kind: str = "rs256") -> str:
        """A token of a user's, of a kind in TOKENS."""
        form = {"grant_type": "password", "username": name, "password": USERS[name], "resource": TOKENS[kind]}
        return str(json.loads(self._post("/token", form))["access_token"])

    def client_token(self, kind: str = "rs256") -> str:
        """A token of the client's own, nobody else's."""
        form = {"grant_type": "client_credentials", "scope": "imap", "resource": TOKENS[kind]}
        return str(json.loads(self._post("/token", form))["access_token"])

    def revoke(self, token: str) -> None:
        """Take an opaque token back."""
        self._post("/token/revocation", {"token": token})

    def claims(self, name: str, **changes: Any) -> dict[str, Any]:
        """What its tokens say, and anything else; None takes a claim away."""
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": name, "aud": AUDIENCE, "scope": "imap", "exp": now + 300, "iat": now}
        claims |= {"client_id": WEBMAIL[0], "email": f"{name}@test.example", "email_verified": True}
        return {key: value for key, value in (claims | changes).items() if value is not None}

    def _post(self, path: str, form: Mapping[str, str]) -> bytes:
        # RFC 6749 §2.3.1: form-urlencoded before they are joined.
        joined = ":".join(urllib.parse.quote_plus(part) for part in WEBMAIL)
        request = urllib.request.Request(f"{self.issuer}{path}", urllib.parse.urlencode(form).encode())
        request.add_header("Authorization", f"Basic {base64.b64encode(joined.encode()).decode()}")
        context: ssl.SSLContext = self._pki.client_context()
        with urllib.request.urlopen(request, timeout=20, context=context) as response:
            return bytes(response.read())

    def _check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"the provider has ended:\n{(self.folder / 'out').read_text()}")
