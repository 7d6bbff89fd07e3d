"""The login at a backend, as tables: what it says, what is sent, how it ends; fed whole, by octet, cut anywhere."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.imap.client import BackendDialogue, DialogueEvent
from proxy.imap.client_login import BackendLogin
from proxy.imap.events import BackendLoggedIn, BackendRefused, BackendStartTls
from proxy.outcome import Outcome
from tests.imap.backend_table import Cut, Row, by_octet, converse, refused, whole

ANN = BackendLogin("ann", b"s3cret")
ACT = BackendLogin("porter", b"s3cret", authorization_identity="ann")
TLS = BackendLogin("ann", b"s3cret", starttls=True)
IDENTIFIED = BackendLogin("ann", b"s3cret", id_fields=(("name", "imap-porter"), ("x-proxy-ttl", "")))

OPEN = b"* OK [CAPABILITY IMAP4rev1 ID] ready\r\n"
PLAIN = b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] ready\r\n"
PLAIN_IR = b"* OK [CAPABILITY IMAP4rev1 auth=plain sasl-ir] ready\r\n"
DONE = b" OK [CAPABILITY IMAP4rev1 IDLE] Logged in\r\n"
LOGIN = b'p1 LOGIN "ann" "s3cret"\r\n'
ID = b'p1 ID ("name" "imap-porter" "x-proxy-ttl" NIL)\r\n'
AFTER = (b"IMAP4rev1", b"IDLE")
IN = BackendLoggedIn(AFTER, (), b"")
RESPONSE = b64encode(b"\0ann\0s3cret")
ACT_RESPONSE = b64encode(b"ann\0porter\0s3cret")


def secrets(secret: bytes) -> BackendLogin:
    return BackendLogin("ann", secret)


LOGGED_IN = [
    Row("one round trip", ANN, [(OPEN, LOGIN), (b"p1" + DONE, b"")], [IN]),
    Row(
        "lower case, untagged list, early octets",
        ANN,
        [
            (b"* ok [capability IMAP4rev1] hi\r\n", LOGIN),
            (b"* capability IMAP4rev1 IDLE\r\np1 ok in\r\n* BYE x\r\np2", b""),
        ],
        [BackendLoggedIn(AFTER, (), b"* BYE x\r\np2")],
    ),
    Row(
        "the greeting says nothing: asked first",
        ANN,
        [
            (b"* OK ready\r\n", b"p1 CAPABILITY\r\n"),
            (b"* CAPABILITY IMAP4rev1\r\np1 OK\r\n", b'p2 LOGIN "ann" "s3cret"\r\n'),
            (b"p2" + DONE, b""),
        ],
        [IN],
    ),
    Row(
        "the list in the OK to CAPABILITY",
        ANN,
        [
            (b"* OK\r\n", b"p1 CAPABILITY\r\n"),
            (b"p1 OK [CAPABILITY IMAP4rev1] .\r\n", b'p2 LOGIN "ann" "s3cret"\r\n'),
            (b"p2" + DONE, b""),
        ],
        [IN],
    ),
    Row(
        "asked again after the login; the list from before does not count",
        ANN,
        [
            (OPEN, LOGIN),
            (b"p1 OK in\r\n", b"p2 CAPABILITY\r\n"),
            (b"* CAPABILITY IMAP4rev1 IDLE\r\np2 OK .\r\n* 1 EXISTS\r\n", b""),
        ],
        [BackendLoggedIn(AFTER, (), b"* 1 EXISTS\r\n")],
    ),
    Row(
        "the backend does not say after the login either",
        ANN,
        [(OPEN, LOGIN), (b"p1 OK in\r\n", b"p2 CAPABILITY\r\n"), (b"p2 BAD what\r\n", b"")],
        [BackendLoggedIn((), (), b"")],
    ),
    Row(
        "alerts become notes, other lines are swallowed",
        ANN,
        [
            (b"* OK [ALERT] disk is full\r\n", b"p1 CAPABILITY\r\n"),
            (b"* CAPABILITY IMAP4rev1\r\np1 OK .\r\n", b'p2 LOGIN "ann" "s3cret"\r\n'),
            (
                b"* OK still here {9}\r\n* NO [alert] hm\r\n* OK [ALERT] bad\0\r\n* 3 EXISTS\r\np2 OK [ALERT] late\r\n",
                b"p3 CAPABILITY\r\n",
            ),
            (b"p3" + DONE, b""),
        ],
        [
            BackendLoggedIn(
                AFTER, (b"* OK [ALERT] disk is full\r\n", b"* NO [alert] hm\r\n", b"* OK [ALERT] late\r\n"), b""
            )
        ],
    ),
    Row("a lone LF ends a line", ANN, [(OPEN.replace(b"\r", b""), LOGIN), (b"p1 OK [CAPABILITY A] .\n", b"")],
        [BackendLoggedIn((b"A",), (), b"")]),
]  # fmt: skip

IDS = [
    Row(
        "ID and LOGIN leave together; its answer has literals",
        IDENTIFIED,
        [
            (OPEN, ID + b'p2 LOGIN "ann" "s3cret"\r\n'),
            (b'* ID ("name" {10}\r\np1 NO\r\np2  "v" {0}\r\n)\r\np1 OK .\r\n', b""),
            (b"p2" + DONE, b""),
        ],
        [IN],
    ),
    Row(
        "NO to ID changes nothing",
        IDENTIFIED,
        [(OPEN, ID + b'p2 LOGIN "ann" "s3cret"\r\n'), (b"p1 NO go away\r\np2" + DONE, b"")],
        [IN],
    ),
    Row(
        "BAD to ID changes nothing, and its capability is from before the login",
        IDENTIFIED,
        [
            (OPEN, ID + b'p2 LOGIN "ann" "s3cret"\r\n'),
            (b"* CAPABILITY OLD\r\np1 BAD what\r\np2 OK .\r\n", b"p3 CAPABILITY\r\n"),
            (b"p3" + DONE, b""),
        ],
        [IN],
    ),
    Row(
        "CAPABILITY and ID leave together, LOGIN before the answer to ID",
        IDENTIFIED,
        [
            (b"* OK hi\r\n", b"p1 CAPABILITY\r\n" + ID.replace(b"p1", b"p2")),
            (b"* CAPABILITY IMAP4rev1\r\np1 OK .\r\n", b'p3 LOGIN "ann" "s3cret"\r\n'),
            (b"* ID NIL\r\np2 OK .\r\n", b""),
            (b"p3" + DONE, b""),
        ],
        [IN],
    ),
    Row(
        "what waits for a continuation request waits for ID too",
        BackendLogin("ann", b"s3\xffcret", id_fields=(("name", 'a"\\ü\r\n'),)),
        [
            (OPEN, b'p1 ID ("name" "a\\"\\\\???")\r\n'),
            (b"p1 OK .\r\n", b'p2 LOGIN "ann" {7}\r\n'),
            (b"+ go\r\n", b"s3\xffcret\r\n"),
            (b"p2" + DONE, b""),
        ],
        [IN],
    ),
    Row(
        "bounds of ID",
        BackendLogin(
            "ann",
            b"pw",
            id_fields=(("f" * 31, "v"), ("n", "v" * 1025), ("f" * 30, "v" * 1024), *((("n", "v"),) * 30)),
        ),
        [
            (
                OPEN,
                b'p1 ID ("'
                + b"f" * 30
                + b'" "'
                + b"v" * 1024
                + b'"'
                + b' "n" "v"' * 29
                + b')\r\np2 LOGIN "ann" "pw"\r\n',
            ),
            (b"p1 OK .\r\np2" + DONE, b""),
        ],
        [IN],
    ),
    Row(
        "what no line has room for is left out, and what follows is not",
        BackendLogin(
            "ann", b"pw", id_fields=(*(("n", "v" * 1000),) * 7, ("x", '"' * 1024), ("y", "v" * 1024), ("z", "v"))
        ),
        [
            (
                OPEN,
                b"p1 ID ("
                + (b'"n" "' + b"v" * 1000 + b'" ') * 7
                + b'"y" "'
                + b"v" * 1024
                + b'" "z" "v")\r\np2 LOGIN "ann" "pw"\r\n',
            ),
            (b"p1 OK .\r\np2" + DONE, b""),
        ],
        [IN],
    ),
    Row(
        "nothing fits",
        BackendLogin("ann", b"pw", id_fields=(("x", "v" * 1025),)),
        [(OPEN, b'p1 ID NIL\r\np2 LOGIN "ann" "pw"\r\n'), (b"p1 OK .\r\np2" + DONE, b"")],
        [IN],
    ),
    Row(
        "ID is not answered, and the login has not begun",
        BackendLogin("ann", b"s3\xffcret", id_fields=(("a", "b"),)),
        [(OPEN, b'p1 ID ("a" "b")\r\n'), (b"EOF", b"")],
        [refused("capability", "the backend closed the connection at step capability")],
    ),
    Row(
        "ID is not answered, and the login may have come to be",
        IDENTIFIED,
        [(OPEN, ID + b'p2 LOGIN "ann" "s3cret"\r\n'), (b"EOF", b"")],
        [refused("id", "the backend closed the connection at step id")],
    ),
    Row(
        "CAPABILITY is not answered, and the login has not begun",
        IDENTIFIED,
        [(b"* OK hi\r\n", b"p1 CAPABILITY\r\n" + ID.replace(b"p1", b"p2")), (b"EOF", b"")],
        [refused("capability", "the backend closed the connection at step capability")],
    ),
    Row(
        "gone before it was asked: the login has not begun",
        IDENTIFIED,
        [(OPEN + b"* BYE full\r\n", b"")],
        [refused("greeting", "said BYE: full")],
    ),
    Row(
        "gone behind the list it was asked for",
        ANN,
        [(b"* OK\r\n", b"p1 CAPABILITY\r\n"), (b"* CAPABILITY IMAP4rev1\r\np1 OK .\r\n* BYE full\r\n", b"")],
        [refused("capability", "said BYE: full")],
    ),
    Row(
        "the user's session ends before it has told its list",
        ANN,
        [(OPEN, LOGIN), (b"p1 OK in\r\n", b"p2 CAPABILITY\r\n"), (b"* BYE Internal error\r\n", b"")],
        [refused("login", "said BYE: Internal error")],
    ),
]

STRINGS = [
    Row("escapes", BackendLogin('a"n\\n', b'"\\'),
        [(OPEN, b'p1 LOGIN "a\\"n\\\\n" "\\"\\\\"\r\n'), (b"p1" + DONE, b"")], [IN]),
    Row("1000 octets are quoted", secrets(b"x" * 1000),
        [(PLAIN, b'p1 LOGIN "ann" "' + b"x" * 1000 + b'"\r\n'), (b"p1" + DONE, b"")], [IN]),
    Row("1001 octets go by PLAIN", secrets(b"x" * 1001),
        [(PLAIN_IR, b"p1 AUTHENTICATE PLAIN " + b64encode(b"\0ann\0" + b"x" * 1001) + b"\r\n"), (b"p1" + DONE, b"")],
        [IN]),
    Row("UTF-8 goes by PLAIN", BackendLogin("änn", b"pw"),
        [(PLAIN_IR, b"p1 AUTHENTICATE PLAIN " + b64encode("\0änn\0pw".encode()) + b"\r\n"), (b"p1" + DONE, b"")], [IN]),
    Row("CR and LF of a secret in base64", secrets(b"a\r\nb"),
        [(PLAIN_IR, b"p1 AUTHENTICATE PLAIN " + b64encode(b"\0ann\0a\r\nb") + b"\r\n"), (b"p1" + DONE, b"")], [IN]),
    Row("CR and LF of a secret in a literal", secrets(b"a\r\nb"),
        [(OPEN, b'p1 LOGIN "ann" {4}\r\n'), (b"+\r\n", b"a\r\nb\r\n"), (b"p1" + DONE, b"")], [IN]),
    Row("both as synchronizing literals", BackendLogin("änn", b"\xff"),
        [(OPEN, b"p1 LOGIN {4}\r\n"), (b"+ \r\n", "änn".encode() + b" {1}\r\n"), (b"* OK .\r\n+go\r\n", b"\xff\r\n"),
         (b"p1" + DONE, b"")], [IN]),
    Row("the name as a literal, the secret quoted", BackendLogin("änn", b"pw"),
        [(OPEN, b"p1 LOGIN {4}\r\n"), (b"+ \r\n", "änn".encode() + b' "pw"\r\n'), (b"p1" + DONE, b"")], [IN]),
    Row("LITERAL+", BackendLogin("änn", b"\xff" * 5000),
        [(b"* OK [CAPABILITY LITERAL+] .\r\n",
          b"p1 LOGIN {4+}\r\n" + "änn".encode() + b" {5000+}\r\n" + b"\xff" * 5000 + b"\r\n"),
         (b"p1" + DONE, b"")], [IN]),
    Row("LITERAL- up to 4096", secrets(b"\xff" * 4096),
        [(b"* OK [CAPABILITY LITERAL-] .\r\n", b'p1 LOGIN "ann" {4096+}\r\n' + b"\xff" * 4096 + b"\r\n"),
         (b"p1" + DONE, b"")], [IN]),
    Row("LITERAL- beyond 4096", BackendLogin("änn", b"\xff" * 4097),
        [(b"* OK [CAPABILITY LITERAL-] .\r\n", b"p1 LOGIN {4+}\r\n" + "änn".encode() + b" {4097}\r\n"),
         (b"+ \r\n", b"\xff" * 4097 + b"\r\n"), (b"p1" + DONE, b"")], [IN]),
    Row("NO instead of a continuation request", secrets(b"\xff"),
        [(OPEN, b'p1 LOGIN "ann" {1}\r\n'), (b"p1 NO [LIMIT] too big\r\n", b"")],
        [refused("login", "login refused: NO [LIMIT] too big", Outcome.LIMIT)]),
    Row("OK instead of a continuation request", secrets(b"\xff"),
        [(OPEN, b'p1 LOGIN "ann" {1}\r\n'), (b"p1" + DONE, b"")],
        [refused("login", "an OK to a command that was not complete")]),
]  # fmt: skip

LITERALS = b"* OK [CAPABILITY IMAP4rev1 LITERAL+] .\r\n"


def too_long(octets: int) -> list[DialogueEvent]:
    detail = f"name and password make {octets} octets, more than 8192"
    return [refused("login", detail, Outcome.AUTHENTICATION_FAILED)]


LONG = [
    Row("PLAIN: 8188 octets of base64", secrets(b"x" * 6136),
        [(PLAIN, b"p1 AUTHENTICATE PLAIN\r\n"), (b"+ \r\n", b64encode(b"\0ann\0" + b"x" * 6136) + b"\r\n"),
         (b"p1" + DONE, b"")], [IN]),
    Row("PLAIN: 8192 octets of base64, and a CR", secrets(b"x" * 6137), [(PLAIN_IR, b"")], too_long(8193)),
    Row("PLAIN: a long name", BackendLogin("n" * 6138, b"pw"), [(PLAIN, b"")], too_long(8193)),
    Row("LOGIN: 8192 octets", secrets(b"\xff" * 8171),
        [(LITERALS, b'p1 LOGIN "ann" {8171+}\r\n' + b"\xff" * 8171 + b"\r\n"), (b"p1" + DONE, b"")], [IN]),
    Row("LOGIN: 8193 octets", secrets(b"\xff" * 8172), [(LITERALS, b"")], too_long(8193)),
    Row("LOGIN: a long name, and ID", BackendLogin("ü" * 4090, b"pw", id_fields=(("a", "b"),)), [(OPEN, b"")],
        too_long(8197)),
]  # fmt: skip

MECHANISMS = [
    Row("authzid with an initial response", ACT,
        [(PLAIN_IR, b"p1 AUTHENTICATE PLAIN " + ACT_RESPONSE + b"\r\n"), (b"p1" + DONE, b"")], [IN]),
    Row("authzid without", ACT,
        [(PLAIN, b"p1 AUTHENTICATE PLAIN\r\n"), (b"+ \r\n", ACT_RESPONSE + b"\r\n"), (b"p1" + DONE, b"")], [IN]),
    Row("a bare plus", ACT,
        [(PLAIN, b"p1 AUTHENTICATE PLAIN\r\n"), (b"+\r\n", ACT_RESPONSE + b"\r\n"), (b"p1" + DONE, b"")], [IN]),
    Row("authzid and no AUTH=PLAIN", ACT, [(OPEN, b"")], [refused("login", "the backend offers no AUTH=PLAIN")]),
    Row("LOGINDISABLED with PLAIN", ANN,
        [(b"* OK [CAPABILITY LOGINDISABLED AUTH=PLAIN SASL-IR] .\r\n", b"p1 AUTHENTICATE PLAIN " + RESPONSE + b"\r\n"),
         (b"p1" + DONE, b"")], [IN]),
    Row("LOGINDISABLED without", IDENTIFIED, [(b"* OK [CAPABILITY logindisabled] .\r\n", b"")],
        [refused("login", "the backend offers no AUTH=PLAIN, and has LOGINDISABLED")]),
    Row("a second challenge", ACT,
        [(PLAIN_IR, b"p1 AUTHENTICATE PLAIN " + ACT_RESPONSE + b"\r\n"), (b"+ Zm9v\r\n", b"")],
        [refused("login", "a continuation request for a command that expects none")]),
    Row("a continuation request for LOGIN", ANN, [(OPEN, LOGIN), (b"+ idling\r\n", b"")],
        [refused("login", "a continuation request for a command that expects none")]),
]  # fmt: skip

STARTTLS = [
    Row("offered", TLS,
        [(b"* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] .\r\n", b"p1 STARTTLS\r\n"),
         (b"p1 OK go\r\n", b"p2 CAPABILITY\r\n"),
         (b"* CAPABILITY IMAP4rev1\r\np2 OK .\r\n", b'p3 LOGIN "ann" "s3cret"\r\n'), (b"p3" + DONE, b"")],
        [BackendStartTls(), IN]),
    Row("the greeting says nothing: tried unasked, and what was said in clear is forgotten", TLS,
        [(b"* OK [ALERT] forged\r\n", b"p1 STARTTLS\r\n"),
         (b"* CAPABILITY AUTH=PLAIN\r\np1 OK go\r\n", b"p2 CAPABILITY\r\n"),
         (b"p2 OK [CAPABILITY IMAP4rev1] .\r\n", b'p3 LOGIN "ann" "s3cret"\r\n'), (b"p3" + DONE, b"")],
        [BackendStartTls(), IN]),
    Row("absent", TLS, [(OPEN, b"")], [refused("starttls", "the backend offers no STARTTLS")]),
    Row("refused", TLS, [(b"* OK .\r\n", b"p1 STARTTLS\r\n"), (b"p1 NO not now\r\n", b"")],
        [refused("starttls", "STARTTLS refused: NO not now")]),
    Row("not understood", TLS, [(b"* OK .\r\n", b"p1 STARTTLS\r\n"), (b"p1 BAD what\r\n", b"")],
        [refused("starttls", "STARTTLS refused: BAD what")]),
    Row("closed", TLS, [(b"* OK .\r\n", b"p1 STARTTLS\r\n"), (b"EOF", b"")],
        [refused("starttls", "the backend closed the connection at step starttls")]),
    Row("no list inside TLS", TLS,
        [(b"* OK .\r\n", b"p1 STARTTLS\r\n"), (b"p1 OK go\r\n", b"p2 CAPABILITY\r\n"), (b"p2 OK .\r\n", b"")],
        [BackendStartTls(), refused("capability", "no capability list: OK .")]),
]  # fmt: skip


def failing(name: str, said: bytes, detail: str, outcome: Outcome = Outcome.UNAVAILABLE) -> Row:
    """A backend that says `said` after LOGIN."""
    return Row(name, ANN, [(OPEN, LOGIN), (said, b"")], [refused("login", detail, outcome)])


def greeting(name: str, said: bytes, detail: str) -> Row:
    return Row(name, ANN, [(said, b"")], [refused("greeting", detail)])


GREETINGS = [
    greeting("PREAUTH", b"* PREAUTH in as root\r\n", "a greeting that refuses: * PREAUTH in as root"),
    greeting("BYE", b"* BYE [UNAVAILABLE] later\r\n", "a greeting that refuses: * BYE [UNAVAILABLE] later"),
    greeting("NO", b"* NO\r\n", "no IMAP greeting: * NO"),
    greeting("POP3", b"+OK ready\r\n", "no IMAP greeting: +OK ready"),
    greeting("HTTP", b"HTTP/1.1 400 Bad\xff\x1b[0m\r\n\r\n", "no IMAP greeting: HTTP/1.1 400 Bad??[0m"),
    greeting("a tagged line", b"p1 OK in\r\n", "no IMAP greeting: p1 OK in"),
    greeting("an empty line", b"\r\n", "no IMAP greeting: "),
    greeting("a long line", b"* OK " + b"x" * 8188, "a line is longer than 8192 octets"),
    greeting("a TLS alert", b"\x15\x03\x01\0\x02\x02\x46EOF", "the backend closed the connection at step greeting"),
    greeting("nothing", b"EOF", "the backend closed the connection at step greeting"),
]

FAILURES = [
    failing("wrong password", b"p1 NO [AUTHENTICATIONFAILED] no\r\n", "login refused: NO [AUTHENTICATIONFAILED] no",
            Outcome.AUTHENTICATION_FAILED),
    failing("no code", b"p1 NO\r\n", "login refused: NO ", Outcome.AUTHENTICATION_FAILED),
    failing("unknown code", b"p1 NO [ALERT] no\r\n", "login refused: NO [ALERT] no", Outcome.AUTHENTICATION_FAILED),
    failing("lower case", b"p1 no [inuse] no\r\n", "login refused: NO [inuse] no", Outcome.IN_USE),
    *(
        failing(code, f"p1 NO [{code}] no\r\n".encode(), f"login refused: NO [{code}] no", outcome)
        for code, outcome in {
            "AUTHORIZATIONFAILED": Outcome.AUTHORIZATION_FAILED,
            "UNAVAILABLE": Outcome.UNAVAILABLE,
            "LIMIT": Outcome.LIMIT,
            "INUSE": Outcome.IN_USE,
            "EXPIRED": Outcome.EXPIRED,
            "CONTACTADMIN": Outcome.CONTACT_ADMIN,
            "PRIVACYREQUIRED": Outcome.UNAVAILABLE,
            "SERVERBUG": Outcome.UNAVAILABLE,
            "CLIENTBUG": Outcome.UNAVAILABLE,
            "CORRUPTION": Outcome.UNAVAILABLE,
        }.items()
    ),
    failing("referral", b"p1 NO [REFERRAL imap://b/] no\r\n",
            "a referral, which is not followed: NO [REFERRAL imap://b/] no"),
    failing("BAD", b"p1 BAD [AUTHENTICATIONFAILED] what\r\n", "login not understood: BAD [AUTHENTICATIONFAILED] what"),
    failing("BYE", b"* BYE [LIMIT] tired\r\np1 OK in\r\n", "said BYE: [LIMIT] tired"),
    failing("BYE with a referral", b"* BYE [REFERRAL imap://b/] .\r\n",
            "said BYE with a referral: [REFERRAL imap://b/] ."),
    failing("another tag", b"a1 OK in\r\n", "a line that answers nothing: a1 OK in"),
    failing("another status", b"p1 MAYBE\r\n", "a line that answers nothing: p1 MAYBE"),
    failing("the tag in another case", b"P1 OK in\r\n", "a line that answers nothing: P1 OK in"),
    failing("closed", b"* OK .\r\np1 OKEOF", "the backend closed the connection at step login"),
    failing("closed in a literal", b"* ID ({9}\r\nabcEOF", "the backend closed the connection at step login"),
    failing("a long line", b"* 1 " + b"x" * 9000 + b"\r\n", "a line is longer than 8192 octets"),
    failing("a chattering backend", b"* 1 EXISTS\r\n" * 200, "more than 200 lines before the login was complete"),
    failing("a large literal", b"* ID ({65537}\r\n", "literals of more than 65536 octets"),
    failing("large literals", b"* ID ({40000}\r\n" + b"x" * 40000 + b" {40000}\r\n",
            "literals of more than 65536 octets"),
    failing("a number that never ends", b"* ID ({" + b"9" * 5000 + b"}\r\n", "literals of more than 65536 octets"),
    failing("an echo", b'p1 BAD LOGIN "ann" "s3cret" ' + RESPONSE + b" " + b64encode(b"s3cret") + b"\r\n",
            'login not understood: BAD LOGIN "ann" "***" *** ***'),
    failing("a long text", b"p1 BAD " + b"x" * 300 + b"\r\n", "login not understood: BAD " + "x" * 174),
]  # fmt: skip


def unsayable(name: str, login: BackendLogin, detail: str) -> Row:
    return Row(name, login, [(b"", b"")], [refused("login", detail, Outcome.AUTHENTICATION_FAILED)])


BAD_NAME = "a name with CR, LF, NUL or octets that are no UTF-8"
BAD_SECRET = "an empty name, an empty secret or one with NUL"
UNSAYABLE = [
    unsayable("CR in a name", BackendLogin("a\rn", b"pw"), BAD_NAME),
    unsayable("LF in a name", BackendLogin("a\nn", b"pw"), BAD_NAME),
    unsayable("NUL in a name", BackendLogin("a\0n", b"pw"), BAD_NAME),
    unsayable("LF in the authorization identity", BackendLogin("ann", b"pw", "b\n"), BAD_NAME),
    unsayable("octets that were no UTF-8", BackendLogin("a\udcff", b"pw"), BAD_NAME),
    unsayable("NUL in the secret", BackendLogin("ann", b"p\0w"), BAD_SECRET),
    unsayable("no name", BackendLogin("", b"pw"), BAD_SECRET),
    unsayable("no secret", BackendLogin("ann", b""), BAD_SECRET),
]

ROWS = [*LOGGED_IN, *IDS, *STRINGS, *LONG, *MECHANISMS, *STARTTLS, *GREETINGS, *FAILURES, *UNSAYABLE]


@pytest.mark.parametrize("cut", [whole, by_octet])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_login(row: Row, cut: Cut) -> None:
    assert converse(row, cut) == ([sent for _, sent in row.turns], row.events)


@given(st.sampled_from(ROWS), st.lists(st.integers(1, 60), min_size=1))
def test_the_cut_never_matters(row: Row, sizes: list[int]) -> None:
    def cut(data: bytes) -> list[bytes]:
        pieces = []
        for size in sizes:
            pieces.append(data[:size])
            data = data[size:]
        return [*pieces, data]

    assert converse(row, cut) == ([sent for _, sent in row.turns], row.events)


def in_clear(*received: bytes) -> BackendDialogue:
    """A dialogue whose backend has said OK to STARTTLS, and then what is given."""
    dialogue = BackendDialogue(TLS)
    dialogue.receive_data(b"* OK .\r\n")
    assert dialogue.next_event() is None
    assert dialogue.data_to_send() == b"p1 STARTTLS\r\n"
    dialogue.receive_data(b"p1 OK go\r\n" + b"".join(received))
    return dialogue


INJECTED = refused("starttls", "octets in clear behind the OK to STARTTLS")


def test_octets_behind_starttls_in_the_same_segment_end_the_login_before_the_handshake() -> None:
    dialogue = in_clear(b"* CAPABILITY AUTH=PLAIN\r\n")
    assert dialogue.next_event() == INJECTED
    assert dialogue.next_event() is None
    assert dialogue.data_to_send() == b""


def test_octets_in_clear_between_the_event_and_the_handshake() -> None:
    dialogue = in_clear()
    assert dialogue.next_event() == BackendStartTls()
    dialogue.receive_data(b"*")
    dialogue.tls_established()
    assert dialogue.next_event() == INJECTED
    assert dialogue.data_to_send() == b""


def test_octets_in_clear_seen_before_the_handshake_is_done() -> None:
    dialogue = in_clear()
    assert dialogue.next_event() == BackendStartTls()
    assert dialogue.next_event() is None
    dialogue.receive_data(b"*")
    assert dialogue.next_event() == INJECTED


def test_decrypted_octets_may_come_before_the_next_look() -> None:
    dialogue = in_clear()
    assert dialogue.next_event() == BackendStartTls()
    dialogue.tls_established()
    dialogue.receive_data(b"* OK early\r\n")
    assert dialogue.next_event() is None
    assert dialogue.data_to_send() == b"p2 CAPABILITY\r\n"


def test_closed_instead_of_the_handshake() -> None:
    dialogue = in_clear()
    assert dialogue.next_event() == BackendStartTls()
    dialogue.receive_data(b"")
    assert dialogue.next_event() == refused("starttls", "the backend closed the connection at step starttls")


def test_a_backend_that_speaks_before_it_is_asked() -> None:
    """All of it in one segment: the answers are matched to the commands by their tags."""
    dialogue = BackendDialogue(IDENTIFIED)
    dialogue.receive_data(OPEN + b"p1 OK .\r\np2" + DONE + b"rest")
    assert dialogue.next_event() == BackendLoggedIn(AFTER, (), b"rest")


def test_step_says_where_it_stands() -> None:
    dialogue = BackendDialogue(BackendLogin("ann", b"pw", starttls=True, id_fields=(("name", "x"),)))
    steps = [dialogue.step]
    for said in (b"* OK .\r\n", b"p1 OK .\r\n", b"p2 OK [CAPABILITY A] .\r\n", b"p3 OK .\r\n", b"p4 OK .\r\n"):
        dialogue.receive_data(said)
        if dialogue.next_event() is not None:
            dialogue.tls_established()
            assert dialogue.next_event() is None
        steps.append(dialogue.step)
    assert steps == ["greeting", "starttls", "capability", "id", "login", "login"]


def test_the_longest_line_is_a_setting() -> None:
    for limit, expected in ((31, None), (30, refused("greeting", "a line is longer than 30 octets"))):
        dialogue = BackendDialogue(ANN, max_line_bytes=limit)
        dialogue.receive_data(b"* OK [CAPABILITY IMAP4rev1] hi\r\n"[-32:])
        assert dialogue.next_event() == expected


def test_a_refusal_throws_away_what_was_not_sent() -> None:
    dialogue = BackendDialogue(ANN)
    dialogue.receive_data(OPEN + b"* BYE\r\n")
    assert isinstance(dialogue.next_event(), BackendRefused)
    assert dialogue.data_to_send() == b""
    dialogue.receive_data(b"more")
    dialogue.receive_data(b"")
    assert dialogue.next_event() is None
