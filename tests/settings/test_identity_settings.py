"""The settings of identity sources: how their values are spelled, and what cannot stand together."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.settings.identity_values import (
    Map,
    parse_audience,
    parse_bind_name,
    parse_claim_map,
    parse_dn,
    parse_dn_template,
    parse_headers,
    parse_ldap_map,
    parse_ldap_url,
    parse_template,
    parse_web_url,
    without_query,
)
from proxy.settings.models import Settings

Mistakes = Callable[[str], list[str]]
Loaded = Callable[[str], Settings]

LDAP_URLS = [
    ("ldaps://ldap1.example.org", "ldaps", "ldap1.example.org:636"),
    ("LDAP://ldap1.example.org/", "ldap", "ldap1.example.org:389"),
    ("ldap://10.0.0.5:3389", "ldap", "10.0.0.5:3389"),
    ("ldap://[2001:db8::5]", "ldap", "[2001:db8::5]:389"),
    ("ldapi://%2Frun%2Fslapd%2Fldapi", "ldapi", "/run/slapd/ldapi"),
    ("ldapi://", "ldapi", "/run/slapd/ldapi"),
]


@pytest.mark.parametrize(("text", "scheme", "place"), LDAP_URLS)
def test_ldap_url(text: str, scheme: str, place: str) -> None:
    url = parse_ldap_url(text)
    assert (url.scheme, str(url.endpoint or url.socket)) == (scheme, place)


BAD_LDAP_URLS = [
    (5, "expected an ldap://"),
    ("ldap1.example.org", "expected an ldap://"),
    ("http://ldap1.example.org", "expected an ldap://"),
    ("ldap://ldap1.example.org/dc=example", "nothing but host and port"),
    ("ldap://cn=x:secret@ldap1", "nothing but host and port"),
    ("ldap://", "expected a host's name"),
    ("ldap://h:0", "port 0"),
    ("ldapi://run/slapd", "%2F for /"),
]


@pytest.mark.parametrize(("value", "problem"), BAD_LDAP_URLS)
def test_bad_ldap_url(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_ldap_url(value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["https://id.example.org", "https://id.example.org:8443/a/b?x=1", "http://127.0.0.1:9000/auth", "http://[::1]/x",
     "http://localhost/auth", "http://127.9.9.9/"],
)  # fmt: skip
def test_web_url(url: str) -> None:
    assert parse_web_url(url) == url


BAD_WEB_URLS = [
    (None, "expected a URL"),
    ("id.example.org", "expected an https:// URL"),
    ("ftp://id.example.org", "expected an https:// URL"),
    ("https://", "expected an https:// URL"),
    ("https://a b", "expected a URL"),
    ("https://h:99999/", "expected a URL"),
    ("https://h:0/", "port 0"),
    ("https://id..example.org", "expected a host's name"),
    ("https://.example.org/hunter2", "expected a host's name"),
    (f"https://{'x' * 64}.example.org", "expected a host's name"),
    ("https://-id.example.org?hunter2", "expected a host's name"),
    ("https://id.example.1/", "expected a host's name"),
    ("https://id%2eexample.org/", "expected a host's name"),
    ("https://id\\.example.org/", "expected a host's name"),
    ("https://[::1]x/", "expected"),
    ("https://user:hunter2@h/", "no name or password"),
    ("https://h/#hunter2", "nothing behind #"),
    ("http://id.example.org/hunter2", "http on loopback only"),
    ("http://10.0.0.1/", "http on loopback only"),
    ("http://localhost.example.org/", "http on loopback only"),
    ("http://127.0.0.1.example.org/", "http on loopback only"),
]


@pytest.mark.parametrize(("value", "problem"), BAD_WEB_URLS)
def test_bad_web_url(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_web_url(value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://h/a", "https://h/a?key=hunter2", "https://h/a?key=hunter2?"])
def test_without_query(url: str) -> None:
    assert without_query(url) == "https://h/a"


@pytest.mark.parametrize("template", ["(mail={name})", "(&(uid={local})(o={domain}))", "uid={local},dc=x", "{name}"])
def test_template(template: str) -> None:
    assert parse_template(template) == template


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("(mail=*)", "same person"),
        ("(o={domain})", "same person"),
        ("(mail={nam})", "^{nam} is not known; known in braces: {name}, {local}"),
        ("(mail={name}", None),
        ("(mail={name})}", "^a brace has no partner; known in braces"),
        ("{", "^a brace has no partner; known in braces"),
        ("{{name}}", "^a brace has no partner; known in braces"),
        ("", "expected text"),
        ("(mail={name})\n", "expected text"),
        (1, "expected text"),
    ],
)
def test_bad_template(value: object, problem: str | None) -> None:
    if problem is None:  # whether it is a filter is the directory's to say
        assert parse_template(value) == value
        return
    with pytest.raises(ValueError, match=problem):
        parse_template(value)


DNS = [
    "dc=org",
    "ou=people,dc=example,dc=org",
    "OU=Mail Users, DC=example, DC=org",
    "cn=Lučić\\, Ann+uid=a\\2cb,2.5.4.11=x,o=",
    "cn=a=b,cn=\\#x\\\\,dc=org",
]
BAD_DNS = [
    "people",
    "alice@example.org",
    "EXAMPLE\\alice",
    "ou=people;dc=org",
    "ou=people,",
    "ou=people,,dc=org",
    "=people,dc=org",
    "ou=people,dc",
    "o u=people",
    "ou=a\\xb",
    "ou=a\\",
    'cn="a",dc=org',
]


@pytest.mark.parametrize("text", DNS)
def test_dn(text: str) -> None:
    assert parse_dn(text) == text
    assert parse_dn_template(f"uid={{local}},{text}") == f"uid={{local}},{text}"


@pytest.mark.parametrize("text", BAD_DNS)
def test_bad_dn(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a distinguished name \(RFC 4514\), e\.g\. \"ou="):
        parse_dn(text)
    with pytest.raises(ValueError, match=r"^not a distinguished name \(RFC 4514\), e\.g\. \"uid={local},"):
        parse_dn_template(f"uid={{local}},{text}")


@pytest.mark.parametrize(
    "text", ["uid={local},dc=x", "uid={local}", "cn={name},ou={domain},o=x", "uid=u-{local}@x,o=x"]
)
def test_dn_template(text: str) -> None:
    assert parse_dn_template(text) == text


@pytest.mark.parametrize("text", ["{local}", "{name},ou=people", "(uid={local})", "{name}@example.org"])
def test_bad_dn_template(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a distinguished name"):
        parse_dn_template(text)


def test_maps() -> None:
    assert (
        parse_ldap_map({"name": "mail", "quota": "mailQuota;lang-en", "oid": "1.2.3"})["quota"] == "mailQuota;lang-en"
    )
    assert parse_claim_map({"backend": "https://example.org/host"})["backend"] == "https://example.org/host"
    for bad in ({"Name": "mail"}, {"name": "ma il"}, {"name": ""}, {"name": 3}, [], {"name": "a*"}):
        with pytest.raises(ValueError, match="expected"):
            parse_ldap_map(bad)


def test_a_map_does_not_change() -> None:
    given = {"name": "mail"}
    found = Map(given)
    given["name"] = "uid"
    assert dict(found) == {"name": "mail"}
    assert found == {"name": "mail"}
    assert hash(found) == hash(Map({"name": "mail"}))
    assert copy.deepcopy(found) is found


def test_headers(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    found = parse_headers({"X-Auth-Key": {"file": "key"}, "X-Site": "one"}, tmp_path)
    assert found["X-Site"] == "one"
    assert "s3cret" not in repr(found)
    (tmp_path / "odd").write_bytes(b"s3cret\r\x01\n")
    with pytest.raises(ValueError, match=r"^X-Auth-Key: no such file: "):
        parse_headers({"X-Site": "one", "X-Auth-Key": {"file": "none"}}, tmp_path)
    for bad in ({"X Y": "a"}, {"X": "a\r\nY: b"}, {"X": 3}, {"X": {"file": "odd"}}, [], {"X": "ä"}):
        with pytest.raises(ValueError, match=r"expected|no text") as caught:
            parse_headers(bad, tmp_path)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Auth-User", "Auth-User: Auth-\\* is what the service is asked"),
        ("auth-pass", "auth-pass: Auth-\\* is what"),
        ("AUTH-X", "AUTH-X: Auth-\\* is what"),
        ("Client-IP", "Client-IP: it tells the service about the client"),
        ("client-host", "client-host: it tells"),
        ("content-length", "content-length: HTTP itself sets it"),
        ("Transfer-Encoding", "Transfer-Encoding: HTTP itself"),
        ("Connection", "Connection: HTTP itself"),
    ],
)
def test_headers_that_are_not_the_settings(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_headers({"X-Site": "one", name: "s3cret"}, tmp_path)
    assert "s3cret" not in str(caught.value)


def test_headers_that_look_alike(tmp_path: Path) -> None:
    given = {"Host": "auth.example.org", "Authorization": "Bearer x", "X-Auth-User": "x", "X-Client-IP": "x"}
    assert dict(parse_headers(given, tmp_path)) == given


def test_audience() -> None:
    assert parse_audience("imap") == ("imap",)
    assert parse_audience(["imap", "webmail"]) == ("imap", "webmail")
    for bad in (None, 5, "", [], ["imap", ""], ["imap", 5], [["imap"]], {"imap": 1}, "a\n"):
        with pytest.raises(ValueError, match="expected"):
            parse_audience(bad)


def test_audience_is_written_as_it_was_read(loaded: Loaded, minimal: str) -> None:
    for written in ("imap", ["imap", "webmail"]):
        source = f"oauth: {{issuer: https://i, audience: {json.dumps(written)}}}"
        oauth = loaded(minimal.replace("file: {path: users.yaml}", source) + TOKEN).identity[0].oauth
        assert oauth is not None
        assert oauth.model_dump(mode="json")["audience"] == written


MASTER = "  login: {method: master, name: porter, password: {file: master.password}}\n"
TOKEN = "  login: {method: token}\n"
LDAP = 'ldap: {urls: ["ldaps://h"], search: {base: "dc=x", filter: "(uid={name})"}'
PLAIN = LDAP.replace("ldaps://h", "ldap://h")

TOGETHER = [
    (LDAP + "}", "", None),
    (LDAP.replace("dc=x", "people") + "}", "", "identity[0].ldap.search.base: not a distinguished name (RFC 4514)"),
    (LDAP + ", bind: {dn: porter}}", "", "identity[0].ldap.bind.dn: not a distinguished name (RFC 4514)"),
    (
        'ldap: {urls: ["ldaps://h"], user_dn: "{local}"}',
        "",
        'identity[0].ldap.user_dn: not a distinguished name (RFC 4514), e.g. "uid={local},ou=people,dc=example,dc=org"',
    ),
    (LDAP + ', user_dn: "uid={name}"}', "", "identity[0].ldap: expected one of search and user_dn"),
    ('ldap: {urls: ["ldaps://h"]}', "", "identity[0].ldap: expected one of search and user_dn"),
    (LDAP + ", bind: {}}", "", "identity[0].ldap.bind: expected dn and password, or external: true"),
    (LDAP + ", bind: {dn: cn=x}}", "", "identity[0].ldap.bind: expected dn and password, or external: true"),
    (LDAP + ", bind: {external: true}}", "", "identity[0].ldap.bind: external: true needs ldapi:// URLs"),
    (
        LDAP + ", bind: {external: true, dn: cn=x}}",
        "",
        "identity[0].ldap.bind.external: true: dn and password are not used",
    ),
    (
        LDAP + ", start_tls: true}",
        "",
        "identity[0].ldap.start_tls: belongs to ldap:// URLs alone",
    ),
    (
        PLAIN + "}",
        "",
        'identity[0].ldap.urls: "ldap://h": passwords would pass in clear; write ldaps://, or set start_tls: true; '
        "insecure: true accepts it",
    ),
    (
        LDAP.replace('"ldaps://h"', '"ldaps://h", "ldap://127.0.0.1", "ldap://192.0.2.1"') + "}",
        "",
        'identity[0].ldap.urls: "ldap://192.0.2.1": passwords would pass in clear',
    ),
    (PLAIN + ", start_tls: true}", "", None),
    (PLAIN + ", insecure: true}", "", None),
    (PLAIN.replace("//h", "//localhost") + "}", "", None),
    (PLAIN.replace("//h", "//127.0.0.1:3389") + "}", "", None),
    (PLAIN.replace("//h", "//[::1]") + "}", "", None),
    (PLAIN.replace("ldap://h", "ldapi://") + "}", "", None),
    (
        LDAP + ", timeout: 1s, connect_timeout: 2s}",
        "",
        "identity[0].ldap.connect_timeout: 2s is longer than timeout, 1s",
    ),
    (LDAP + ", timeout: 1s}", "", None),
    (LDAP + ", timeout: 1s, connect_timeout: 1s}", "", None),
    (LDAP + ", attributes: {scram: authPassword}}", MASTER, "identity[0].ldap.attributes: scram needs bind"),
    (
        LDAP + ", bind: {dn: cn=x, password: {file: master.password}}, attributes: {scram: authPassword}}",
        "",
        "identity[0].ldap.attributes: SCRAM shows no password that method password could pass on",
    ),
    (LDAP + ", ca: tls.key}", "", "identity[0].ldap.ca: no certificate in PEM form"),
    ("oauth: {audience: imap}", TOKEN, "identity[0].oauth: expected issuer"),
    ("oauth: {audience: imap, issuer: https://i}", TOKEN, None),
    ("oauth: {audience: imap, issuer: https://i}", MASTER, None),
    ("oauth: {audience: imap, issuer: https://i}", "", "identity[0].oauth: a token is no password"),
    ("oauth: {audience: imap, jwks_url: https://i}", TOKEN, "identity[0].oauth.jwks_url: needs issuer"),
    ("oauth: {audience: [imap, webmail], issuer: https://i}", TOKEN, None),
    ("oauth: {audience: [], issuer: https://i}", TOKEN, "identity[0].oauth.audience: expected text or a list of texts"),
    ("oauth: {audience: imap, issuer: https://i/a?b=c}", TOKEN, "identity[0].oauth.issuer: an issuer has no query"),
    (
        "oauth: {audience: imap, issuer: https://i, attributes: {name: email}}",
        TOKEN,
        "identity[0].oauth.attributes: name is not one of them: name_claim says which claim",
    ),
    ("oauth: {audience: imap, issuer: https://id..example.org}", TOKEN, "identity[0].oauth.issuer: expected a host's"),
    ('http: {url: https://h/, headers: {Auth-User: "x"}}', "", "identity[0].http.headers: Auth-User: Auth-* is what"),
    ("oauth: {audience: imap, issuer: https://i, leeway: 61s}", TOKEN, "identity[0].oauth.leeway: 61s is too long"),
    ("oauth: {audience: imap, issuer: https://i, scopes: [imap, mail]}", TOKEN, None),
    (
        "oauth: {audience: imap, issuer: https://i, scopes: [imap mail]}",
        TOKEN,
        "identity[0].oauth.scopes[0]: one scope per entry: [imap, mail]",
    ),
    (
        "oauth: {audience: imap, issuer: https://i}\n  - oauth: {audience: mail, issuer: https://i}",
        TOKEN,
        "identity[1].oauth.issuer: identity[0] has this issuer already, and its no is final; put both audiences",
    ),
    ("oauth: {audience: imap, issuer: https://i}\n  - oauth: {audience: imap, issuer: https://j}", TOKEN, None),
    ("backend: {}", TOKEN, None),
    ("backend:", TOKEN, "identity[0]: backend is empty; write backend: {}"),
    ("file:", TOKEN, "identity[0]: expected exactly one source here"),
    ("backend: {}", MASTER, "identity[0].backend: any password would open any account"),
    ("http: {url: http://127.0.0.1/}", "", None),
    ("http: {url: http://10.0.0.1/}", "", "identity[0].http.url: secrets and keys pass here"),
    ("{}", "", "identity[0]: expected exactly one source here"),
    ("{backend: {}, file: {path: users.yaml}}", "", "identity[0]: expected exactly one source here"),
]


@pytest.mark.parametrize(("source", "login", "mistake"), TOGETHER)
def test_sources(
    mistakes: Mistakes, loaded: Loaded, minimal: str, source: str, login: str, mistake: str | None
) -> None:
    text = minimal.replace("file: {path: users.yaml}", source) + login
    if mistake is None:
        assert loaded(text).identity
        return
    (found,) = mistakes(text)
    assert found.partition(": ")[2].startswith(mistake)


CERTIFICATES = "client_certificates: {ca: ca.pem}"


@pytest.mark.parametrize(
    ("listener", "login", "mistake"),
    [
        ("tls: implicit, " + CERTIFICATES, MASTER, None),
        ("tls: implicit, " + CERTIFICATES, "", "listeners[0].client_certificates: who comes with"),
        ("tls: implicit, " + CERTIFICATES.replace("ca.pem", "tls.key"), MASTER, "listeners[0].client_certificates.ca"),
        (
            'tls: none, trusted_networks: ["10.0.0.0/8"], ' + CERTIFICATES,
            MASTER,
            "listeners[0].client_certificates: there are no certificates without TLS",
        ),
    ],
)  # fmt: skip
def test_client_certificates(
    mistakes: Mistakes, loaded: Loaded, minimal: str, listener: str, login: str, mistake: str | None
) -> None:
    text = minimal.replace("tls: implicit", listener) + login
    if mistake is None:
        assert loaded(text).listeners[0].client_certificates is not None
        return
    (found,) = mistakes(text)
    assert found.partition(": ")[2].startswith(mistake)


def test_a_kind_of_source(loaded: Loaded, minimal: str) -> None:
    text = minimal.replace("backends:", "  - http: {url: https://h/}\n  - backend: {}\nbackends:")
    assert [source.kind for source in loaded(text).identity] == ["file", "http", "backend"]


@pytest.mark.parametrize("name", ["cn=porter,dc=example,dc=org", "porter@example.org", "EXAMPLE\\porter"])
def test_as_whom_to_bind(name: str) -> None:
    assert parse_bind_name(name) == name


@pytest.mark.parametrize("template", ["uid={local},ou={domain}", "{name}", "{local}@ad.example.org", "AD\\{local}"])
def test_whom_a_user_binds_as(template: str) -> None:
    assert parse_dn_template(template) == template


@pytest.mark.parametrize("value", ["porter", "porter@", "a@b@c", "EXAMPLE\\", "cn porter", "{local}"])
def test_nobody_to_bind_as(value: str) -> None:
    for parse in (parse_bind_name, parse_dn_template):
        with pytest.raises(ValueError, match=r"distinguished name|same person"):
            parse(value)
