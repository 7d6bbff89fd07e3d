"""What the tests of tokens share: a provider, a Dovecot that reads its tokens, proxies in between, SASL on the wire."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers.accounts import MASTER, MASTER_PASSWORD
from tests.servers.dovecot import Dovecot, write_dovecot
from tests.servers.openid import AUDIENCE, INTROSPECTOR, OpenIdProvider, SigningKey
from tests.servers.pki import Pki
from tests.servers.porter import Door, Porter, porter_settings
from tests.servers.ports import Ports
from tests.servers.wire import Wire

MECHANISMS = ("XOAUTH2", "OAUTHBEARER")
METHODS = ("master", "token")  # of backends.login
# The kinds of tokens that are good for both ends: Dovecot reads opaque ones with one more setting, and of JWTs those
# alone whose header says `typ: JWT`.
KINDS = {"master": ("rs256", "es256", "opaque"), "token": ("plain-typ", "es256-plain-typ")}

OK = b"OK [CAPABILITY "
FAILED = b"NO [AUTHENTICATIONFAILED] Authentication failed."
EXPIRED = b"NO [EXPIRED] The password or token has expired."
NOT_AUTHORIZED = b"NO [AUTHORIZATIONFAILED] Authorization failed."
UNAVAILABLE = b"NO [UNAVAILABLE] Account is temporarily unavailable."

# What is tried here fails often, and always comes from one address.
NO_LIMITS = {"failed_login_delay": "0s", "login_tries": 100, "exempt_networks": ["127.0.0.0/8"]}
# How a client ends an exchange that has failed (RFC 7628 §3.2.3).
DUMMY = {"XOAUTH2": b"\r\n", "OAUTHBEARER": b"AQ==\r\n"}

# Before login Dovecot traces nothing unless told so on its command line.
TRACE_LOGINS = """
service imap-login {{
  executable = imap-login -R {folder}
  chroot =
}}
"""
# So much of a token, in whatever form, is enough to know it again, and comes about by no chance.
_TELLING = 24

# One command under a tag of the proxy's own; Dovecot puts a time before each line.
_CHECK = re.compile(rb"[0-9.]+ p[0-9]+ LOGOUT\r\n")


class Site:
    """A provider, a Dovecot, the tokens that were used so far, and proxies on demand."""

    def __init__(self, folder: Path, pki: Pki, ports: Ports, messages: list[bytes]) -> None:
        """Make ready; start() starts.

        Args:
            messages: Of alice's INBOX.
        """
        self._folder, self._pki, self._ports = folder, pki, ports
        self.provider = OpenIdProvider(folder / "provider", ports.take(), pki)
        self.dovecot = self._write_dovecot(messages)
        self._used: list[str] = []
        self._traces_read: set[Path] = set()
        self._secrets = {"introspector": INTROSPECTOR[1], "master": MASTER_PASSWORD}
        for name, secret in self._secrets.items():
            (folder / name).write_text(secret + "\n")
            (folder / name).chmod(0o600)

    def start(self) -> None:
        self.provider.start()
        self.trust_keys()
        self.dovecot.start()

    def stop(self) -> None:
        self.dovecot.stop()
        self.provider.stop()

    def trust_keys(self) -> None:
        """Have Dovecot take what the provider signs now."""
        self.dovecot.trust_keys({"keys": [key.jwk() for key in (self.provider.rsa, self.provider.ec)]})

    # --- tokens ---

    def token(self, kind: str, name: str = "alice") -> str:
        """A token of the provider's; or one that it might issue, of the one kind that it doesn't."""
        if kind == "es256-plain-typ":
            return self.mint(name, key=self.provider.ec, header={"typ": "JWT"})
        return self.using(self.provider.token(name, kind))

    def mint(
        self,
        name: str = "alice",
        *,
        key: SigningKey | None = None,
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A token of our own make, by default with the provider's key and all that makes it good."""
        return self.using((key or self.provider.rsa).mint(self.provider.claims(name, **claims), **(header or {})))

    def using(self, token: str) -> str:
        """Remember a token, of which no log may tell."""
        self._used.append(token)
        return token

    # --- the proxy ---

    def oauth(self, **changes: Any) -> dict[str, Any]:
        """The identity source of this provider."""
        introspection = {
            "url": self.provider.introspection,
            "client_id": INTROSPECTOR[0],
            "client_secret": {"file": str(self._folder / "introspector")},
        }
        usual = {"issuer": self.provider.issuer, "audience": AUDIENCE, "scopes": ["imap"], "ca": str(self._pki.ca)}
        return {"oauth": {**usual, "introspection": introspection, **changes}}

    @contextmanager
    def porter(self, method: str, **changes: Any) -> Iterator[Porter]:
        """A proxy in front of this Dovecot, looked over when it ends.

        Args:
            method: How it logs in there.
            changes: Top-level settings.
        """
        settings, taken = porter_settings(
            self._pki, {self.dovecot.name: f"imap://127.0.0.1:{self.dovecot.imap_port}"}, self._ports
        )
        login: dict[str, Any] = {"method": method}
        if method == "master":
            login |= {"name": MASTER, "password": {"file": str(self._folder / "master")}}
        settings["backends"]["login"] = login
        settings |= {"identity": [self.oauth()], "limits": NO_LIMITS, **changes}
        settings["workers"] = 1  # each fetches keys, and remembers answers, for itself
        porter = Porter(Path(tempfile.mkdtemp(prefix="porter-", dir=self._folder)), settings, self._pki, taken)
        try:
            yield porter
            porter.stop()
            assert self.told_by(porter.output()) == set()
        finally:
            porter.kill()

    def told_by(self, text: str) -> set[str]:
        """Parts of tokens, as they are or inside of base64, that stand in a text; and secrets of the proxy's."""
        said = set(_pieces(text))
        found = {piece for token in self._used for form in _forms(token) for piece in _pieces(form) if piece in said}
        return found | {secret for secret in (*self._used, *self._secrets.values()) if secret in text}

    # --- Dovecot ---

    def heard(self) -> bytes:
        """What Dovecot was told before login since this was last asked; base64 is there a second time, decoded.

        Without the proxy's checks of its health, which take leave after the greeting.
        """
        paths = set((self._folder / "logins").glob("*.in"))
        traces = [path.read_bytes() for path in sorted(paths - self._traces_read)]
        said = b"".join(trace for trace in traces if not _CHECK.fullmatch(trace))
        self._traces_read |= paths
        messages = re.findall(rb"(?<=[ \n])[A-Za-z0-9+/]{40,}={0,2}(?=\r?\n)", said)
        return b"\n".join([said, *map(base64.b64decode, messages)])

    def _write_dovecot(self, messages: list[bytes]) -> Dovecot:
        folder = self._folder
        dovecot = write_dovecot("t1", folder / "t1", self._pki, self._ports, tokens=[self.provider.issuer])
        (folder / "logins").mkdir()
        (folder / "logins").chmod(0o777)  # it is written to by a user without rights
        with dovecot.configuration.open("a") as configuration:
            configuration.write(TRACE_LOGINS.format(folder=folder / "logins"))
        dovecot.fill("alice", messages)
        return dovecot


