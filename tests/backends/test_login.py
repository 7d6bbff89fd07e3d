"""What is said at a backend, for each method of `backends.login`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from proxy.backends.login import login_for
from proxy.imap.client import BackendLogin
from proxy.model import Credentials, Identity
from proxy.settings.models import BackendLogin as LoginSettings
from proxy.settings.secret import Secret

MASTER = Secret("env", "MASTER", b"s3cret")
PORTER: dict[str, Any] = {"name": "porter", "password": MASTER}
ANN = Identity("ann@example.org", "file")
OFFERED = Credentials("PLAIN", "Ann", "ANN", b"her own")

METHODS: list[tuple[str, dict[str, Any], BackendLogin]] = [
    ("the user's own password", {}, BackendLogin("ann@example.org", b"her own")),
    ("said aloud", {"method": "password"}, BackendLogin("ann@example.org", b"her own")),
    ("master", {"method": "master", **PORTER}, BackendLogin("ann@example.org*porter", b"s3cret")),
    (
        "master, another separator",
        {"method": "master", **PORTER, "separator": "%%"},
        BackendLogin("ann@example.org%%porter", b"s3cret"),
    ),
    (
        "authzid",
        {"method": "authzid", **PORTER},
        BackendLogin("porter", b"s3cret", authorization_identity="ann@example.org"),
    ),
]


@pytest.mark.parametrize(("name", "settings", "said"), METHODS)
@pytest.mark.parametrize("starttls", [False, True])
def test_login_for(name: str, settings: dict[str, Any], said: BackendLogin, starttls: bool) -> None:
    """The canonical name, never the client's spelling; no secret in a repr."""
    made = login_for(ANN, OFFERED, LoginSettings(**settings), starttls=starttls)
    assert made == dataclasses.replace(said, starttls=starttls)
    assert "s3cret" not in repr(made)
    assert "her own" not in repr(made)


@pytest.mark.parametrize("settings", [{"method": "master", **PORTER}, {"method": "authzid", **PORTER}])
def test_a_master_login_never_carries_the_users_password(settings: dict[str, Any]) -> None:
    assert login_for(ANN, OFFERED, LoginSettings(**settings), starttls=False).secret == b"s3cret"
