"""Identity from a web service that speaks nginx's `auth_http` protocol, as a site has it that comes from nginx.

Question and answer stand in header fields; the body doesn't count. The service sees what it saw from nginx's mail
proxy, octet for octet, with these exceptions:

- `Auth-User` is the canonical name: the client's spelling never leaves this proxy. Where a service tells `Ann` from
  `ann`, `names.lowercase` has to be false.
- Of TLS it hears `Auth-SSL: on`, and not the version, the cipher or a client's certificate.
- No `Proxy-Protocol-*`: `Client-IP` is the client's own address already.
- HTTP/1.1 with connections that are kept, and the fields that belong to it, in place of HTTP/1.0.

And the answer counts as it did, nothing in it unescaped, with these exceptions:

- nginx doesn't look at the HTTP status. Here it has to be 2xx; 401 and 403 count where `Auth-Status` says no. Anything
  else is an outage, and a service that can't say is best told by 5xx: whatever `Auth-Status` says but OK is a no,
  however it is worded and whatever `Auth-Error-Code` says, which nginx too heeds for SMTP alone.
- `Auth-Status: WAIT` means ask again after `Auth-Wait`. Here the client is the one to ask again: UNAVAILABLE.
- `Auth-Server` may be a name that the settings have for a backend, and come without `Auth-Port`; with neither of them
  the hash places the user. Nothing is connected to but the settings' backends.
- `Auth-User` is taken in its canonical form, and has to be spelled plainly: no fullwidth letters or the like.
- A field Auth-* that comes twice is a mistake of the service, whichever of the two it meant.
- A refusal without `Auth-Wait` doesn't end the connection; `limits.login_tries` does.

Source: https://nginx.org/en/docs/mail/ngx_mail_auth_http_module.html; nginx 1.22 to 1.31, ngx_mail_auth_http_module.c.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import trio

from proxy.auth.names import NameRules
from proxy.auth.source import PASSWORD_MECHANISMS, Answer, Probe
from proxy.auth.web import Web, WebAnswer, WebFailed
from proxy.model import Credentials, Endpoint, Identity, Origin
from proxy.outcome import Outcome, Refused
from proxy.settings.identity_values import without_query
from proxy.settings.models import HttpIdentity
from proxy.settings.secret import Secret

MOST_WAIT_SECONDS = 60.0
_MAX_BODY_BYTES = 64 * 1024
# nginx gives a whole answer 1024 octets.
_MAX_SECRET_BYTES = 1024
_MAX_QUOTED = 200
# Four times the connections there are: a storm of logins waits its turn within the timeout, a service that hangs does
# not gather more than this.
_MOST_UNDER_WAY = 200
# What web frameworks send along with a no; without Auth-Status it is the service's own door that refuses us.
_REFUSING_STATUSES = frozenset({401, 403})

# nginx's NGX_ESCAPE_MAIL_AUTH: blank, "%" and controls. All else goes as it is, octets above 0x7e too.
_ESCAPED = re.compile(rb"[\x00-\x20%]")
_HOST = re.compile(r"[0-9A-Za-z._:-]{1,253}")
_PORT = re.compile(r"[0-9]{1,5}")
_SECONDS = re.compile(r"[0-9]{1,9}")


class HttpSource:
    """`http: {url: http://127.0.0.1:9000/auth}`."""

    mechanisms = PASSWORD_MECHANISMS

    def __init__(self, settings: HttpIdentity, rules: NameRules, name: str = "http") -> None:
        self.name = name
        self._url = settings.url
        self._rules = rules
        self._web = Web(settings.ca, settings.timeout)
        self._settings = settings
        self._under_way = 0

    async def authenticate(self, credentials: Credentials, name: str, origin: Origin) -> Answer:
        """Ask the service. It answers for every name: "not mine" does not exist in its protocol.

        Raises:
            Refused: AUTHENTICATION_FAILED: the service said no. UNAVAILABLE: it said nothing that can be used.
        """
        if self._under_way >= _MOST_UNDER_WAY:
            raise _unavailable(f"{_MOST_UNDER_WAY} questions are under way already")
        self._under_way += 1
        try:
            question = {**_constant_fields(self._settings), **_question(credentials, name, origin)}
            # Octets, which the door passes on: text would have to be ASCII there.
            answer = await self._web.get(self._url, max_bytes=_MAX_BODY_BYTES, headers=question)
        except WebFailed as exc:
            raise _unavailable(str(exc)) from None
        finally:
            self._under_way -= 1
        fields = _answer_fields(answer)
        _refuse_unless_ok(answer.status, fields)
        return self._identity(fields, name)

    async def probe(self) -> Sequence[Probe]:
        """See whether anybody answers HTTP there.

        No name is asked for, which a service might count as a failed login; so whatever it answers is good.
        """
        what = f"{without_query(self._url)}: request"
        began = trio.current_time()
        try:
            answer = await self._web.get(self._url, max_bytes=_MAX_BODY_BYTES, headers=_constant_fields(self._settings))
        except WebFailed as exc:
            return (Probe(what, str(exc), seconds=trio.current_time() - began),)
        return (Probe(what, "", f"HTTP status {answer.status}", trio.current_time() - began),)

    async def close(self) -> None:
        """Give connections back."""
        await self._web.close()

    def _identity(self, fields: Mapping[bytes, bytes], name: str) -> Identity:
        """What goes with a yes."""
        given = fields.get(b"auth-user")
        if given is not None:
            try:
                name = self._rules.asserted(given.decode("utf-8", "surrogateescape"))
            except Refused as refusal:
                # The service's mistake; the client's password was right.
                raise _misanswered(f"Auth-User: {refusal.detail}") from None
        secret = fields.get(b"auth-pass")
        if secret is not None and not 0 < len(secret) <= _MAX_SECRET_BYTES:
            raise _misanswered(f"Auth-Pass has {len(secret)} octets; 1 to {_MAX_SECRET_BYTES} are allowed")
        return Identity(name, self.name, _backend(fields), backend_secret=secret)


def escape(octets: bytes) -> bytes:
    """As nginx escapes names and passwords.

    Source: ngx_escape_uri() in ngx_string.c, NGX_ESCAPE_MAIL_AUTH.
    """
    return _ESCAPED.sub(lambda found: b"%%%02X" % found[0][0], octets)


def _constant_fields(settings: HttpIdentity) -> dict[str, str]:
    """Those of every request: the host, and the settings', whose secrets may have changed since the last one."""
    # Blanks around a value are no part of it (RFC 9110 §5.5), and a library might refuse it with its text.
    fields = {
        name: (value.value.decode("ascii") if isinstance(value, Secret) else value).strip()
        for name, value in settings.headers.items()
    }
    if not any(name.lower() == "host" for name in fields):
        # Without the port, as nginx does it: a service may compare it.
        host = urlsplit(settings.url).hostname or ""
        fields["Host"] = f"[{host}]" if ":" in host else host
    return fields


