"""What is said at a backend, for each method of `backends.login`."""

from __future__ import annotations

import dataclasses
from base64 import b64decode
from typing import Any

import pytest

from proxy.backends.login import login_for
from proxy.imap.client import BackendDialogue
from proxy.imap.client_login import BackendLogin
from proxy.model import Account, Credentials, Identity
from proxy.outcome import Outcome, Refused
from proxy.settings.models import BackendLogin as LoginSettings
from proxy.settings.secret import Secret

MASTER = Secret("env", "MASTER", b"s3cret")
PORTER: dict[str, Any] = {"name": "porter", "password": MASTER}
ANN = Identity("ann@example.org", "file")
OFFERED = Credentials("PLAIN", "Ann", "ANN", b"her own")

XOAUTH2 = Credentials("XOAUTH2", "Ann", "ANN", b"her.token")
OAUTHBEARER = Credentials("OAUTHBEARER", "", "", b"her.token")
SCRAM = Credentials("SCRAM-SHA-256", "Ann", "", b"", proven=Account(ANN))
EXTERNAL = Credentials("EXTERNAL", "ann", "", b"")
REPLACED = dataclasses.replace(ANN, backend_secret=b"from the source")

PASSWORD: dict[str, Any] = {"method": "password"}
TOKEN: dict[str, Any] = {"method": "token"}
AS_MASTER: dict[str, Any] = {"method": "master", **PORTER}
AS_AUTHZID: dict[str, Any] = {"method": "authzid", **PORTER}

HER_OWN = BackendLogin("ann@example.org", b"her own")
FROM_THE_SOURCE = BackendLogin("ann@example.org", b"from the source")
MASTERED = BackendLogin("ann@example.org*porter", b"s3cret")
ACTING = BackendLogin("porter", b"s3cret", authorization_identity="ann@example.org")

SAID: list[tuple[str, dict[str, Any], Identity, Credentials, BackendLogin]] = [
    ("the user's own password", {}, ANN, OFFERED, HER_OWN),
    ("said aloud", PASSWORD, ANN, OFFERED, HER_OWN),
    ("a password from the source", PASSWORD, REPLACED, OFFERED, FROM_THE_SOURCE),
    ("a password from the source for a token", PASSWORD, REPLACED, XOAUTH2, FROM_THE_SOURCE),
    ("a password from the source for SCRAM", PASSWORD, REPLACED, SCRAM, FROM_THE_SOURCE),
    ("XOAUTH2", TOKEN, ANN, XOAUTH2, BackendLogin("ann@example.org", b"her.token", mechanism="XOAUTH2")),
    ("OAUTHBEARER", TOKEN, ANN, OAUTHBEARER, BackendLogin("ann@example.org", b"her.token", mechanism="OAUTHBEARER")),
    ("a token is not replaced", TOKEN, REPLACED, XOAUTH2,
     BackendLogin("ann@example.org", b"her.token", mechanism="XOAUTH2")),
    ("token, a client with a password", TOKEN, ANN, OFFERED, HER_OWN),
    ("token, a password from the source", TOKEN, REPLACED, OFFERED, FROM_THE_SOURCE),
    ("token, a password from the source for EXTERNAL", TOKEN, REPLACED, EXTERNAL, FROM_THE_SOURCE),
    ("master", AS_MASTER, ANN, OFFERED, MASTERED),
    ("master, another separator", {**AS_MASTER, "separator": "%%"}, ANN, OFFERED,
     BackendLogin("ann@example.org%%porter", b"s3cret")),
    *((f"master for {client.mechanism}", AS_MASTER, REPLACED, client, MASTERED)
      for client in (OFFERED, XOAUTH2, OAUTHBEARER, SCRAM, EXTERNAL)),
    ("authzid", AS_AUTHZID, ANN, OFFERED, ACTING),
    *((f"authzid for {client.mechanism}", AS_AUTHZID, REPLACED, client, ACTING)
      for client in (OFFERED, XOAUTH2, OAUTHBEARER, SCRAM, EXTERNAL)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "identity", "credentials", "said"),
    SAID,
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("starttls", [False, True])
def test_login_for(
    name: str,
    settings: dict[str, Any],
    identity: Identity,
    credentials: Credentials,
    said: BackendLogin,
    starttls: bool,
) -> None:
    """The canonical name, never the client's spelling; no secret in a repr, and nothing of the client's to a master."""
    made = login_for(identity, credentials, LoginSettings(**settings), starttls=starttls)
    assert made == dataclasses.replace(said, starttls=starttls)
    shown = repr(made)
    assert [secret for secret in ("s3cret", "her own", "her.token", "from the source") if secret in shown] == []


@pytest.mark.parametrize("settings", [AS_MASTER, AS_AUTHZID], ids=["master", "authzid"])
@pytest.mark.parametrize("credentials", [OFFERED, XOAUTH2, OAUTHBEARER], ids=lambda offered: offered.mechanism)
def test_nothing_that_the_client_has_shown_is_said_with_a_masters_login(
    settings: dict[str, Any], credentials: Credentials
) -> None:
    """Whatever the backend offers, and whatever it asks for on the way."""
    for offered in (b"", b"AUTH=PLAIN", b"AUTH=PLAIN SASL-IR", b"AUTH=XOAUTH2 AUTH=OAUTHBEARER AUTH=PLAIN SASL-IR"):
        dialogue = BackendDialogue(login_for(ANN, credentials, LoginSettings(**settings), starttls=False))
        dialogue.receive_data(b"* OK [CAPABILITY IMAP4rev1 " + offered + b"] .\r\n")
        dialogue.next_event()
        sent = dialogue.data_to_send()
        dialogue.receive_data(b"+ \r\n")
        dialogue.next_event()
        sent += dialogue.data_to_send()
        words = sent.split()
        said = sent + b"".join(b64decode(word) for word in words if len(word) > 11 and not word.startswith(b'"'))
        assert (b"s3cret" in said) == (settings is AS_MASTER or b"AUTH=PLAIN" in offered)
        assert credentials.secret not in said


NOTHING_TO_SHOW = [
    (PASSWORD, ANN, SCRAM),
    (PASSWORD, ANN, EXTERNAL),
    (PASSWORD, ANN, XOAUTH2),  # a token is no password
    (PASSWORD, ANN, OAUTHBEARER),
    (PASSWORD, dataclasses.replace(ANN, backend_secret=b""), OFFERED),
    (TOKEN, ANN, SCRAM),
    (TOKEN, ANN, EXTERNAL),
    (TOKEN, ANN, dataclasses.replace(XOAUTH2, secret=b"")),
]


@pytest.mark.parametrize(("settings", "identity", "credentials"), NOTHING_TO_SHOW)
def test_nothing_to_show(settings: dict[str, Any], identity: Identity, credentials: Credentials) -> None:
    with pytest.raises(Refused) as caught:
        login_for(identity, credentials, LoginSettings(**settings), starttls=False)
    assert caught.value.outcome is Outcome.UNAVAILABLE
    assert f"backends.login.method: {settings['method']} " in caught.value.detail
    assert credentials.mechanism in caught.value.detail
