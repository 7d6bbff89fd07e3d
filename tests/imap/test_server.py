"""The dialogue before login, as tables of what is on the wire.

Each row is fed whole and octet by octet, and hypothesis cuts it anywhere: how it arrives must not matter.
"""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.imap.events import ExchangeBrokenOff, Gone, LoggedOut, LoginOffered, ProtocolViolation, StartTls
from proxy.imap.server import PreAuthDialogue
from proxy.imap.strangers import DialogueBounds
from proxy.model import Account, AccountWanted, Challenge, Credentials, Identity, MalformedResponse
from proxy.outcome import FAREWELLS, REPLIES, Outcome
from proxy.sasl.plain import Plain

BOUNDS = DialogueBounds()
BYE = FAREWELLS[Outcome.PROTOCOL_VIOLATION]
READY = b"+ Ready for literal data\r\n"
BYE_TOO_BIG = b"* BYE [TOOBIG] Literal too large.\r\n"
BAD_TAGGED = b"a BAD Invalid tag or missing command.\r\n"
BAD_TAG = b"* BAD Invalid tag or missing command.\r\n"
NOT_NOW = b"BAD Unknown command, or not allowed before login.\r\n"
PRIVACY = b"NO [PRIVACYREQUIRED] TLS is required to authenticate.\r\n"
FAILED = b"NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"
TOO_BIG = b"NO [TOOBIG] Literal too large.\r\n"
NO_LITERAL = b"BAD Literal not allowed here.\r\n"
BAD_CHARACTER = b"BAD Invalid character.\r\n"
MISSING = b"BAD Missing argument.\r\n"
MALFORMED = b"BAD Missing or malformed arguments.\r\n"
TOO_MANY = b"BAD Too many or malformed arguments.\r\n"
BAD_ATOM = b"BAD Invalid character in atom.\r\n"
UNTERMINATED = b"BAD Unterminated quoted string.\r\n"
BAD_BASE64 = b"BAD Invalid base64.\r\n"
CANCELLED = b"BAD Authentication cancelled.\r\n"
MALFORMED_RESPONSE = b"BAD Malformed authentication response.\r\n"
NO_LOGIN = b"NO [CANNOT] Passwords are not accepted; use AUTHENTICATE.\r\n"
UNKNOWN_MECHANISM = b"NO [CANNOT] Unsupported authentication mechanism.\r\n"
IDENTIFIED = b'* ID ("name" "imap-porter")\r\na OK ID completed.\r\n'


class Stepwise:
    """A mechanism of two challenges, the way SCRAM has them, that tells its failure, the way OAUTHBEARER does."""

    def __init__(self):
        self.responses = []

    def step(self, response):
        self.responses.append(response)
        if response == b"wrong":
            raise MalformedResponse
        if response is None or len(self.responses) < 3:
            return Challenge(b"%d?" % len(self.responses))
        return Credentials("STEPWISE", "ann", "", b"/".join(self.responses))

    def failure(self, outcome):
        return Challenge(b"{}")


class Keyed:
    """A mechanism that needs to know whose keys it has to do with, the way SCRAM does."""

    def __init__(self):
        self.account = None

    def step(self, response):
        if response is None:
            return Challenge(b"")
        if response == b"wrong":
            raise MalformedResponse
        if self.account is None:
            return AccountWanted("KEYED", response.decode())
        return Credentials("KEYED", "ann", "", b"", proven=self.account if response == b"proof" else None)

    def supply(self, account):
        self.account = account
        return Challenge(account.identity.name.encode())

    def failure(self, outcome):
        return None


MECHANISMS = {"PLAIN": Plain, "STEPWISE": Stepwise, "KEYED": Keyed}


def base64(octets):
    return b64encode(octets)


def login(name, password):
    return LoginOffered(Credentials("LOGIN", name, "", password))


def plain(name, password, authorization_identity=""):
    return LoginOffered(Credentials("PLAIN", name, authorization_identity, password))


def converse(pieces, *, secure=True, login=True, answers=()):
    """Feed the pieces; answer each login, and each account that is wanted, with the next of `answers`.

    Returns events, all that was sent, and the rest.
    """
    dialogue = PreAuthDialogue(secure=secure, starttls=not secure, mechanisms=MECHANISMS, login=login, greeting=False)
    events, sent, answers = [], b"", list(answers)
    for piece in pieces:
        dialogue.receive_data(piece)
        try:
            while (event := dialogue.next_event()) is not None:
                events.append(event)
                if isinstance(event, LoginOffered | AccountWanted) and answers:
                    answers.pop(0)(dialogue)
        except ProtocolViolation:
            return [*events, ProtocolViolation], sent + dialogue.data_to_send(), b""
        sent += dialogue.data_to_send()
    return events, sent, dialogue.trailing_data


# --- inside TLS: name, received, events, sent ---

