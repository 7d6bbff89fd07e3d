from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from proxy.settings.certificates import facts, pair_problem
from proxy.settings.models import Settings

Mistakes = Callable[[str], list[str]]
MASTER = 'login: {method: master, name: porter, password: {file: master.password}, separator: "*"}'


def ending(minimal: str, more: str) -> str:
    """The minimal settings end within `backends`."""
    return f"{minimal}  {more}\n"


def test_tls_needs_a_certificate(mistakes: Mistakes, minimal: str) -> None:
    (found,) = mistakes(
        minimal.replace("tls: {certificates: [{certificate: tls.crt, private_key: tls.key}]}", "tls: {}")
    )
    assert found.startswith("3: listeners[0].tls: implicit needs a certificate, e.g. tls: {certificates: ")


def test_without_tls_no_certificate_is_needed(loaded: Callable[[str], Settings], minimal: str) -> None:
    text = minimal.replace("tls: {certificates: [{certificate: tls.crt, private_key: tls.key}]}", "tls: {}")
    assert loaded(text.replace("implicit", "none, trusted_networks: [10.0.0.0/8]")).tls.certificates == ()


def test_addresses_are_taken_once(mistakes: Mistakes, minimal: str) -> None:
    text = minimal.replace("tls: {", '  - {address: "[::]:993", tls: starttls}\ntls: {', 1)
    found = mistakes(text + 'admin: {address: "127.0.0.1:9142"}\nmetrics: {address: "127.0.0.1:9142"}\n')
    assert found == [
        '4: listeners[1].address: "[::]:993" is taken: listeners[0] listens there',
        '12: metrics.address: "127.0.0.1:9142" is taken: admin listens there',
    ]


def test_any_free_port_is_taken_many_times(loaded: Callable[[str], Settings], minimal: str) -> None:
    loaded(minimal + 'admin: {address: "127.0.0.1:0"}\nmetrics: {address: "127.0.0.1:0"}\n')


def test_names_of_servers_are_unique(mistakes: Mistakes, minimal: str) -> None:
    found = mistakes(ending(minimal, '  - {name: dovecot-1, url: "imap://10.0.0.12"}'))
    assert found == ['10: backends.servers[1].name: "dovecot-1" is the name of servers[0] already; names are unique']


def test_someone_has_weight(mistakes: Mistakes, minimal: str) -> None:
    (found,) = mistakes(minimal.replace("dovecot-1,", "dovecot-1, weight: 0,"))
    assert found == "8: backends.servers: every server has weight 0, drains or is down: no user could be placed"


@pytest.mark.parametrize("method", ["master", "authzid"])
@pytest.mark.parametrize("sources", ["- backend: {}", "- file: {path: users.yaml}\n  - backend: {}"])
def test_a_master_login_never_stands_in_for_the_users_password(
    mistakes: Mistakes, minimal: str, method: str, sources: str
) -> None:
    text = ending(minimal, MASTER.replace("master,", f"{method},"))
    (found,) = mistakes(text.replace("- file: {path: users.yaml}", sources))
    assert "backend: any password would open any account" in found
    assert f"with backends.login.method {method} the backend never sees the user's" in found


def test_a_master_login_behind_a_file_is_fine(loaded: Callable[[str], Settings], minimal: str) -> None:
    assert loaded(ending(minimal, MASTER)).backends.login.name == "porter"


def test_passing_the_password_on_behind_a_file_is_fine(loaded: Callable[[str], Settings], minimal: str) -> None:
    text = minimal.replace("backends:", "  - backend: {}\nbackends:")
    assert loaded(text).identity[1].backend is not None


@pytest.mark.parametrize("after", ["backend: {}", "file: {path: users.yaml}"])
def test_the_backend_decides_last(mistakes: Mistakes, minimal: str, after: str) -> None:
    text = minimal.replace("- file: {path: users.yaml}", f"- backend: {{}}\n  - {after}")
    (found,) = mistakes(text)
    assert found.startswith("6: identity[0].backend: backend decides for everyone, so what follows is never asked")


ENTRIES = [
    ('user_dn: "uid={local},dc=x"', "user_dn"),
    ('search: {base: dc=x, filter: "(uid={local})"}', "search.filter"),
    ('search: {base: dc=x, filter: "(&(objectClass=person)(|(uid={local})(cn={local})))"}', "search.filter"),
    # An entry may fit without the domain.
    ('search: {base: dc=x, filter: "(|(uid={local})(mail={name}))"}', "search.filter"),
    ('search: {base: dc=x, filter: "(&(uid={local})(!(o={domain})))"}', "search.filter"),
    ('user_dn: "uid={name},dc=x"', None),
    ('user_dn: "uid={local},ou={domain},dc=x"', None),
    ('search: {base: dc=x, filter: "(&(uid={local})(o={domain}))"}', None),
    ('search: {base: dc=x, filter: "(&(|(objectClass=a)(objectClass=b))(uid={local})(o={domain}))"}', None),
    ('search: {base: dc=x, filter: "(|(mail={name})(&(uid={local})(o={domain}))(mail={local}@{domain}))"}', None),
]