@contextmanager
def token_site(folder: Path, pki: Pki, ports: Ports, messages: list[bytes]) -> Iterator[Site]:
    """A site in a folder of its own below this one."""
    own = Path(tempfile.mkdtemp(prefix="tokens-", dir=folder))
    own.chmod(0o755)
    site = Site(own, pki, ports, messages)
    try:
        site.start()
        yield site
    finally:
        site.stop()


def enter(door: Door) -> Wire:
    """Connect by a door and come to where AUTHENTICATE is allowed."""
    context = door.pki.client_context()
    if not door.starttls:
        return Wire.connect(door.port, context)
    wire = Wire.connect(door.port)
    wire.starttls(context)
    return wire


def encoded(mechanism: str, name: str, token: str) -> bytes:
    """The one message of a mechanism, in base64."""
    gs2 = f"n,a={name},\1host=localhost\1port=993" if name else "n,,"
    head = f"user={name}" if mechanism == "XOAUTH2" else gs2
    return base64.b64encode(f"{head}\1auth=Bearer {token}\1\1".encode())


def authenticate(
    wire: Wire, mechanism: str, token: str, name: str = "alice", *, initial: bool = True
) -> tuple[dict[str, str] | None, bytes]:
    """AUTHENTICATE with a token.

    Args:
        name: Whom the client claims to be; "": nobody, by OAUTHBEARER.
        initial: Whether the message goes along with the command (SASL-IR, RFC 4959).
    Returns:
        The failure's challenge, if there was one; it was answered. And the tagged line without its tag.
    """
    said = b"a AUTHENTICATE " + mechanism.encode()
    if initial:
        wire.send(said + b" " + encoded(mechanism, name, token) + b"\r\n")
    else:
        wire.send(said + b"\r\n")
        assert wire.line() == b"+ "
        wire.send(encoded(mechanism, name, token) + b"\r\n")
    line = wire.line()
    challenge = None
    if line.startswith(b"+"):
        challenge = json.loads(base64.b64decode(line.removeprefix(b"+ "), validate=True))
        wire.send(DUMMY[mechanism])
        line = wire.line()
    assert line.startswith(b"a "), line
    return challenge, line.removeprefix(b"a ")


def accepted(wire: Wire, mechanism: str, token: str, name: str = "alice") -> bool:
    """Whether a token logs in, without a word against it."""
    challenge, answer = authenticate(wire, mechanism, token, name)
    return challenge is None and answer.startswith(OK)


def _forms(token: str) -> Iterator[str]:
    yield token
    for shift in range(3):  # what stands before it moves it against base64's groups
        yield base64.b64encode(b" " * shift + token.encode()).decode()[4:]


def _pieces(text: str) -> Iterator[str]:
    for position in range(len(text) - _TELLING + 1):
        yield text[position : position + _TELLING]