CASES = [
    ("noop", b"a NOOP\r\n", [], b"a OK NOOP completed.\r\n"),
    ("lower case, lone LF", b"a nOOp\n", [], b"a OK NOOP completed.\r\n"),
    ("tags keep their case", b"aBc]. noop\r\n", [], b"aBc]. OK NOOP completed.\r\n"),
    (
        "capability",
        b"a CAPABILITY\r\n",
        [],
        b"* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN AUTH=STEPWISE AUTH=KEYED\r\n"
        b"a OK CAPABILITY completed.\r\n",
    ),
    ("logout", b"a LOGOUT\r\n", [LoggedOut()], b"* BYE Logging out.\r\na OK LOGOUT completed.\r\n"),
    ("pipelined", b"a NOOP\r\nb NOOP\r\n", [], b"a OK NOOP completed.\r\nb OK NOOP completed.\r\n"),
    # arguments where none belong
    ("noop, argument", b"a NOOP x\r\n", [], b"a " + TOO_MANY),
    ("noop, trailing space", b"a NOOP \r\n", [], b"a " + TOO_MANY),
    ("noop, two spaces", b"a  NOOP\r\n", [], BAD_TAGGED),
    ("capability, argument", b"a CAPABILITY x\r\n", [], b"a " + TOO_MANY),
    ("logout, argument", b"a LOGOUT x\r\n", [], b"a " + TOO_MANY),
    # tags
    ("empty line", b"\r\n", [], BAD_TAG),
    ("no command", b"a\r\n", [], BAD_TAG),
    ("no command, space", b"a \r\n", [], BAD_TAGGED),
    ("no tag", b" NOOP\r\n", [], BAD_TAG),
    ("tag +", b"+ NOOP\r\n", [], BAD_TAG),
    ("tag *", b"* NOOP\r\n", [], BAD_TAG),
    ("tag with NUL", b"a\0 NOOP\r\n", [], BAD_TAG),
    ("tag with quote", b'"a" NOOP\r\n', [], BAD_TAG),
    ("tag not ASCII", "ä NOOP\r\n".encode(), [], BAD_TAG),
    ("longest tag", b"t" * 64 + b" NOOP\r\n", [], b"t" * 64 + b" OK NOOP completed.\r\n"),
    ("tag too long", b"t" * 65 + b" NOOP\r\n", [], BAD_TAG),
    # commands of other states, and none at all
    ("enable", b"a ENABLE UTF8=ACCEPT\r\n", [], b"a " + NOT_NOW),
    ("select", b"a SELECT INBOX\r\n", [], b"a " + NOT_NOW),
    ("unauthenticate", b"a UNAUTHENTICATE\r\n", [], b"a " + NOT_NOW),
    ("unknown", b"a XYZZY\r\n", [], b"a " + NOT_NOW),
    ("PROXY header", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", [], b"PROXY " + NOT_NOW),
    ("starttls inside TLS", b"a STARTTLS\r\n", [], b"a BAD TLS is active already.\r\n"),
    # characters
    ("lone CR", b"a NOOP\rb NOOP\r\n", [], b"a " + NOT_NOW),
    ("lone CR in an argument", b'a LOGIN "an\rn" pw\r\n', [], b"a " + BAD_CHARACTER),
    ("CR before CRLF", b"a LOGIN ann pw\r\r\n", [], b"a " + BAD_CHARACTER),
    ("NUL", b'a LOGIN "an\0n" pw\r\n', [], b"a " + BAD_CHARACTER),
    ("NUL behind a literal", b"a LOGIN {3+}\r\nann pw\0\r\n", [], b"a " + BAD_CHARACTER),
    ("NUL in a literal", b"a LOGIN {3+}\r\na\0n pw\r\n", [], b"a " + BAD_CHARACTER),
    # LOGIN
    ("login, atoms", b"a LOGIN ann pw\r\n", [login("ann", b"pw")], b""),
    ("login, ]", b"a login ann] p]w\r\n", [login("ann]", b"p]w")], b""),
    ("login, quoted", rb'a LOGIN "a n\"n" "p\\w"' + b"\r\n", [login('a n"n', b"p\\w")], b""),
    ("login, quoted UTF-8", 'a LOGIN "änn" "pö"\r\n'.encode(), [login("änn", "pö".encode())], b""),
    ("login, no UTF-8", b'a LOGIN "\xffnn" "\xfe"\r\n', [login("\udcffnn", b"\xfe")], b""),
    ("login, literals", b"a LOGIN {3}\r\nann {2}\r\npw\r\n", [login("ann", b"pw")], READY * 2),
    ("login, literals+", b"a LOGIN {3+}\r\nann {2+}\r\npw\r\n", [login("ann", b"pw")], b""),
    ("login, literal first", b"a LOGIN {3}\r\nann pw\r\n", [login("ann", b"pw")], READY),
    ("login, literal second", b'a LOGIN "ann" {2+}\r\npw\r\n', [login("ann", b"pw")], b""),
    ("login, CRLF in a literal", b"a LOGIN ann {6+}\r\np\r\nw\r\n\r\n", [login("ann", b"p\r\nw\r\n")], b""),
    ("login, commands in a literal", b"a LOGIN ann {8+}\r\nb NOOP\r\n\r\n", [login("ann", b"b NOOP\r\n")], b""),
    ("login, literal like a header", b"a LOGIN {3+}\r\n{9} pw\r\n", [login("{9}", b"pw")], b""),
    ("login, empty strings", b'a LOGIN "" {0+}\r\n\r\n', [login("", b"")], b""),
    ("login, no argument", b"a LOGIN\r\n", [], b"a " + MALFORMED),
    ("login, one argument", b"a LOGIN ann\r\n", [], b"a " + MALFORMED),
    ("login, one argument and a space", b"a LOGIN ann \r\n", [], b"a " + MISSING),
    ("login, one literal", b"a LOGIN {3+}\r\nann\r\n", [], b"a " + MALFORMED),
    ("login, three arguments", b"a LOGIN ann pw x\r\n", [], b"a " + TOO_MANY),
    ("login, trailing space", b"a LOGIN ann pw \r\n", [], b"a " + TOO_MANY),
    ("login, two spaces", b"a LOGIN ann  pw\r\n", [], b"a " + MISSING),
    ("login, wildcard in an atom", b"a LOGIN ann p*w\r\n", [], b"a " + BAD_ATOM),
    ("login, 8-bit atom", "a LOGIN änn pw\r\n".encode(), [], b"a " + BAD_ATOM),
    ("login, list", b"a LOGIN (ann pw)\r\n", [], b"a " + BAD_ATOM),
    ("login, open quote", b'a LOGIN ann "pw\r\n', [], b"a " + UNTERMINATED),
    ("login, other escape", rb'a LOGIN ann "p\nw"' + b"\r\n", [], b"a BAD Invalid escape in quoted string.\r\n"),
    ("login, no space after a quote", b'a LOGIN "ann""pw"\r\n', [], b"a " + MALFORMED),
    ("login, no space after a literal", b"a LOGIN {3+}\r\nann{2+}\r\npw\r\n", [], b"a " + MALFORMED),
    ("login, literal in an atom", b"a LOGIN an{1+}\r\nn pw\r\n", [], b"a " + MALFORMED),
    ("login, literal in an open quote", b'a LOGIN ann "{8+}\r\nb NOOP\r\n\r\n', [], b"a " + UNTERMINATED),
    # literals that are none
    ("literal, sign", b"a LOGIN {-3}\r\n", [], b"a " + BAD_ATOM),
    ("literal, plus sign", b"a LOGIN {+3}\r\n", [], b"a " + BAD_ATOM),
    ("literal, blank", b"a LOGIN {3 }\r\n", [], b"a " + BAD_ATOM),
    ("literal, underscore", b"a LOGIN {1_0}\r\n", [], b"a " + BAD_ATOM),
    ("literal, other digits", "a LOGIN {\u0663}\r\n".encode(), [], b"a " + BAD_ATOM),
    ("literal, empty", b"a LOGIN {}\r\n", [], b"a " + BAD_ATOM),
    # literals that are refused: none of their octets may be read as a command
    ("literal8", b"a LOGIN ~{3}\r\nb NOOP\r\n", [], b"a " + NO_LITERAL + b"b OK NOOP completed.\r\n"),
    ("literal8, not waiting", b"a LOGIN ~{8+}\r\nb NOOP\r\n pw\r\nc NOOP\r\n", [], b"a " + NO_LITERAL
     + b"c OK NOOP completed.\r\n"),
    ("literal of noop", b"a NOOP {3}\r\nb NOOP\r\n", [], b"a " + NO_LITERAL + b"b OK NOOP completed.\r\n"),
    ("literal of noop, not waiting", b"a NOOP {8+}\r\nb NOOP\r\n\r\n", [], b"a " + NO_LITERAL),
    ("literal of authenticate", b"a AUTHENTICATE {5}\r\n", [], b"a " + NO_LITERAL),
    ("literal of select, not waiting", b"a SELECT {8+}\r\nb NOOP\r\n\r\n", [], b"a " + NOT_NOW),
    ("literal as command", b"a {8+}\r\nb NOOP\r\n\r\n", [], BAD_TAGGED),
    ("literal as tag", b"{8+}\r\nb NOOP\r\n NOOP\r\n", [], BAD_TAG),
    ("refused literal, then one that waits", b"a SELECT {8+}\r\nb NOOP\r\n {5}\r\nc NOOP\r\n", [],
     b"a " + NOT_NOW + b"c OK NOOP completed.\r\n"),
    ("NUL before a literal", b"a LOGIN \0 {8+}\r\nb NOOP\r\n\r\n", [], b"a " + BAD_CHARACTER),
    ("NUL before a literal that waits", b"a LOGIN \0 {8}\r\nb NOOP\r\n", [], b"a " + BAD_CHARACTER
     + b"b OK NOOP completed.\r\n"),
    # sizes
    ("largest literal", b"a LOGIN ann {8192}\r\n" + b"p" * 8192 + b"\r\n", [login("ann", b"p" * 8192)], READY),
    ("too large literal", b"a LOGIN ann {8193}\r\nb NOOP\r\n", [], b"a " + TOO_BIG + b"b OK NOOP completed.\r\n"),
    ("too large in sum", b"a LOGIN {8000+}\r\n" + b"n" * 8000 + b" {193}\r\nb NOOP\r\n", [], b"a " + TOO_BIG
     + b"b OK NOOP completed.\r\n"),
    ("too large, not waiting", b"a LOGIN ann {8193+}\r\nb NOOP\r\n", [ProtocolViolation], BYE_TOO_BIG),
    ("too large, not waiting, unknown command", b"a SELECT {8193+}\r\nb NOOP\r\n", [ProtocolViolation], BYE_TOO_BIG),
    ("huge literal", b"a LOGIN ann {" + b"9" * 5000 + b"}\r\n", [], b"a " + TOO_BIG),
    ("huge literal, not waiting", b"a LOGIN ann {" + b"9" * 5000 + b"+}\r\n", [ProtocolViolation], BYE_TOO_BIG),
    ("line too long", b"a LOGIN ann " + b"p" * 8181, [ProtocolViolation], BYE),
    ("line without an end", b"x" * 8193, [ProtocolViolation], BYE),
    ("text too long in sum", b"a LOGIN " + b"{0+}\r\n" * 2100, [ProtocolViolation], BYE),
    ("answered before the violation", b"a NOOP\r\n" + b"x" * 8193, [ProtocolViolation], b"a OK NOOP completed.\r\n"
     + BYE),
    ("bad commands", b"x\r\n" * 11, [ProtocolViolation], BAD_TAG * 10 + BYE),
    ("nine bad commands", b"x\r\n" * 9 + b"a NOOP\r\n", [], BAD_TAG * 9 + b"a OK NOOP completed.\r\n"),
    # ID
    ("id, NIL", b"a ID NIL\r\n", [], IDENTIFIED),
    ("id, list", b'a ID ("name" "mutt" "os" NIL)\r\n', [], IDENTIFIED),
    ("id, empty list", b"a id ()\r\n", [], IDENTIFIED),
    ("id, literals", b"a ID ({4}\r\nname {4+}\r\nmutt)\r\n", [], READY + IDENTIFIED),
    ("id, nothing", b"a ID\r\n", [], b"a " + MALFORMED),
    ("id, string", b'a ID "mutt"\r\n', [], b"a " + MALFORMED),
    ("id, not closed", b'a ID ("name" "mutt"\r\n', [], b"a " + MALFORMED),
    ("id, more behind", b"a ID NIL NIL\r\n", [], b"a " + TOO_MANY),
    ("id, 30 pairs", b"a ID (" + b" ".join([b'"f" "v"'] * 30) + b")\r\n", [], IDENTIFIED),
    ("id, 31 pairs", b"a ID (" + b" ".join([b'"f" "v"'] * 31) + b")\r\n", [], b"a BAD Too many ID parameters.\r\n"),
    ("id, long field", b'a ID ("' + b"f" * 31 + b'" "v")\r\n', [], b"a BAD ID parameter too long.\r\n"),
    ("id, long value", b'a ID ("f" "' + b"v" * 1025 + b'")\r\n', [], b"a BAD ID parameter too long.\r\n"),
    # AUTHENTICATE
    ("plain", b"a AUTHENTICATE PLAIN\r\n" + base64(b"\0ann\0pw") + b"\r\n", [plain("ann", b"pw")], b"+ \r\n"),
    ("plain, initial response", b"a authenticate plain " + base64(b"bob\0ann\0pw") + b"\r\n",
     [plain("ann", b"pw", "bob")], b""),
    ("plain, empty initial response", b"a AUTHENTICATE PLAIN =\r\n", [],
     b"a BAD Malformed authentication response.\r\n"),
    ("plain, malformed", b"a AUTHENTICATE PLAIN " + base64(b"\0ann\0") + b"\r\n", [],
     b"a BAD Malformed authentication response.\r\n"),
    ("plain, empty line", b"a AUTHENTICATE PLAIN\r\n\r\n", [], b"+ \r\na BAD Malformed authentication response.\r\n"),
    ("plain, cancelled", b"a AUTHENTICATE PLAIN\r\n*\r\nb NOOP\r\n", [], b"+ \r\na " + CANCELLED
     + b"b OK NOOP completed.\r\n"),
    ("cancelled is not counted", b"a AUTHENTICATE PLAIN\r\n*\r\n" * 20, [], (b"+ \r\na " + CANCELLED) * 20),
    ("cancelled as initial response", b"a AUTHENTICATE PLAIN *\r\n", [], b"a " + BAD_BASE64),
    ("bad base64", b"a AUTHENTICATE PLAIN\r\nAGFubgBwdw\r\nb NOOP\r\n", [], b"+ \r\na " + BAD_BASE64
     + b"b OK NOOP completed.\r\n"),
    ("bad initial base64", b"a AUTHENTICATE PLAIN A-_A\r\n", [], b"a " + BAD_BASE64),
    ("= is no later response", b"a AUTHENTICATE PLAIN\r\n=\r\n", [], b"+ \r\na " + BAD_BASE64),
    ("bad base64 is counted", b"a AUTHENTICATE PLAIN !\r\n" * 10, [ProtocolViolation], (b"a " + BAD_BASE64) * 10 + BYE),
    ("response with a lone CR", b"a AUTHENTICATE PLAIN\r\nAGFu\rbgBwdw==\r\n", [], b"+ \r\na " + BAD_BASE64),
    ("no mechanism", b"a AUTHENTICATE\r\n", [], b"a " + MALFORMED),
    ("no mechanism, space", b"a AUTHENTICATE \r\n", [], b"a " + MISSING),
    ("mechanism, space", b"a AUTHENTICATE PLAIN \r\n", [], b"a " + MISSING),
    ("three arguments", b"a AUTHENTICATE PLAIN = =\r\n", [], b"a " + TOO_MANY),
    ("quoted mechanism", b'a AUTHENTICATE "PLAIN"\r\n', [], b"a " + BAD_ATOM),
    ("8-bit mechanism", b"a AUTHENTICATE PL\xc4IN\r\n", [], b"a " + BAD_ATOM),
    ("unknown mechanism", b"a AUTHENTICATE CRAM-MD5\r\nb NOOP\r\n", [], b"a " + UNKNOWN_MECHANISM
     + b"b OK NOOP completed.\r\n"),
    ("unknown mechanism, initial response", b"a AUTHENTICATE XOAUTH2 QQ==\r\n", [], b"a " + UNKNOWN_MECHANISM),
    ("steps", b"a AUTHENTICATE STEPWISE =\r\nQQ==\r\n\r\n",
     [LoginOffered(Credentials("STEPWISE", "ann", "", b"/A/"))],
     b"+ " + base64(b"1?") + b"\r\n+ " + base64(b"2?") + b"\r\n"),
    ("steps, cancelled later", b"a AUTHENTICATE STEPWISE QQ==\r\nQQ==\r\n*\r\n", [],
     b"+ " + base64(b"1?") + b"\r\n+ " + base64(b"2?") + b"\r\na " + CANCELLED),
    ("steps, malformed later", b"a AUTHENTICATE STEPWISE QQ==\r\n" + base64(b"wrong") + b"\r\n", [],
     b"+ " + base64(b"1?") + b"\r\na BAD Malformed authentication response.\r\n"),
    ("long initial response", b"a AUTHENTICATE PLAIN " + base64(b"\0ann\0" + b"p" * 40000) + b"\r\n",
     [plain("ann", b"p" * 40000)], b""),
    ("long response", b"a AUTHENTICATE PLAIN\r\n" + base64(b"\0ann\0" + b"p" * 40000) + b"\r\n",
     [plain("ann", b"p" * 40000)], b"+ \r\n"),
    ("initial response too long", b"a AUTHENTICATE PLAIN " + b"A" * 65536, [ProtocolViolation], BYE),
    ("response too long", b"a AUTHENTICATE PLAIN\r\n" + b"A" * 65537, [ProtocolViolation], b"+ \r\n" + BYE),
    ("long line that mentions it", b"a LOGIN AUTHENTICATE " + b"A" * 8192, [ProtocolViolation], BYE),
    # what is no IMAP gets no answer at all
    ("GET", b"GET / HTTP/1.1\r\nHost: imap.example.org\r\n", [ProtocolViolation], b""),
    ("POST", b"POST /a HTTP/1.0\r\n\r\na LOGIN ann pw\r\n", [ProtocolViolation], b""),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [ProtocolViolation], b""),
    ("Host header", b"host:imap.example.org\r\n", [ProtocolViolation], b""),
    ("a tag like a method", b"GET NOOP\r\n", [], b"GET OK NOOP completed.\r\n"),
    ("a password like HTTP", b"a LOGIN ann HTTP/1.1\r\n", [login("ann", b"HTTP/1.1")], b""),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00", [ProtocolViolation], b""),
    ("TLS behind a command", b"a NOOP\r\n\x16\x03\x01", [ProtocolViolation], b"a OK NOOP completed.\r\n"),
    ("almost TLS", b"\x16\x04\r\n", [], BAD_TAG),
]  # fmt: skip

