from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from proxy.model import Endpoint
from proxy.settings.loader import MAX_BYTES, load
from proxy.settings.mistakes import SettingsError
from proxy.settings.models import Listener, Settings, Timeouts

Load = Callable[[str], Settings]
Mistakes = Callable[[str], list[str]]


def test_minimal_settings_have_safe_defaults(loaded: Load, minimal: str, folder: Path) -> None:
    settings = loaded(minimal)
    assert settings.version == 1
    assert settings.workers == "auto"
    assert settings.listeners[0].address == Endpoint("::", 993)
    assert settings.tls.certificates[0].private_key == folder / "tls.key"
    assert settings.tls.minimum_version == "1.2"
    assert settings.names.lowercase
    assert settings.names.default_domain is None
    assert settings.names.master_separator == "*"
    assert settings.identity[0].file is not None
    assert settings.identity[0].file.path == folder / "users.yaml"
    assert settings.identity[0].backend is None
    assert settings.routing.hash == "name"
    (server,) = settings.backends.servers
    assert (server.name, server.security, server.endpoint) == ("dovecot-1", "tls", Endpoint("10.0.0.11", 993))
    assert server.weight == 1
    assert settings.backends.tls.verify
    assert settings.backends.tls.ca is None
    assert settings.backends.login.method == "password"
    limits = settings.limits
    assert (limits.connections, limits.connections_per_address, limits.connections_per_user) == (20000, 200, 50)
    assert (limits.login_tries, limits.failed_login_delay) == (5, 2.0)
    assert list(settings.timeouts.model_dump().values()) == [15.0, 120.0, 5.0, 10.0, 1860.0, 30.0, 0.0, 86400.0]
    assert settings.relay.compress == "allow"
    assert settings.admin.address is None
    assert settings.metrics.address is None
    assert (settings.log.format, settings.log.level) == ("json", "info")


def test_every_key_set(loaded: Load, folder: Path) -> None:
    settings = loaded("""\
version: 1
workers: 4
listeners:
  - {address: "127.0.0.1:1143", tls: none, trusted_networks: ["127.0.0.0/8", "::1"]}
  - {address: "[::]:143", tls: starttls}
tls: {certificates: [{certificate: tls.crt, private_key: tls.key}], minimum_version: "1.3"}
names: {lowercase: false, default_domain: Example.ORG, master_separator: "%"}
identity: [{file: {path: users.yaml}}]
routing: {hash: domain}
backends:
  servers:
    - {name: a, url: "imap://10.0.0.1", weight: 0}
    - {name: b, url: "imap+starttls://mail.example.org:1143", weight: 1000}
  tls: {ca: ca.pem, verify: false}
  login: {method: master, name: porter, password: {file: master.password}, separator: "%"}
limits: {connections: 1, connections_per_address: 2, connections_per_user: 3, login_tries: 4, failed_login_delay: 0s}
timeouts: {handshake: 250ms, login: 1m, backend_connect: 1s, backend_login: 2s, idle: 30m, drain: 1h}
relay: {compress: refuse}
admin: {address: "127.0.0.1:9143"}
metrics: {address: "127.0.0.1:9142"}
log: {format: console, level: warning}
""")
    assert settings.workers == 4
    networks = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
    assert settings.listeners[0].trusted_networks == networks
    assert settings.names.default_domain == "example.org"
    assert [server.security for server in settings.backends.servers] == ["none", "starttls"]
    assert settings.backends.tls.ca == folder / "ca.pem"
    assert settings.backends.login.password is not None
    assert settings.backends.login.password.value == b"s3cret"
    assert settings.timeouts.handshake == 0.25
    assert settings.metrics.address == Endpoint("127.0.0.1", 9142)


def test_settings_do_not_change(loaded: Load, minimal: str) -> None:
    settings = loaded(minimal)
    with pytest.raises(ValidationError, match="frozen"):
        settings.limits.connections = 5  # type: ignore[misc]


def test_python_code_hands_over_typed_values() -> None:
    listener = Listener(address=Endpoint("127.0.0.1", 0), tls="none", trusted_networks=("127.0.0.0/8",))  # type: ignore[arg-type]
    assert listener.address.port == 0
    assert listener.trusted_networks == (ipaddress.ip_network("127.0.0.0/8"),)
    assert Timeouts(login=0.2).login == 0.2


