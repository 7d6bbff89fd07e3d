"""`user`: who the processes are to be."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from proxy.app.preflight import preflight
from proxy.settings.loader import load
from proxy.settings.mistakes import SettingsError

TEXT = """\
version: 1
user: {user}
listeners: [{{address: "127.0.0.1:1143", tls: none, trusted_networks: ["127.0.0.0/8"]}}]
identity: [{{backend: {{}}}}]
backends: {{servers: [{{name: a, url: "imap://127.0.0.1"}}]}}
"""

OWN = pwd.getpwuid(os.getuid()).pw_name
# user, who starts it, what is wrong
USERS = [
    (OWN, os.getuid(), None),
    ("nobody", 0, None),
    ("nobody", 1234, "user: only root can become another user; start it as root, or leave the key out"),
    ("nobody-knows-him", 0, 'user: this machine has no user "nobody-knows-him"'),
    ("null", 1234, None),
]


@pytest.mark.parametrize(("user", "starter", "mistake"), USERS)
def test_who_may_become_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, starter: int, mistake: str | None
) -> None:
    config = tmp_path / "porter.yaml"
    config.write_text(TEXT.format(user=user))
    settings = load(config)
    monkeypatch.setattr(os, "geteuid", lambda: starter)
    if mistake is None:
        preflight(settings, config)
        return
    with pytest.raises(SettingsError) as caught:
        preflight(settings, config)
    assert [str(each) for each in caught.value.mistakes] == [f"{config}:2: {mistake}"]