# --- in clear, where STARTTLS is offered: name, received, events, sent ---

CLEAR_CASES = [
    ("capability", b"a CAPABILITY\r\n", [],
     b"* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID STARTTLS LOGINDISABLED\r\na OK CAPABILITY completed.\r\n"),
    ("starttls", b"a STARTTLS\r\n", [StartTls()], b"a OK Begin TLS negotiation now.\r\n"),
    ("starttls, argument", b"a STARTTLS now\r\n", [], b"a " + TOO_MANY),
    ("login", b"a LOGIN ann pw\r\nb NOOP\r\n", [], b"a " + PRIVACY + b"b OK NOOP completed.\r\n"),
    ("login, malformed", b"a LOGIN\r\n", [], b"a " + PRIVACY),
    ("login, literal", b"a LOGIN {3}\r\nb NOOP\r\n", [], b"a " + PRIVACY + b"b OK NOOP completed.\r\n"),
    ("login, literal not waiting", b"a LOGIN {8+}\r\nb NOOP\r\n pw\r\nc NOOP\r\n", [],
     b"a " + PRIVACY + b"c OK NOOP completed.\r\n"),
    ("login, both kinds", b"a LOGIN {8+}\r\nb NOOP\r\n {2}\r\nc NOOP\r\n", [], b"a " + PRIVACY
     + b"c OK NOOP completed.\r\n"),
    ("login, too large literal", b"a LOGIN {8193}\r\n", [], b"a " + PRIVACY),
    ("login, too large literal not waiting", b"a LOGIN {8193+}\r\n", [ProtocolViolation], BYE_TOO_BIG),
    ("login is not counted", b"a LOGIN ann pw\r\n" * 20, [], (b"a " + PRIVACY) * 20),
    ("authenticate", b"a AUTHENTICATE PLAIN\r\nb NOOP\r\n", [], b"a " + PRIVACY + b"b OK NOOP completed.\r\n"),
    ("authenticate, initial response", b"a AUTHENTICATE PLAIN AGFubgBwdw==\r\n", [], b"a " + PRIVACY),
    ("authenticate, long", b"a AUTHENTICATE PLAIN " + b"A" * 40000 + b"\r\n", [], b"a " + PRIVACY),
    ("authenticate, unknown mechanism", b"a AUTHENTICATE CRAM-MD5\r\n", [], b"a " + PRIVACY),
    ("TLS on a port in clear", b"\x16\x03\x01", [ProtocolViolation], b""),
]  # fmt: skip