def test_relative_paths_belong_to_the_file_not_the_process(
    folder: Path, minimal: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "porter.yaml").write_text(minimal)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    settings = load(Path(os.path.relpath(folder / "porter.yaml", elsewhere)))
    assert settings.tls.certificates[0].certificate == folder / "tls.crt"


def test_what_is_dumped_loads_again(loaded: Load, minimal: str) -> None:
    settings = loaded(minimal + "timeouts: {login: 90s}\nnames: {default_domain: example.org}\n")
    plain = settings.model_dump(mode="json")
    plain["identity"] = [{"file": plain["identity"][0]["file"]}]
    assert loaded(yaml.safe_dump(plain)) == settings


# What is put in place of a line of the minimal settings, or behind them, and the one mistake it makes.
ONE_MISTAKE = [
    ("unknown key", "limts: {}", '10: limts: unknown setting; did you mean "limits"?'),
    ("unknown key of a section", "log: {levle: info}", '10: log.levle: unknown setting; did you mean "level"?'),
    ("a key of another section", "certificates: []", "10: certificates: unknown setting here; it belongs in tls"),
    (
        "a top-level key in a section",
        "log: {workers: 2}",
        "10: log.workers: unknown setting here; it belongs in the top level",
    ),
    ("nothing near", "relay: {zzz: 1}", "10: relay.zzz: unknown setting; known here: compress, expiry_grace"),
    ("a later version's key", "fleet: {}", None),
    ("twice", "version: 1", "10: version: given twice; the first is on line 1"),
    ("an alias", "log: *x", None),
    ("an empty section", "limits:", "10: limits: empty; give it a value or remove the key"),
    ("an empty value", "log:\n  level:", "11: log.level: empty; give it a value or remove the key"),
    ("no section", "limits: 5", "10: limits: expected a section of keys, not a single value"),
    ("a list for a section", "limits: []", "10: limits: expected a section of keys, not a list"),
    (
        "a word for a number",
        "limits: {connections: many}",
        '10: limits.connections: expected a whole number, not "many"',
    ),
    ("a broken number", "limits: {connections: 1.5}", "10: limits.connections: expected a whole number, not 1.5"),
    ("truth for a number", "limits: {connections: true}", "10: limits.connections: expected a whole number, not true"),
    (
        "a list for a number",
        "limits: {connections: [1]}",
        "10: limits.connections: expected a whole number, not a list",
    ),
    ("too small", "limits: {login_tries: 0}", "10: limits.login_tries: 0 is too small; 1 is the least"),
    ("too large", "limits: {login_tries: 101}", "10: limits.login_tries: 101 is too large; 100 is the most"),
    ("a word for truth", "names: {lowercase: yes}", '10: names.lowercase: expected true or false, not "yes"'),
    ("a word for a choice", "routing: {hash: user}", '10: routing.hash: expected name or domain, not "user"'),
    (
        "a section for a choice",
        "routing: {hash: {}}",
        "10: routing.hash: expected name or domain, not a section of keys",
    ),
    (
        "a long word for a choice",
        f"routing: {{hash: {'x' * 99}}}",
        f'10: routing.hash: expected name or domain, not "{"x" * 59}…',
    ),
    ("a bare number for a duration", "timeouts: {login: 30}", "10: timeouts.login: say the unit, e.g. 30s"),
    ("an unknown unit", "timeouts: {login: 3min}", None),
    (
        "a short idle timeout",
        "timeouts:\n  drain: 1s\n  idle: 60s",
        "12: timeouts.idle: 60s is too short; an autologout timer is 30 minutes or more (RFC 9051 §5.4)",
    ),
    ("no timeout at all", "timeouts: {login: 0s}", "10: timeouts.login: 0s is too short; 1ms is the least"),
    ("a long timeout", "timeouts: {login: 366d}", "10: timeouts.login: 366d is too long; 365d is the most"),
    ("a number of workers", "workers: 0", "10: workers: expected auto or a number of processes between 1 and 1024"),
    ("a word for workers", "workers: many", "10: workers: expected auto or a number of processes between 1 and 1024"),
    ("truth for workers", "workers: true", "10: workers: expected auto or a number of processes between 1 and 1024"),
    ("an address", "metrics: {address: 9142}", None),
    ("a separator in every address", 'names: {master_separator: "@"}', None),
    ("no separator", 'names: {master_separator: ""}', None),
    ("a separator out of ASCII", 'names: {master_separator: "→"}', None),
    (
        "a domain",
        'names: {default_domain: "@example.org"}',
        "10: names.default_domain: expected a domain name, e.g. example.org",
    ),
    ("terminal escapes in a value", 'log: {level: "\\e[31m"}', None),
    ("terminal escapes in a key", 'log: {"\\e[31m": 1}', None),
]