def _question(credentials: Credentials, name: str, origin: Origin) -> dict[str, str | bytes]:
    """The fields of one login. LOGIN, AUTHENTICATE PLAIN: nginx calls them all plain."""
    question: dict[str, str | bytes] = {
        "Auth-Method": "plain",
        "Auth-User": escape(name.encode()),
        "Auth-Pass": escape(credentials.secret),
        "Auth-Protocol": "imap",
        "Auth-Login-Attempt": str(origin.tries),
        "Client-IP": origin.client.host,
    }
    if origin.secure:
        question["Auth-SSL"] = "on"
    return question


def _answer_fields(answer: WebAnswer) -> Mapping[bytes, bytes]:
    """The fields of the protocol, octet for octet as the service sent them; names in lower case.

    Raises:
        Refused: UNAVAILABLE, there are two of one: which of them counts would be a guess.
    """
    fields: dict[bytes, bytes] = {}
    for name, value in answer.headers:
        if name.startswith(b"auth-"):
            if name in fields:
                raise _unavailable(f"{name[:_MAX_QUOTED].decode('ascii')} comes more than once")
            fields[name] = value
    return fields


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str:
    """A field that is for people, or compared with ASCII. "": it isn't there."""
    return fields.get(name, b"").decode("utf-8", "replace")


def _refuse_unless_ok(status: int, fields: Mapping[bytes, bytes]) -> None:
    """Return if the service said yes.

    Raises:
        Refused: It said no, or nothing.
    """
    said = _text(fields, b"auth-status")
    succeeded = 200 <= status < 300  # 204: a service that is itself a few lines for nginx, `return 204`
    if not said:
        raise _unavailable(f"HTTP status {status} without Auth-Status")
    if not succeeded and (said == "OK" or status not in _REFUSING_STATUSES):
        raise _unavailable(f'HTTP status {status} with Auth-Status "{said[:_MAX_QUOTED]}"')
    if said == "OK":
        return
    if said == "WAIT":
        raise _unavailable("it asks for patience", _wait_seconds(fields))
    code = _text(fields, b"auth-error-code")
    raise Refused(
        Outcome.AUTHENTICATION_FAILED,
        f'the service says "{said[:_MAX_QUOTED]}"' + (f', code "{code[:_MAX_QUOTED]}"' if code else ""),
        wait_seconds=_wait_seconds(fields),
    )


def _wait_seconds(fields: Mapping[bytes, bytes]) -> float:
    """Auth-Wait; what is no number counts as none, as with nginx."""
    given = _text(fields, b"auth-wait")
    return min(float(given), MOST_WAIT_SECONDS) if _SECONDS.fullmatch(given) else 0.0


def _backend(fields: Mapping[bytes, bytes]) -> str | None:
    """The backend that the service names, as placement knows it; None: none.

    Raises:
        Refused: UNAVAILABLE, it is no host and port. Not by hash then: a mailbox would be made where its owner's mail
            is not.
    """
    server, port = _text(fields, b"auth-server"), _text(fields, b"auth-port")
    if not server:
        if port:
            raise _misanswered("Auth-Port without Auth-Server")
        return None
    host = server[1:-1] if server.startswith("[") and server.endswith("]") else server
    if not _HOST.fullmatch(host) or (":" in host and not _is_ipv6(host)):
        raise _misanswered(f'Auth-Server is no host: "{server[:_MAX_QUOTED]}"')
    if not port:
        return host
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise _misanswered(f'Auth-Port is no port: "{port[:_MAX_QUOTED]}"')
    return str(Endpoint(host, int(port)))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _unavailable(detail: str, wait_seconds: float = 0.0) -> Refused:
    return Refused(Outcome.UNAVAILABLE, detail, wait_seconds=wait_seconds)


def _misanswered(detail: str) -> Refused:
    """The service answers, and for this account nonsense."""
    return Refused(Outcome.UNAVAILABLE, detail, person=True)