# --- inside TLS, where nobody knows passwords: name, received, events, sent ---

NO_LOGIN_CASES = [
    ("capability", b"a CAPABILITY\r\n", [],
     b"* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN AUTH=STEPWISE AUTH=KEYED LOGINDISABLED\r\n"
     b"a OK CAPABILITY completed.\r\n"),
    ("login", b"a LOGIN ann pw\r\nb NOOP\r\n", [], b"a " + NO_LOGIN + b"b OK NOOP completed.\r\n"),
    ("login, small letters", b"a login ann pw\r\n", [], b"a " + NO_LOGIN),
    ("login, malformed", b"a LOGIN\r\n", [], b"a " + NO_LOGIN),
    ("login, NUL", b"a LOGIN ann p\0w\r\n", [], b"a " + NO_LOGIN),
    ("login, literal", b"a LOGIN {3}\r\nb NOOP\r\n", [], b"a " + NO_LOGIN + b"b OK NOOP completed.\r\n"),
    ("login, literal second", b"a LOGIN ann {2}\r\nb NOOP\r\n", [], b"a " + NO_LOGIN + b"b OK NOOP completed.\r\n"),
    ("login, literal not waiting", b"a LOGIN {8+}\r\nb NOOP\r\n pw\r\nc NOOP\r\n", [],
     b"a " + NO_LOGIN + b"c OK NOOP completed.\r\n"),
    ("login, literals not waiting", b"a LOGIN {8+}\r\nb NOOP\r\n {8+}\r\nc NOOP\r\n\r\nd NOOP\r\n", [],
     b"a " + NO_LOGIN + b"d OK NOOP completed.\r\n"),
    ("login, both kinds", b"a LOGIN {8+}\r\nb NOOP\r\n {2}\r\nc NOOP\r\n", [], b"a " + NO_LOGIN
     + b"c OK NOOP completed.\r\n"),
    ("login, literal8 not waiting", b"a LOGIN ~{8+}\r\nb NOOP\r\n pw\r\nc NOOP\r\n", [],
     b"a " + NO_LOGIN + b"c OK NOOP completed.\r\n"),
    ("login, too large literal", b"a LOGIN {8193}\r\n", [], b"a " + NO_LOGIN),
    ("login, too large literal not waiting", b"a LOGIN {8193+}\r\n", [ProtocolViolation], BYE_TOO_BIG),
    ("login is not counted", b"a LOGIN ann pw\r\n" * 20, [], (b"a " + NO_LOGIN) * 20),
    ("authenticate", b"a AUTHENTICATE PLAIN AGFubgBwdw==\r\n", [plain("ann", b"pw")], b""),
    ("id, literal", b"a ID ({4}\r\nname {4+}\r\nmutt)\r\n", [], READY + IDENTIFIED),
]  # fmt: skip