@pytest.mark.parametrize(("name", "text", "mistake"), ONE_MISTAKE, ids=[row[0] for row in ONE_MISTAKE])
def test_one_mistake(mistakes: Mistakes, minimal: str, name: str, text: str, mistake: str | None) -> None:
    (found,) = mistakes(minimal + text + "\n")
    assert re.match(r"1[0-2]: [a-z].*: \S", found)
    if mistake is not None:
        assert found == mistake


REPLACED = [
    ("version: 1", "version: 2", "1: version: this program reads version 1 of the settings; write version: 1"),
    ("version: 1", "version: true", "1: version: this program reads version 1 of the settings; write version: 1"),
    ("version: 1", "relay: {}", "1: version: missing; e.g. version: 1"),
    ("tls: implicit", "tls: TLS", '3: listeners[0].tls: expected implicit, starttls or none, not "TLS"'),
    (", tls: implicit", "", "3: listeners[0].tls: missing; e.g. tls: implicit"),
    (
        "tls: implicit",
        "tls: none",
        '3: listeners[0].tls: none needs trusted_networks, e.g. ["127.0.0.0/8"]; passwords pass in clear here',
    ),
    (
        "tls: implicit",
        "tls: implicit, trusted_networks: [10.0.0.0/8]",
        "3: listeners[0].trusted_networks: belongs to tls: none; with tls: implicit everyone may connect",
    ),
    (
        "tls: implicit",
        "tls: none, trusted_networks: 10.0.0.0/8",
        "3: listeners[0].trusted_networks: expected a list, not a single value",
    ),
    (
        "tls: implicit",
        "tls: none, trusted_networks: [10.0.0.0/8, nowhere]",
        '3: listeners[0].trusted_networks[1]: expected a network, e.g. "10.0.0.0/8" or "::1/128"',
    ),
    ("[::]:993", "*:993", '3: listeners[0].address: "*" is no address; "[::]:993" listens on every one'),
    ("tls.crt", "certs/imap.pem", '4: tls.certificates[0].certificate: no such file: "certs/imap.pem"'),
    ("tls.crt", ".", '4: tls.certificates[0].certificate: a directory, not a file: "."'),
    ("tls.crt", "5", "4: tls.certificates[0].certificate: expected the path of a file"),
    (
        "private_key: tls.key",
        "private_keys: tls.key",
        '4: tls.certificates[0].private_keys: unknown setting; did you mean "private_key"?',
    ),
    (
        "private_key: tls.key}]",
        "private_key: tls.key}], minimum_version: 1.2",
        '4: tls.minimum_version: put it in quotes: "1.2"',
    ),
    ("users.yaml", "users.yml", '6: identity[0].file.path: no such file: "users.yml"'),
    ("file: {path: users.yaml}", "file:", None),
    ("file: {path: users.yaml}", "{}", None),
    ("file: {path: users.yaml}", "backend", "6: identity[0]: expected a section of keys, not a single value"),
    (
        "file: {path: users.yaml}",
        "backend: {a: 1}",
        "6: identity[0].backend.a: unknown setting; nothing may stand here",
    ),
    ("file: {path: users.yaml}", "{file: {path: users.yaml}, backend: {}}", None),
    (
        "file: {path: users.yaml}",
        "sql: {}",
        "6: identity[0].sql: unknown setting; known here: file, ldap, oauth, http, backend",
    ),
    ("- {name: dovecot-1", "- {name: a b", None),
    ("- {name: dovecot-1", "- {name: -a", None),
    ("- {name: dovecot-1", "- {name: 7", None),
    ("imaps://10.0.0.11", "pop3://10.0.0.11", None),
    ("imaps://10.0.0.11", "imaps://ann:hunter2@10.0.0.11", None),
    (
        '    - {name: dovecot-1, url: "imaps://10.0.0.11"}',
        "    []",
        '8: backends.servers: at least one is needed, e.g. [{name: dovecot-1, url: "imaps://10.0.0.11:993"}]',
    ),
    (
        "certificate: tls.crt",
        "certificat: tls.crt",
        '4: tls.certificates[0].certificat: unknown setting; did you mean "certificate"?',
    ),
]


