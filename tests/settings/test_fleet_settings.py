"""The server of a fleet: how it is spelled, what is refused, and that no mistake repeats a secret."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from proxy.model import Endpoint
from proxy.settings import checks
from proxy.settings.addresses import ValkeyUrl, is_loopback, parse_valkey_url
from proxy.settings.models import Settings
from proxy.settings.reference import differences

Loaded = Callable[[str], Settings]
Mistakes = Callable[[str], list[str]]

URLS = [
    ("redis://127.0.0.1", ValkeyUrl(False, Endpoint("127.0.0.1", 6379), 0), "redis://127.0.0.1:6379/0"),
    ("redis://127.0.0.1:6380/3", ValkeyUrl(False, Endpoint("127.0.0.1", 6380), 3), "redis://127.0.0.1:6380/3"),
    ("redis://localhost/", ValkeyUrl(False, Endpoint("localhost", 6379), 0), "redis://localhost:6379/0"),
    ("rediss://v.example.org/15", ValkeyUrl(True, Endpoint("v.example.org", 6379), 15), "rediss://v.example.org:6379/15"),
    ("valkey://v.example.org", ValkeyUrl(False, Endpoint("v.example.org", 6379), 0), "redis://v.example.org:6379/0"),
    ("VALKEYS://v.example.org:1", ValkeyUrl(True, Endpoint("v.example.org", 1), 0), "rediss://v.example.org:1/0"),
    ("redis://[::1]", ValkeyUrl(False, Endpoint("::1", 6379), 0), "redis://[::1]:6379/0"),
    ("redis://[2001:db8::1]:7/9999", ValkeyUrl(False, Endpoint("2001:db8::1", 7), 9999), "redis://[2001:db8::1]:7/9999"),
    ("redis://valkey_1/0007", ValkeyUrl(False, Endpoint("valkey_1", 6379), 7), "redis://valkey_1:6379/7"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "url", "shown"), URLS)
def test_a_url(text: str, url: ValkeyUrl, shown: str) -> None:
    assert parse_valkey_url(text) == url
    assert str(url) == shown
    assert parse_valkey_url(shown) == url
    assert (url.host, url.port) == (url.endpoint.host, url.endpoint.port)


SECRET = "s3cr3t"
URL_MISTAKES: list[tuple[object, str]] = [
    (None, "expected a redis:// or rediss:// URL"),
    (6379, "expected a redis:// or rediss:// URL"),
    ("", "expected a redis:// or rediss:// URL"),
    ("127.0.0.1:6379", "expected a redis:// or rediss:// URL"),
    ("http://127.0.0.1", "expected a redis:// or rediss:// URL"),
    ("redis+sentinel://127.0.0.1", "expected a redis:// or rediss:// URL"),
    (f"{SECRET}://x", "expected a redis:// or rediss:// URL"),
    ("unix:///run/valkey.sock", "expected a redis:// or rediss:// URL"),
    ("redis:/127.0.0.1", "expected a redis:// or rediss:// URL"),
    (f"redis://:{SECRET}@127.0.0.1", "has no name or password in it"),
    (f"redis://ann:{SECRET}@127.0.0.1:6379/0", "has no name or password in it"),
    (f"redis://127.0.0.1/0@{SECRET}", "has no name or password in it"),
    (f"redis://127.0.0.1/0?password={SECRET}", "nothing behind host and port but the number of a database"),
    (f"redis://127.0.0.1/{SECRET}", "nothing behind host and port but the number of a database"),
    ("redis://127.0.0.1/0/1", "nothing behind host and port but the number of a database"),
    ("redis://127.0.0.1/-1", "nothing behind host and port but the number of a database"),
    ("redis://127.0.0.1/١", "nothing behind host and port but the number of a database"),
    ("redis://127.0.0.1/0\n", "nothing behind host and port but the number of a database"),
    ("redis://127.0.0.1/12345", "nothing behind host and port but the number of a database"),
    (f"redis://127.0.0.1#{SECRET}", "expected a host's name or IP address"),
    (f"redis://127.0.0.1?x={SECRET}", "expected a host's name or IP address"),
    ("redis://", "expected a host's name or IP address"),
    ("redis:///0", "expected a host's name or IP address"),
    ("redis:// ", "expected a host's name or IP address"),
    (f"redis://:{SECRET}", "expected a port between 0 and 65535"),
    (f"redis://v:{SECRET}", "expected a port between 0 and 65535"),
    ("redis://v:65536", "expected a port between 0 and 65535"),
    ("redis://v:0", "port 0 is no port to connect to"),
    ("redis://::1", "an IPv6 address is written in brackets"),
    ("redis://[127.0.0.1]", "expected an IPv6 address in the brackets"),
    ("redis://127.1", "expected a host's name or IP address"),
    ("redis://büchér.example", "ASCII form"),
    ("redis://a,b", "expected a host's name or IP address"),
]


@pytest.mark.parametrize(("value", "problem"), URL_MISTAKES)
def test_a_mistake_in_a_url(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_valkey_url(value)
    assert SECRET not in str(caught.value)
    assert "e.g." in str(caught.value) or "belong in" in str(caught.value) or "ASCII" in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_here(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "::", "0.0.0.0", "localhost.example.org", "valkey", "::ffff:10.0.0.1", ""]
)
def test_elsewhere(host: str) -> None:
    assert not is_loopback(host)


# --- the section ---


def test_without_a_word_there_is_none(loaded: Loaded, minimal: str) -> None:
    assert loaded(minimal).fleet is None


def test_a_fleet(loaded: Loaded, minimal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_SECRET", "together")
    text = (
        'fleet: {valkey: "rediss://v.example.org", name: porter-1, username: porter, '
        "password: {file: master.password}, ca: ca.pem, secret: {env: FLEET_SECRET}}\n"
    )
    settings = loaded(minimal + text)
    fleet = settings.fleet
    assert fleet is not None
    assert str(fleet.valkey) == "rediss://v.example.org:6379/0"
    assert (fleet.name, fleet.username, fleet.insecure) == ("porter-1", "porter", False)
    assert fleet.password is not None
    assert fleet.secret is not None
    assert (fleet.password.value, fleet.secret.value) == (b"s3cret", b"together")
    assert fleet.ca is not None
    shown = f"{settings!r} {fleet} {differences(settings)}"
    assert "s3cret" not in shown
    assert "together" not in shown


GOOD = [
    '{valkey: "redis://127.0.0.1:6379/0"}',
    '{valkey: "redis://localhost"}',
    '{valkey: "redis://[::1]:6380"}',
    '{valkey: "redis://10.0.0.1", insecure: true}',
    '{valkey: "rediss://10.0.0.1"}',
    '{valkey: "rediss://10.0.0.1", insecure: true}',
    '{valkey: "rediss://10.0.0.1", password: {file: master.password}}',
    '{valkey: "redis://127.0.0.1", name: a}',
]


@pytest.mark.parametrize("text", GOOD)
def test_good(loaded: Loaded, minimal: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "porter-0")
    assert loaded(f"{minimal}fleet: {text}\n").fleet is not None


WRONG = [
    ("{}", '10: fleet.valkey: missing; e.g. valkey: "rediss://valkey.example.org:6379/0"'),
    ('{valkey: "redis://10.0.0.1"}',
        "10: fleet.valkey: whoever is on the way could end sessions and hold users: rediss://, or insecure: true"),
    ('{valkey: "valkey://v.example.org:6379/1"}',
        "10: fleet.valkey: whoever is on the way could end sessions and hold users: rediss://, or insecure: true"),
    ('{valkey: "redis://127.0.0.1", ca: ca.pem}',
        "10: fleet.ca: there is no TLS with redis://; the URL of one with TLS begins with rediss://"),
    ('{valkey: "rediss://v.example.org", ca: none.pem}', '10: fleet.ca: no such file: "none.pem"'),
    ('{valkey: "redis://127.0.0.1", username: porter}',
        "10: fleet.username: nobody logs in without a password, e.g. password: {file: valkey.secret}"),
    ('{valkey: "redis://:s3cr3t@127.0.0.1"}',
        "10: fleet.valkey: a server's URL has no name or password in it; they belong in username and password"),
    ('{valkey: "redis://127.0.0.1", vlakey: 1}', '10: fleet.vlakey: unknown setting; did you mean "valkey"?'),
]  # fmt: skip


@pytest.mark.parametrize(("text", "mistake"), WRONG)
def test_a_mistake_is_told_where_it_is(mistakes: Mistakes, minimal: str, text: str, mistake: str) -> None:
    assert minimal.count("\n") == 9
    assert mistakes(f"{minimal}fleet: {text}\n") == [mistake]


@pytest.mark.parametrize("password", ["s3cr3t", "[s3cr3t]", "{text: s3cr3t}", "5"])
def test_a_password_is_never_written_there(mistakes: Mistakes, minimal: str, password: str) -> None:
    for key in ("password", "secret"):
        (found,) = mistakes(f'{minimal}fleet: {{valkey: "redis://127.0.0.1", {key}: {password}}}\n')
        assert found.startswith(f"10: fleet.{key}: ")
        assert "s3cr3t" not in found


NAMES = ["a b", "", "-a", "ä", "a/b", "@backend", "a\\nb", "a" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_name(mistakes: Mistakes, minimal: str, name: str) -> None:
    """Above all none that would be a field of another meaning at the server."""
    (found,) = mistakes(f'{minimal}fleet: {{valkey: "redis://127.0.0.1", name: "{name}"}}\n')
    assert found.startswith("10: fleet.name: ")


def test_a_file_that_is_no_certificate(mistakes: Mistakes, minimal: str) -> None:
    (found,) = mistakes(f'{minimal}fleet: {{valkey: "rediss://v.example.org", ca: users.yaml}}\n')
    assert found.startswith("10: fleet.ca: ")


@pytest.mark.parametrize("hostname", ["porter-0", "porter-0.porter.mail.svc.cluster.local", "0a1b2c3d4e5f"])
def test_the_machines_name_will_do(
    loaded: Loaded, minimal: str, hostname: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.socket, "gethostname", lambda: hostname)
    assert loaded(f'{minimal}fleet: {{valkey: "redis://127.0.0.1"}}\n').fleet is not None


def test_the_machines_name_will_not_do(
    loaded: Loaded, mistakes: Mistakes, minimal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks.socket, "gethostname", lambda: "a machine")
    (found,) = mistakes(f'{minimal}fleet: {{valkey: "redis://127.0.0.1"}}\n')
    assert found == '10: fleet: this machine is called "a machine", which is no name for a proxy; give fleet.name'
    assert loaded(f'{minimal}fleet: {{valkey: "redis://127.0.0.1", name: a}}\n').fleet is not None
    loaded(minimal)