# --- logins answered: name, received, answers, events, sent, left over ---


def accept(*capability, notes=()):
    return lambda dialogue: dialogue.accept(capability, notes)


def reject(outcome=Outcome.AUTHENTICATION_FAILED, *, last=False):
    return lambda dialogue: dialogue.reject(outcome, last=last)


ANN = login("ann", b"pw")
STEPS = LoginOffered(Credentials("STEPWISE", "ann", "", b"A/B/C"))
STEPS_RECEIVED = b"a AUTHENTICATE STEPWISE QQ==\r\nQg==\r\nQw==\r\n"
STEPS_SENT = b"+ " + base64(b"1?") + b"\r\n+ " + base64(b"2?") + b"\r\n"
FAILURE_SENT = b"+ " + base64(b"{}") + b"\r\n"

WANTED = AccountWanted("KEYED", "ann")
BROKEN_OFF = ExchangeBrokenOff()
ACCOUNT = Account(Identity("Ann", "file"))
PROVEN = LoginOffered(Credentials("KEYED", "ann", "", b"", proven=ACCOUNT))
UNPROVEN = LoginOffered(Credentials("KEYED", "ann", "", b""))
KEYED_RECEIVED = b"a AUTHENTICATE KEYED " + base64(b"ann") + b"\r\n"
KEYED_SENT = b"+ " + base64(b"Ann") + b"\r\n"


def supply():
    return lambda dialogue: dialogue.supply(ACCOUNT)