@pytest.mark.parametrize(("old", "new", "mistake"), REPLACED)
def test_replaced(mistakes: Mistakes, minimal: str, old: str, new: str, mistake: str | None) -> None:
    assert minimal.count(old) == 1
    found = mistakes(minimal.replace(old, new))
    assert all(re.match(r"[0-9]+: [a-z].*: \S", line) for line in found)
    assert "hunter2" not in "".join(found)
    if mistake is not None:
        assert mistake in found
    if "did you mean" in (mistake or ""):
        assert len([line for line in found if ": missing; e.g. " in line]) == 1
        assert len(found) == 2
    else:
        assert len(found) == 1


def test_everything_is_told_at_once_in_the_order_of_the_file(mistakes: Mistakes, minimal: str) -> None:
    text = minimal.replace("tls.crt", "nowhere.crt").replace("dovecot-1,", "dovecot-1, wight: 2,")
    found = mistakes(text + "timeouts: {login: 2}\nlog: {format: xml}\nlog: {}\nrelay: *x\n")
    assert [line.split(": ")[:2] for line in found] == [
        ["4", "tls.certificates[0].certificate"],
        ["9", "backends.servers[0].wight"],
        ["10", "timeouts.login"],
        ["11", "log.format"],
        ["12", "log"],
        ["13", "relay"],
    ]


def test_checks_across_sections_run_beside_mistakes_elsewhere(mistakes: Mistakes, minimal: str) -> None:
    text = minimal.replace("tls.key", "other.key") + "log: {level: loud}\n"
    assert [line.split(": ")[1] for line in mistakes(text)] == ["tls.certificates[0].private_key", "log.level"]


def test_how_it_prints(folder: Path, minimal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("porter.yaml").write_text(minimal.replace("tls.crt", "certs/imap.pem").replace("servers:", "severs:"))
    with pytest.raises(SettingsError) as caught:
        load(Path("porter.yaml"))
    lines = str(caught.value).splitlines()
    assert lines[0] == 'porter.yaml:4: tls.certificates[0].certificate: no such file: "certs/imap.pem"'
    assert lines[-2] == 'porter.yaml:8: backends.severs: unknown setting; did you mean "servers"?'
    assert lines[-1] == "2 mistakes"


def test_escapes_from_the_file_are_shown_not_obeyed(folder: Path, minimal: str) -> None:
    (folder / "porter.yaml").write_text(minimal.replace("users.yaml", '"\\e[31m\\n.yaml"') + '"\\e": 1\n')
    with pytest.raises(SettingsError) as caught:
        load(folder / "porter.yaml")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


WHOLE_FILE = [
    ("", 1, "expected keys at the top level, beginning with version: 1"),
    ("- 1\n", 1, "expected keys at the top level, beginning with version: 1"),
    ("a: [\n", 2, "not valid YAML: "),
    ("#" * (MAX_BYTES + 1), 0, "larger than 1048576 bytes"),
]


@pytest.mark.parametrize(("text", "line", "problem"), WHOLE_FILE, ids=["empty", "a list", "not YAML", "too large"])
def test_a_file_that_is_no_settings(folder: Path, text: str, line: int, problem: str) -> None:
    (folder / "porter.yaml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(folder / "porter.yaml")
    (mistake,) = caught.value.mistakes
    assert (mistake.line, mistake.key) == (line, "")
    assert mistake.problem.startswith(problem)
    assert str(caught.value).endswith("\n1 mistake")


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(folder / "none.yaml")
    assert str(caught.value) == f"{folder}/none.yaml: no such file\n1 mistake"


def test_what_is_missing_comes_with_an_example(mistakes: Mistakes) -> None:
    found = mistakes("log: {}\n")
    assert [line.split(": ")[1] for line in found] == ["version", "listeners", "identity", "backends"]
    assert all("missing; e.g. " in line for line in found)


def test_the_file_is_unreadable(folder: Path, minimal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "porter.yaml"
    file.write_text(minimal)
    genuine = Path.open

    def refuse(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name in ("porter.yaml", "tls.key"):
            raise PermissionError(13, "Permission denied")
        return genuine(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SettingsError, match=r"porter\.yaml: cannot be read: Permission denied"):
        load(file)
    file.rename(folder / "other.yaml")
    with pytest.raises(SettingsError, match=r'private_key: cannot be read: "tls\.key": Permission denied'):
        load(folder / "other.yaml")