@pytest.mark.parametrize(("way", "key"), ENTRIES)
def test_an_entry_is_one_persons(
    mistakes: Mistakes, loaded: Callable[[str], Settings], minimal: str, way: str, key: str | None
) -> None:
    text = minimal.replace("file: {path: users.yaml}", f"ldap: {{urls: ['ldaps://h'], {way}}}")
    if key is None:
        assert loaded(text).identity[0].ldap
        return
    (found,) = mistakes(text)
    assert found.startswith(f"6: identity[0].ldap.{key}: whoever has the entry of ann could be ann of any domain; put ")
    for way_out in ("{name}", "{domain}", "attributes: {name: mail}", "names.default_domain"):
        assert way_out in found
    # Two of them:
    assert loaded(text + "names: {default_domain: example.org}\n").identity
    assert loaded(text.replace(f"{way}", f"{way}, attributes: {{name: mail}}")).identity


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ('ldap: {urls: ["ldaps://h"], user_dn: "uid={name}", timeout: 10s}', "ldap.timeout"),
        ("http: {url: https://h/, timeout: 10s}", "http.timeout"),
        ("oauth: {audience: imap, issuer: https://i, timeout: 10s}", "oauth.timeout"),
    ],
)
def test_a_source_answers_in_time(
    mistakes: Mistakes, loaded: Callable[[str], Settings], minimal: str, source: str, key: str
) -> None:
    text = ending(minimal.replace("file: {path: users.yaml}", source), MASTER)
    found = mistakes(text + "timeouts: {login: 10s}\n")
    assert found == [f"6: identity[0].{key}: 10s is not shorter than timeouts.login, 10s"]
    assert loaded(text + "timeouts: {login: 11s}\n").identity


def test_the_master_separator_is_refused_in_names(mistakes: Mistakes, minimal: str) -> None:
    (found,) = mistakes(ending(minimal, MASTER.replace('"*"', '"%"')))
    assert found.startswith('10: backends.login.separator: "%" differs from names.master_separator "*"')


def test_other_methods_use_no_separator(loaded: Callable[[str], Settings], minimal: str) -> None:
    loaded(ending(minimal, MASTER.replace('"*"', '"%"').replace("master,", "authzid,")))


LOGINS = [
    ("{method: master, name: porter}", "10: backends.login.method: master needs name and password of the master user"),
    (
        "{method: authzid, password: {file: master.password}}",
        "10: backends.login.method: authzid needs name and password of the master user",
    ),
    ("{name: porter}", "10: backends.login.name: belongs to method: master or authzid, which is not set"),
    (
        "{password: {file: master.password}}",
        "10: backends.login.password: belongs to method: master or authzid, which is not set",
    ),
    (
        "{method: master, name: porter, password: hunter2}",
        "10: backends.login.password: a secret is never written into the settings file; "
        "write {file: PATH} or {env: NAME}",
    ),
    (
        '{method: master, name: "a\\nb", password: {file: master.password}}',
        "10: backends.login.name: expected a name of 1 to 256 octets without control characters",
    ),
]


@pytest.mark.parametrize(("login", "mistake"), LOGINS)
def test_backend_login(mistakes: Mistakes, minimal: str, login: str, mistake: str) -> None:
    assert mistakes(ending(minimal, f"login: {login}")) == [mistake]


def test_the_answer_to_a_failed_login_comes_in_time(mistakes: Mistakes, minimal: str) -> None:
    found = mistakes(minimal + "timeouts: {login: 10s}\nlimits: {failed_login_delay: 10s}\n")
    assert found == ["11: limits.failed_login_delay: 10s is not shorter than timeouts.login, 10s"]


def test_ca_without_certificates(mistakes: Mistakes, minimal: str) -> None:
    (found,) = mistakes(ending(minimal, "tls: {ca: tls.key}"))
    assert found.startswith("10: backends.tls.ca: no certificate in PEM form: ")


PAIRS = [
    ("tls.crt", "tls.key", None, ""),
    ("tls.crt", "other.key", "private_key", "does not fit the certificate"),
    ("tls.crt", "tls.crt", "private_key", "no private key in PEM form"),
    ("tls.key", "tls.key", "certificate", "no certificate in PEM form"),
    ("users.yaml", "tls.key", "certificate", "no certificate in PEM form"),
    ("reversed.crt", "tls.key", "certificate", "the server's own certificate comes first"),
    ("tls.crt", "encrypted.key", "private_key", "the key is encrypted"),
    ("missing.crt", "tls.key", "certificate", "cannot be read"),
    ("tls.crt", "missing.key", "private_key", "cannot be read"),
]


@pytest.mark.parametrize(("certificate", "private_key", "key", "problem"), PAIRS)
def test_pair(folder: Path, certificate: str, private_key: str, key: str | None, problem: str) -> None:
    plain = load_pem_private_key((folder / "tls.key").read_bytes(), None)
    encryption = BestAvailableEncryption(b"passphrase")
    encrypted = plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    (folder / "encrypted.key").write_bytes(encrypted)
    found = pair_problem(folder / certificate, folder / private_key)
    if key is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == key
        assert found[1].startswith(problem)
        assert "PRIVATE KEY" not in found[1]


def test_facts(folder: Path) -> None:
    assert facts(folder / "tls.crt").names == ("mail.example.org", "192.0.2.1")
    # An authority has a subject and no alternative names.
    (name,) = facts(folder / "ca.pem").names
    assert "trustme" in name


def test_facts_of_an_end_date(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    end = datetime(2040, 1, 1, tzinfo=UTC)
    trustme.CA().issue_cert("a.example", not_after=end).cert_chain_pems[0].write_to_path(tmp_path / "a.crt")
    assert facts(tmp_path / "a.crt").not_after == end