ANSWERED_CASES = [
    ("account supplied, proven", KEYED_RECEIVED + base64(b"proof") + b"\r\nb IDLE\r\n", [supply(), accept()],
     [WANTED, PROVEN], KEYED_SENT + b"a OK Logged in.\r\n", b"b IDLE\r\n"),
    ("account supplied, not proven", KEYED_RECEIVED + base64(b"x") + b"\r\nb NOOP\r\n", [supply(), reject()],
     [WANTED, UNPROVEN], KEYED_SENT + b"a " + FAILED + b"b OK NOOP completed.\r\n", b""),
    ("account supplied, asked for the first response",
     b"a AUTHENTICATE KEYED\r\n" + base64(b"ann") + b"\r\n" + base64(b"proof") + b"\r\n", [supply(), accept()],
     [WANTED, PROVEN], b"+ \r\n" + KEYED_SENT + b"a OK Logged in.\r\n", b""),
    ("account supplied, cancelled", KEYED_RECEIVED + b"*\r\nb NOOP\r\n", [supply()], [WANTED, BROKEN_OFF],
     KEYED_SENT + b"a " + CANCELLED + b"b OK NOOP completed.\r\n", b""),
    ("account supplied, bad base64", KEYED_RECEIVED + b"!\r\nb NOOP\r\n", [supply()], [WANTED, BROKEN_OFF],
     KEYED_SENT + b"a " + BAD_BASE64 + b"b OK NOOP completed.\r\n", b""),
    ("account supplied, malformed response", KEYED_RECEIVED + base64(b"wrong") + b"\r\nb NOOP\r\n", [supply()],
     [WANTED, BROKEN_OFF], KEYED_SENT + b"a " + MALFORMED_RESPONSE + b"b OK NOOP completed.\r\n", b""),
    ("account supplied, cancelled, and again", (KEYED_RECEIVED + b"*\r\n") * 2, [supply(), supply()],
     [WANTED, BROKEN_OFF] * 2, (KEYED_SENT + b"a " + CANCELLED) * 2, b""),
    ("account supplied, cancelled, then another way", KEYED_RECEIVED + b"*\r\nb LOGIN ann pw\r\n", [supply(), accept()],
     [WANTED, BROKEN_OFF, ANN], KEYED_SENT + b"a " + CANCELLED + b"b OK Logged in.\r\n", b""),
    ("account supplied, cancelled, then others break off", KEYED_RECEIVED + b"*\r\na AUTHENTICATE PLAIN\r\n*\r\nx\r\n",
     [supply()], [WANTED, BROKEN_OFF], KEYED_SENT + b"a " + CANCELLED + b"+ \r\na " + CANCELLED + BAD_TAG, b""),
    ("account supplied, not proven, then others break off",
     KEYED_RECEIVED + base64(b"x") + b"\r\na AUTHENTICATE KEYED\r\n*\r\na LOGIN\r\n", [supply(), reject()],
     [WANTED, UNPROVEN], KEYED_SENT + b"a " + FAILED + b"+ \r\na " + CANCELLED + b"a " + MALFORMED, b""),
    ("cancelled before the account", b"a AUTHENTICATE KEYED\r\n*\r\n", [], [], b"+ \r\na " + CANCELLED, b""),
    ("bad base64 before the account", b"a AUTHENTICATE KEYED\r\n!\r\n", [], [], b"+ \r\na " + BAD_BASE64, b""),
    ("malformed before the account", b"a AUTHENTICATE KEYED " + base64(b"wrong") + b"\r\n", [], [],
     b"a " + MALFORMED_RESPONSE, b""),
    ("account refused for the last time", KEYED_RECEIVED, [reject(last=True)], [WANTED], b"a " + FAILED, b""),
    ("account refused, then others break off", KEYED_RECEIVED + b"b AUTHENTICATE STEPWISE QQ==\r\n*\r\n", [reject()],
     [WANTED], b"a " + FAILED + b"+ " + base64(b"1?") + b"\r\nb " + CANCELLED, b""),
    ("account refused", KEYED_RECEIVED + b"b NOOP\r\n", [reject(Outcome.UNAVAILABLE)], [WANTED],
     b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\nb OK NOOP completed.\r\n", b""),
    ("account refused, then another way", KEYED_RECEIVED + b"b LOGIN ann pw\r\n", [reject(), accept()], [WANTED, ANN],
     b"a " + FAILED + b"b OK Logged in.\r\n", b""),
    ("account pending: nothing is parsed", KEYED_RECEIVED + b"b NOOP\r\n", [], [WANTED], b"", b"b NOOP\r\n"),
    ("accepted", b"a LOGIN ann pw\r\n", [accept(b"IMAP4rev1", b"IDLE")], [ANN],
     b"a OK [CAPABILITY IMAP4rev1 IDLE] Logged in.\r\n", b""),
    ("accepted, nothing known", b"a LOGIN ann pw\r\n", [accept()], [ANN], b"a OK Logged in.\r\n", b""),
    ("accepted, capability asked before", b"c CAPABILITY\r\na LOGIN ann pw\r\n", [accept(b"IMAP4rev1")], [ANN],
     b"* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN AUTH=STEPWISE AUTH=KEYED\r\nc OK CAPABILITY completed.\r\n"
     b"* CAPABILITY IMAP4rev1\r\na OK Logged in.\r\n", b""),
    ("accepted, nothing known, asked before", b"c capability\r\na LOGIN ann pw\r\n", [accept()], [ANN],
     b"* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN AUTH=STEPWISE AUTH=KEYED\r\nc OK CAPABILITY completed.\r\n"
     b"a OK Logged in.\r\n", b""),
    ("accepted, a failed question is none", b"c CAPABILITY x\r\na LOGIN ann pw\r\n", [accept(b"IMAP4rev1")], [ANN],
     b"c " + TOO_MANY + b"a OK [CAPABILITY IMAP4rev1] Logged in.\r\n", b""),
    ("accepted, notes first", b"a LOGIN ann pw\r\n", [accept(b"IDLE", notes=(b"* OK [ALERT] 1\r\n", b"* OK 2\r\n"))],
     [ANN], b"* OK [ALERT] 1\r\n* OK 2\r\na OK [CAPABILITY IDLE] Logged in.\r\n", b""),
    ("accepted, early octets", b"a LOGIN ann pw\r\nb SELECT INBOX\r\nc FET", [accept()], [ANN],
     b"a OK Logged in.\r\n", b"b SELECT INBOX\r\nc FET"),
    ("accepted, authenticate", STEPS_RECEIVED + b"b IDLE\r\n", [accept()], [STEPS],
     STEPS_SENT + b"a OK Logged in.\r\n", b"b IDLE\r\n"),
    ("rejected, then parsed on", b"a LOGIN ann pw\r\nb SELECT INBOX\r\nc NOOP\r\n", [reject()], [ANN],
     b"a " + FAILED + b"b " + NOT_NOW + b"c OK NOOP completed.\r\n", b""),
    ("rejected, tried again", b"a LOGIN ann pw\r\nb LOGIN ann pw\r\nc", [reject(Outcome.UNAVAILABLE), accept()],
     [ANN, ANN], b"a NO [UNAVAILABLE] Account is temporarily unavailable.\r\nb OK Logged in.\r\n", b"c"),
    ("rejections are not counted", b"a LOGIN ann pw\r\n" * 20, [reject()] * 20, [ANN] * 20, (b"a " + FAILED) * 20,
     b""),
    ("rejected, PLAIN tells nothing more", b"a AUTHENTICATE PLAIN AGFubgBwdw==\r\nb NOOP\r\n", [reject()],
     [plain("ann", b"pw")], b"a " + FAILED + b"b OK NOOP completed.\r\n", b""),
    ("rejected, failure told", STEPS_RECEIVED + b"AQ==\r\nb NOOP\r\n", [reject()], [STEPS],
     STEPS_SENT + FAILURE_SENT + b"a " + FAILED + b"b OK NOOP completed.\r\n", b""),
    ("rejected for the last time, failure not told", STEPS_RECEIVED, [reject(last=True)], [STEPS],
     STEPS_SENT + b"a " + FAILED, b""),
    ("rejected for the last time, nothing is owed", STEPS_RECEIVED + b"b NOOP\r\n", [reject(last=True)], [STEPS],
     STEPS_SENT + b"a " + FAILED + b"b OK NOOP completed.\r\n", b""),
    ("rejected for the last time, LOGIN", b"a LOGIN ann pw\r\n", [reject(last=True)], [ANN], b"a " + FAILED, b""),
    ("rejected, failure told, not answered yet", STEPS_RECEIVED, [reject()], [STEPS], STEPS_SENT + FAILURE_SENT, b""),
    ("rejected, failure told, answered empty", STEPS_RECEIVED + b"\r\n", [reject()], [STEPS],
     STEPS_SENT + FAILURE_SENT + b"a " + FAILED, b""),
    ("rejected, failure told, any answer will do", STEPS_RECEIVED + b"* \0{3}\r\nb NOOP\r\n", [reject()], [STEPS],
     STEPS_SENT + FAILURE_SENT + b"a " + FAILED + b"b OK NOOP completed.\r\n", b""),
    ("rejected twice, failure told once each", STEPS_RECEIVED + b"\r\n" + STEPS_RECEIVED + b"\r\nb NOOP\r\n",
     [reject(), reject()], [STEPS, STEPS],
     (STEPS_SENT + FAILURE_SENT + b"a " + FAILED) * 2 + b"b OK NOOP completed.\r\n", b""),
    ("rejected, a failure told is not told of the next login", STEPS_RECEIVED + b"\r\nc LOGIN ann pw\r\nd NOOP\r\n",
     [reject(), reject()], [STEPS, ANN],
     STEPS_SENT + FAILURE_SENT + b"a " + FAILED + b"c " + FAILED + b"d OK NOOP completed.\r\n", b""),
    ("rejected, failure told, answer too long", STEPS_RECEIVED + b"A" * 65537, [reject()],
     [STEPS, ProtocolViolation], STEPS_SENT + FAILURE_SENT + BYE, b""),
    ("pending, nothing is parsed", b"a LOGIN ann pw\r\nGET / HTTP/1.1\r\n", [], [ANN], b"", b"GET / HTTP/1.1\r\n"),
]  # fmt: skip

ALL = [(f"secure: {name}", received, {}, events, sent, b"") for name, received, events, sent in CASES]
ALL += [
    (f"clear: {name}", received, {"secure": False}, events, sent, b"") for name, received, events, sent in CLEAR_CASES
]
ALL += [
    (f"no passwords: {name}", received, {"login": False}, events, sent, b"")
    for name, received, events, sent in NO_LOGIN_CASES
]
ALL += [
    (f"clear, no passwords: {name}", received, {"secure": False, "login": False}, events, sent, b"")
    for name, received, events, sent in CLEAR_CASES
]
ALL += [
    (f"answered: {name}", received, {"answers": answers}, events, sent, left)
    for name, received, answers, events, sent, left in ANSWERED_CASES
]


@pytest.mark.parametrize(("name", "received", "how", "events", "sent", "left"), ALL, ids=[row[0] for row in ALL])
def test_dialogue(name, received, how, events, sent, left):
    assert converse([received], **how) == (events, sent, left)
    assert converse([received[at : at + 1] for at in range(len(received))], **how) == (events, sent, left)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ALL), st.lists(st.floats(0, 1), max_size=8))
