"""What serving would refuse is told before anything is started."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.app.preflight import admin_tls, preflight
from proxy.settings.mistakes import SettingsError
from proxy.settings.models import Settings

# argon2id of a password that nobody knows
HASH = '"$argon2id$v=19$m=65536,t=3,p=4$HkA/zSL2W0qjZNjG7qMXMw$3/9eBlhXj8hzpHI6P6TwKBVfjUyj+v7TJmpMROiHq5Q"'
CONFIG = Path("porter.yaml")  # read only where a mistake stands in it
ANN = f"ann@example.org: {{hash: {HASH}}}\n"


def settings_of(folder: Path, *users: str, servers: int = 2, **sections: Any) -> Settings:
    """Settings with these users files, or with `backend: {}` if there are none."""
    sources: list[dict[str, Any]] = [{"backend": {}}]
    if users:
        sources = [{"file": {"path": f"users{number}.yaml"}} for number in range(len(users))]
    for number, text in enumerate(users):
        (folder / f"users{number}.yaml").write_text(text)
    value = {
        "version": 1,
        "listeners": [{"address": "127.0.0.1:1143", "tls": "none", "trusted_networks": ["127.0.0.0/8"]}],
        "identity": sources,
        "backends": {
            "servers": [{"name": f"dovecot-{n}", "url": "imap://127.0.0.1"} for n in range(1, servers + 1)],
        },
        **sections,
    }
    return Settings.model_validate(value, context={"folder": folder})


def mistakes_of(settings: Settings) -> list[str]:
    """As `file:line: key: problem`."""
    with pytest.raises(SettingsError) as caught:
        preflight(settings, CONFIG)
    return [f"{each.path.name}:{each.line}: {each.key}: {each.problem}" for each in caught.value.mistakes]


GOOD = [(), (ANN,), (ANN, ANN), (f"ann@example.org: {{hash: {HASH}, backend: dovecot-2}}\n",)]


@pytest.mark.parametrize("users", GOOD)
def test_nothing_is_said_of_what_can_be_served(tmp_path: Path, users: tuple[str, ...]) -> None:
    preflight(settings_of(tmp_path, *users), CONFIG)


def test_every_file_is_read_and_every_mistake_told(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "bob: {}\n", "- ann\n", "ann: {hash: x\n", ANN)
    first, second, third = mistakes_of(settings)
    assert first == "users0.yaml:1: bob: hash is missing; `imap-porter hash-password` makes one"
    assert second.startswith("users1.yaml:1: : expected at least one person")
    assert third.startswith("users2.yaml:2: : not valid YAML")


def test_a_file_that_is_gone_by_now(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, ANN)
    (tmp_path / "users0.yaml").unlink()
    assert mistakes_of(settings) == ["users0.yaml:0: : no such file"]


def test_a_file_that_is_named_twice_is_told_once(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "bob: {}\n")
    twice = settings.model_copy(update={"identity": settings.identity * 2})
    assert len(mistakes_of(twice)) == 1


def test_names_are_read_by_the_rules_of_the_settings(tmp_path: Path) -> None:
    text = f"Ann: {{hash: {HASH}}}\nann: {{hash: {HASH}}}\n"
    (mistake,) = mistakes_of(settings_of(tmp_path, text))
    assert mistake.startswith('users0.yaml:2: ann: the same person as "Ann" on line 1')
    preflight(settings_of(tmp_path, text, names={"lowercase": False}), CONFIG)


def test_a_backend_that_there_is_not(tmp_path: Path) -> None:
    text = f"{ANN}bob:\n  hash: {HASH}\n  backend: dovecot-3\ncarl: {{hash: {HASH}, backend: dovecot-1}}\n"
    assert mistakes_of(settings_of(tmp_path, text)) == [
        'users0.yaml:4: bob.backend: no such backend: "dovecot-3"; backends.servers has dovecot-1, dovecot-2'
    ]


def test_it_is_told_together_with_other_mistakes_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = f"bob: {{hash: {HASH}, backend: x}}\ncarl: {{}}\ndora: {{hash: {HASH}, backend: 5}}\neve: {{backend: y}}\n"
    assert [mistake.split(": ")[1] for mistake in mistakes_of(settings_of(tmp_path, text))] == [
        "bob.backend",
        "carl",
        "dora.backend",
        "eve",
        "eve.backend",
    ]


def test_of_many_backends_a_few_are_listed(tmp_path: Path) -> None:
    (mistake,) = mistakes_of(settings_of(tmp_path, f"bob: {{hash: {HASH}, backend: x}}\n", servers=8))
    assert mistake.endswith(" has dovecot-1, dovecot-2, dovecot-3, dovecot-4, dovecot-5 and 3 more")


KEYS = f"SCRAM-SHA-256$4096:{'QUFB' * 4}${'QUFB' * 10}QUE=:{'QUFB' * 10}QUE="


@pytest.mark.parametrize(("method", "told"), [("password", True), ("token", True), ("master", False)])
def test_keys_for_scram_need_a_backend_that_lets_the_proxy_in(tmp_path: Path, method: str, told: bool) -> None:
    (tmp_path / "master.password").write_text("s3cret")
    login = {"method": method}
    if method == "master":
        login |= {"name": "porter", "password": {"file": "master.password"}}  # type: ignore[dict-item]
    servers = [{"name": "dovecot-1", "url": "imap://127.0.0.1"}]
    settings = settings_of(
        tmp_path, ANN + f'bob@example.org: {{scram: "{KEYS}"}}\n', backends={"servers": servers, "login": login}
    )
    if told:
        (mistake,) = mistakes_of(settings)
        assert mistake.startswith("users0.yaml:2: bob@example.org.scram: SCRAM shows no password that backends.login")
    else:
        preflight(settings, CONFIG)


def test_a_filter_that_is_none(tmp_path: Path) -> None:
    config = tmp_path / "porter.yaml"
    ldap = 'ldap: {urls: ["ldaps://h"], search: {base: dc=x, filter: "((uid={name})"}}'
    config.write_text(f"identity:\n  - file: {{path: users0.yaml}}\n  - {ldap}\n")
    settings = settings_of(
        tmp_path,
        ANN,
        identity=[
            {"file": {"path": "users0.yaml"}},
            {"ldap": {"urls": ["ldaps://h"], "search": {"base": "dc=x", "filter": "((uid={name})"}}},
        ],
    )
    with pytest.raises(SettingsError) as caught:
        preflight(settings, config)
    (mistake,) = caught.value.mistakes
    assert str(mistake).startswith(f"{config}:3: identity[1].ldap.search.filter: not a filter")


TOKENS = [
    ("$2b$12$abc", "not an argon2id hash; `imap-porter hash-password` makes one"),
    ("$argon2id$v=19$m=65536,t=3,p=4$xx", "a damaged argon2id hash"),
    ("$argon2id$v=19$m=99999999,t=3,p=4$HkA/zSL2W0qjZNjG7qMXMw$3/9eBlhXj8hzpHI6P6TwKBVfjUyj", "asks for 99999999 KiB"),
]


@pytest.mark.parametrize(("hash_", "problem"), TOKENS, ids=[row[1] for row in TOKENS])
def test_hashes_of_tokens(tmp_path: Path, hash_: str, problem: str) -> None:
    config = tmp_path / "porter.yaml"
    config.write_text(f"admin:\n  tokens:\n    - name: ops\n      hash: {hash_!r}\n")
    settings = settings_of(tmp_path, admin={"tokens": [{"name": "ops", "hash": hash_}]})
    with pytest.raises(SettingsError) as caught:
        preflight(settings, config)
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.key) == (4, "admin.tokens[0].hash")
    assert mistake.problem.startswith(problem)


def test_tls_of_the_administrators_door(tmp_path: Path) -> None:
    assert admin_tls(settings_of(tmp_path), CONFIG) is None
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "admin.crt")
    issued.private_key_pem.write_to_path(tmp_path / "admin.key")
    tls = {"certificate": "admin.crt", "private_key": "admin.key"}
    assert admin_tls(settings_of(tmp_path, admin={"tls": tls}), CONFIG) is None, "there is no door"
    settings = settings_of(tmp_path, admin={"tls": tls, "address": "127.0.0.1:9143"})
    assert isinstance(admin_tls(settings, CONFIG), ssl.SSLContext)
    (tmp_path / "admin.key").write_text("")
    with pytest.raises(SettingsError, match=r"admin\.tls: the certificate cannot be used"):
        admin_tls(settings, CONFIG)