def test_the_split_of_the_bytes_never_matters(row, cuts):
    _, received, how, events, sent, left = row
    places = sorted({int(cut * len(received)) for cut in cuts} - {0, len(received)})
    pieces = [received[start:end] for start, end in zip([0, *places], [*places, len(received)], strict=True)]
    assert converse([piece for piece in pieces if piece], **how) == (events, sent, left)


# --- what is no table ---


def dialogue(*, secure=True, starttls=False, login=True, greeting=False, bounds=BOUNDS):
    return PreAuthDialogue(
        secure=secure, starttls=starttls, mechanisms={"PLAIN": Plain}, login=login, greeting=greeting, bounds=bounds
    )


GREETINGS = [
    (True, False, True, b"IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN"),
    (True, True, True, b"IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN"),
    (True, False, False, b"IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN LOGINDISABLED"),
    (False, True, True, b"IMAP4rev1 SASL-IR LITERAL+ ID STARTTLS LOGINDISABLED"),
    (False, False, True, b"IMAP4rev1 SASL-IR LITERAL+ ID LOGINDISABLED"),
    (False, True, False, b"IMAP4rev1 SASL-IR LITERAL+ ID STARTTLS LOGINDISABLED"),
]


@pytest.mark.parametrize(("secure", "starttls", "login", "capability"), GREETINGS)
def test_the_greeting_tells_the_capability_and_no_version(secure, starttls, login, capability):
    greeted = dialogue(secure=secure, starttls=starttls, login=login, greeting=True)
    assert greeted.data_to_send() == b"* OK [CAPABILITY " + capability + b"] IMAP ready.\r\n"
    assert greeted.data_to_send() == b""


def test_a_server_that_speaks_tls_only_does_not_offer_starttls_in_clear():
    clear = dialogue(secure=False, starttls=False)
    clear.receive_data(b"a STARTTLS\r\n")
    assert clear.next_event() is None
    assert clear.data_to_send() == b"a BAD STARTTLS is not offered.\r\n"


def test_nothing_said_in_clear_survives_starttls():
    clear = dialogue(secure=False, starttls=True, greeting=True)
    clear.receive_data(b"x\r\n" * 9 + b"a CAPABILITY\r\nb STARTTLS\r\nc NOOP\r\n")
    assert clear.next_event() == StartTls()
    assert clear.next_event() is None
    assert clear.trailing_data == b"c NOOP\r\n"  # the driver sees it and hangs up

    inside = clear.after_tls(MECHANISMS)
    assert inside.data_to_send() == b""
    assert inside.trailing_data == b""
    inside.receive_data(b"x\r\nd STARTTLS\r\ne LOGIN ann pw\r\n")
    assert inside.next_event() == ANN
    inside.accept((b"IMAP4rev1",))
    assert inside.data_to_send() == (
        BAD_TAG + b"d BAD TLS is active already.\r\ne OK [CAPABILITY IMAP4rev1] Logged in.\r\n"
    )


@pytest.mark.parametrize(
    ("login", "told"),
    [
        (True, b"LITERAL+ ID AUTH=PLAIN\r\na OK CAPABILITY completed.\r\n"),
        (False, b"LITERAL+ ID AUTH=PLAIN LOGINDISABLED\r\na OK CAPABILITY completed.\r\nb " + NO_LOGIN),
    ],
)
def test_whether_passwords_are_accepted_survives_starttls(login, told):
    inside = dialogue(secure=False, starttls=True, login=login).after_tls({"PLAIN": Plain})
    inside.receive_data(b"a CAPABILITY\r\nb LOGIN ann pw\r\n")
    assert inside.next_event() == (ANN if login else None)
    assert inside.data_to_send() == b"* CAPABILITY IMAP4rev1 SASL-IR " + told


def test_the_bounds_survive_starttls():
    clear = dialogue(secure=False, starttls=True, bounds=DialogueBounds(max_line_bytes=20))
    inside = clear.after_tls(MECHANISMS)
    inside.receive_data(b"a NOOP " + b"x" * 20)
    with pytest.raises(ProtocolViolation):
        inside.next_event()


@pytest.mark.parametrize(
    "early", [b"", b"a", b"a LOGIN {3}\r\na", b"a LOGIN {9+}\r\na", b"a SELECT {9+}\r\na", b"\x16"]
)
def test_a_client_that_is_gone(early):
    events, _, _ = converse([early, b""] if early else [b""])
    assert events == [Gone()]


def test_a_client_that_is_gone_in_the_middle_of_an_exchange():
    assert converse([b"a AUTHENTICATE PLAIN\r\nAGF", b""])[:2] == ([Gone()], b"+ \r\n")


def test_a_client_that_is_gone_when_it_knows_the_account():
    """It has not broken off: the connection tells its own end."""
    assert converse([KEYED_RECEIVED, b""], answers=[supply()])[:2] == ([WANTED, Gone()], KEYED_SENT)


def test_the_last_word_is_the_tagged_response_even_where_the_client_is_gone():
    assert converse([STEPS_RECEIVED, b""], answers=[reject(last=True)])[:2] == (
        [STEPS, Gone()],
        STEPS_SENT + b"a " + FAILED,
    )


def test_what_a_client_sent_before_it_went_is_answered():
    assert converse([b"a NOOP\r\nb LOGIN ann pw\r\nc NOOP\r\n", b""], answers=[reject()])[:2] == (
        [ANN, Gone()],
        b"a OK NOOP completed.\r\nb " + FAILED + b"c OK NOOP completed.\r\n",
    )


@pytest.mark.parametrize("last", [b"a LOGOUT\r\n", b""])
def test_after_the_end_nothing_is_parsed(last):
    ended = dialogue()
    ended.receive_data(last)
    assert ended.next_event() in (LoggedOut(), Gone())
    ended.data_to_send()
    ended.receive_data(b"b NOOP\r\n")
    assert ended.next_event() is None
    assert ended.data_to_send() == b""


def test_after_accept_nothing_is_parsed():
    logged_in = dialogue()
    logged_in.receive_data(b"a LOGIN ann pw\r\nb NOOP\r\n")
    logged_in.next_event()
    logged_in.accept(())
    logged_in.data_to_send()
    logged_in.receive_data(b"c NOOP\r\n")
    assert logged_in.next_event() is None
    assert logged_in.data_to_send() == b""
    assert logged_in.trailing_data == b"b NOOP\r\nc NOOP\r\n"


def test_a_violation_stays_one():
    broken = dialogue()
    broken.receive_data(b"x" * 9000)
    for _ in range(2):
        with pytest.raises(ProtocolViolation, match=r"^line too long$"):
            broken.next_event()
    assert broken.data_to_send() == BYE


def test_what_waits_behind_a_pending_login_is_parsed_once_it_is_refused():
    pending = dialogue()
    pending.receive_data(b"a LOGIN ann pw\r\n" + b"b NOOP\r\n" * 900)
    assert pending.next_event() == ANN
    assert pending.next_event() is None
    assert len(pending.trailing_data) == len(b"b NOOP\r\n" * 900)
    pending.reject(Outcome.AUTHENTICATION_FAILED)
    assert pending.next_event() is None
    assert pending.trailing_data == b""


@pytest.mark.parametrize("outcome", list(REPLIES))
def test_every_reply_goes_out_with_the_tag(outcome):
    events, sent, _ = converse([b"t1 LOGIN ann pw\r\n"], answers=[reject(outcome)])
    assert events == [ANN]
    assert sent == b"t1 " + bytes(REPLIES[outcome]) + b"\r\n"


@pytest.mark.parametrize("answer", [accept(), reject()])
def test_an_answer_needs_a_pending_login(answer):
    with pytest.raises(AssertionError):
        answer(dialogue())


def test_the_bounds_are_the_callers():
    bounds = DialogueBounds(max_tag_bytes=1, max_bad_commands=2, max_literal_bytes=1)
    bounded = dialogue(bounds=bounds)
    bounded.receive_data(b"a LOGIN {2}\r\nab NOOP\r\n")
    assert bounded.next_event() is None
    assert bounded.data_to_send() == b"a " + TOO_BIG + BAD_TAG
    bounded.receive_data(b"x\r\n")
    with pytest.raises(ProtocolViolation, match=r"^too many bad commands$"):
        bounded.next_event()
    assert bounded.data_to_send() == BAD_TAG + BYE


def test_commands_without_end_end_the_connection():
    events, sent, _ = converse([b"a NOOP\r\n" * 1001])
    assert events == [ProtocolViolation]
    assert sent.count(b"a OK ") == 1000
    assert sent.endswith(BYE)
