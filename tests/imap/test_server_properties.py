"""What holds for the dialogue before login whatever a client sends."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.imap.events import ExchangeBrokenOff, Gone, LoggedOut, LoginOffered, ProtocolViolation, StartTls
from proxy.imap.grammar import is_quotable, quote
from proxy.imap.server import PreAuthDialogue
from proxy.imap.strangers import DialogueBounds
from proxy.model import Account, AccountWanted, Challenge, Credentials, Identity, MalformedResponse
from proxy.outcome import REPLIES, Outcome
from proxy.sasl.plain import Plain

SMALL = DialogueBounds(max_line_bytes=48, max_auth_line_bytes=80, max_literal_bytes=24, max_tag_bytes=8)


class Chatty:
    """A mechanism that asks twice and tells its failure."""

    def __init__(self):
        self.asked = 0

    def step(self, response):
        self.asked += 1
        return Challenge(b"x") if self.asked < 3 else Credentials("CHATTY", "ann", "", response or b"")

    def failure(self, outcome):
        return Challenge(b"failed")


class Keyed:
    """A mechanism that wants an account, and then one response."""

    def __init__(self):
        self.account = None

    def step(self, response):
        if response is None:
            return Challenge(b"")
        if self.account is None:
            return AccountWanted("KEYED", "ann")
        if response != b"A":
            raise MalformedResponse
        return Credentials("KEYED", "ann", "", b"", proven=self.account)

    def supply(self, account):
        self.account = account
        return Challenge(b"salt")

    def failure(self, outcome):
        return None


MECHANISMS = {"PLAIN": Plain, "CHATTY": Chatty, "KEYED": Keyed}
ACCOUNT = Account(Identity("ann", "file"))
NEED_AN_ANSWER = LoginOffered | AccountWanted

# Whole commands and splinters of them: hypothesis puts them together in ways that no table has.
SPLINTERS = [
    *(b"a ", b"b.1 ", b"* ", b"+ ", b" ", b"\r\n", b"\n", b"\r", b"\0", b'"', b"\\", b"(", b")", b"=", b"*\r\n"),
    *(b"CAPABILITY", b"noop", b"LOGOUT", b"ID", b"STARTTLS", b"LOGIN", b"AUTHENTICATE PLAIN", b"authenticate chatty"),
    *(b"{3}\r\n", b"{3+}\r\n", b"~{3}\r\n", b"~{3+}\r\n", b"{0+}\r\n", b"{25}\r\n", b"{25+}\r\n", b"{-1}\r\n", b"{3"),
    *(
        b"ann",
        b'"ann" ',
        b"pw\r\n",
        b"NIL",
        b'("f" "v")\r\n',
        b"AGFubgBwdw==",
        b"QQ==\r\n",
        b"\xc3\xa4",
        b"\x16",
        b"\x03",
    ),
    *(b"GET / HTTP/1.1\r\n", b"Host: ", b"x" * 30),
    *(b"a LOGIN ann pw\r\n", b"a LOGIN {3}\r\nann {2+}\r\npw\r\n", b"a AUTHENTICATE PLAIN AGFubgBwdw==\r\n"),
    *(
        b"a AUTHENTICATE KEYED\r\n",
        b"a AUTHENTICATE KEYED QQ==\r\n",
        b"a AUTHENTICATE KEYED QQ==\r\nQQ==\r\n",
        b"*\r\n",
    ),
    *(b"a AUTHENTICATE CHATTY\r\n", b"a NOOP\r\n", b"a CAPABILITY\r\n", b"a SELECT {3+}\r\nabc\r\n"),
]
streams = st.lists(st.sampled_from(SPLINTERS) | st.binary(max_size=5), max_size=25).map(b"".join)
cuts = st.lists(st.integers(0, 400), max_size=12)
answers = st.lists(st.booleans(), max_size=6)
secure = st.booleans()
login = st.booleans()


def pieces_of(stream, cut):
    places = sorted({place for place in cut if 0 < place < len(stream)})
    return [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True) if start < end]


def converse(pieces, secure, login, answers, *, gone=False):
    """Feed the pieces and answer the logins; return what happened, what was sent, what is left over."""
    dialogue = PreAuthDialogue(secure=secure, starttls=not secure, mechanisms=MECHANISMS, login=login, bounds=SMALL)
    happened, sent, answers = [], b"", list(answers)
    for piece in [*pieces, *([b""] if gone else [])]:
        dialogue.receive_data(piece)
        try:
            while (event := dialogue.next_event()) is not None:
                happened.append(event)
                if isinstance(event, NEED_AN_ANSWER) and answers:
                    if not answers.pop(0):
                        dialogue.reject(Outcome.AUTHENTICATION_FAILED)
                    elif isinstance(event, LoginOffered):
                        dialogue.accept((b"IMAP4rev1",))
                    else:
                        dialogue.supply(ACCOUNT)
        except ProtocolViolation as violation:
            return [*happened, str(violation)], sent + dialogue.data_to_send(), None
        sent += dialogue.data_to_send()
    return happened, sent, dialogue.trailing_data


@settings(max_examples=150, deadline=None)
@given(streams, cuts, secure, login, answers)
def test_the_split_of_the_bytes_never_matters(stream, cut, secure, login, answers):
    whole = converse(pieces_of(stream, []), secure, login, answers)
    assert converse(pieces_of(stream, cut), secure, login, answers) == whole
    assert converse([bytes([octet]) for octet in stream], secure, login, answers) == whole


@settings(max_examples=150, deadline=None)
@given(streams | st.binary(max_size=300), secure, login, answers)
def test_any_bytes_end_in_an_answer_or_a_violation(stream, secure, login, answers):
    happened, sent, _ = converse(pieces_of(stream, []), secure, login, answers, gone=True)
    asked = [event for event in happened if isinstance(event, NEED_AN_ANSWER)]
    pending = len(asked) > len(answers)
    accepted = any(yes and isinstance(event, LoginOffered) for event, yes in zip(asked, answers, strict=False))
    assert pending or accepted or isinstance(happened[-1], str | StartTls | LoggedOut | Gone)
    assert sent.startswith(b"* OK [CAPABILITY ")
    assert sent.endswith(b"\r\n")
    for line in sent.split(b"\r\n"):  # whole lines, and none that a client's octets could have broken
        assert b"\r" not in line
        assert b"\n" not in line
        assert b"\0" not in line


@settings(max_examples=150, deadline=None)
@given(streams, cuts, login)
def test_no_login_is_offered_in_clear(stream, cut, login):
    happened, sent, _ = converse(pieces_of(stream, cut), False, login, [])
    assert not any(isinstance(event, NEED_AN_ANSWER) for event in happened)
    assert b"\r\n+ \r\n" not in sent


@settings(max_examples=150, deadline=None)
@given(streams, cuts, answers)
def test_where_nobody_knows_passwords_the_command_login_offers_none(stream, cut, answers):
    happened, _, _ = converse(pieces_of(stream, cut), True, False, answers)
    assert not any(isinstance(event, LoginOffered) and event.credentials.mechanism == "LOGIN" for event in happened)


EXCHANGES = [b"a AUTHENTICATE KEYED QQ==\r\n", b"a AUTHENTICATE KEYED\r\n", b"QQ==\r\n", b"*\r\n", b"!\r\n", b"\r\n"]


@settings(max_examples=150, deadline=None)
@given(
    streams | st.lists(st.sampled_from([*EXCHANGES, b"a NOOP\r\n"]), max_size=15).map(b"".join),
    st.lists(st.sampled_from([True, True, False]), max_size=6),
)
def test_every_account_that_is_told_has_one_end(stream, answers):
    """Its proof, or that there is none; or the connection has ended, which tells of all. Nothing else is broken off."""
    happened, _, _ = converse(pieces_of(stream, []), True, True, answers, gone=True)
    left = list(answers)
    told = False  # an account, by the event before
    for event in happened:
        if told:
            proven = isinstance(event, LoginOffered) and event.credentials.proven == ACCOUNT
            assert proven or isinstance(event, ExchangeBrokenOff | Gone | str)
        else:
            assert not isinstance(event, ExchangeBrokenOff)
        told = bool(isinstance(event, NEED_AN_ANSWER) and left and left.pop(0) and isinstance(event, AccountWanted))
    assert not told


@settings(max_examples=150, deadline=None)
@given(streams.map(lambda stream: stream * 6), st.integers(1, 40), secure, login, answers)
def test_no_buffer_passes_its_bound(stream, read_bytes, secure, login, answers):
    dialogue = PreAuthDialogue(secure=secure, starttls=not secure, mechanisms=MECHANISMS, login=login, bounds=SMALL)
    answers = list(answers)
    largest = max(SMALL.max_line_bytes, SMALL.max_auth_line_bytes, SMALL.max_literal_bytes)
    while stream:
        dialogue.receive_data(stream[:read_bytes])
        stream = stream[read_bytes:]
        assert len(dialogue.trailing_data) <= largest + read_bytes
        try:
            while (event := dialogue.next_event()) is not None:
                if isinstance(event, ExchangeBrokenOff):
                    continue
                if not isinstance(event, NEED_AN_ANSWER) or not answers or not answers.pop(0):
                    return  # what comes behind is read by the backend, or not at all
                if isinstance(event, AccountWanted):
                    dialogue.supply(ACCOUNT)
                else:
                    dialogue.reject(Outcome.LIMIT)
        except ProtocolViolation:
            return
        # a command of 7 octets can bring a reply of about 150
        assert len(dialogue.data_to_send()) <= 500 + 40 * (largest + read_bytes)


secrets = st.binary(min_size=1, max_size=24).filter(lambda secret: b"\0" not in secret)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=5)


def login_with_quotes(name, secret):
    return b"a LOGIN " + quote(name) + b" " + quote(secret) + b"\r\n"


def login_with_literals(name, secret):
    return b"a LOGIN {%d}\r\n%b {%d+}\r\n%b\r\n" % (len(name), name, len(secret), secret)


def plain_at_once(name, secret):
    return b"a AUTHENTICATE PLAIN " + b64encode(b"\0" + name + b"\0" + secret) + b"\r\n"


def plain_when_asked(name, secret):
    return b"a AUTHENTICATE PLAIN\r\n" + b64encode(b"\0" + name + b"\0" + secret) + b"\r\n"


@settings(max_examples=150, deadline=None)
@given(
    names,
    secrets,
    st.sampled_from([login_with_quotes, login_with_literals, plain_at_once, plain_when_asked]),
    cuts,
)
def test_names_and_secrets_arrive_as_they_were_sent(name, secret, say, cut):
    octets = name.encode()
    if say is login_with_quotes and not (is_quotable(octets) and is_quotable(secret)):
        say = login_with_literals
    dialogue = PreAuthDialogue(secure=True, starttls=False, mechanisms=MECHANISMS)
    offers = []
    for piece in pieces_of(say(octets, secret), cut):
        dialogue.receive_data(piece)
        offers.append(dialogue.next_event())
    *before, offer = offers
    assert before == [None] * len(before)
    mechanism = "PLAIN" if say in (plain_at_once, plain_when_asked) else "LOGIN"
    assert offer == LoginOffered(Credentials(mechanism, name, "", secret))


SECRET = b"zX9-s3cret"
SECRET_STREAMS = [
    login_with_quotes(b"ann", SECRET),
    login_with_literals(b"ann", SECRET),
    plain_at_once(b"ann", SECRET),
    plain_when_asked(b"ann", SECRET),
    b"a LOGIN ann " + SECRET + b"(\r\n",
    b'a LOGIN ann "' + SECRET + b"\r\n",
    b"a LOGIN ann {10+}\r\n" + SECRET + b"x\r\n",
    b"a LOGIN ann " + SECRET * 1000,
    b"a LOGIN ann {9999+}\r\n" + SECRET,
    b"a AUTHENTICATE PLAIN " + b64encode(SECRET) + b"\r\n",
    b"a AUTHENTICATE PLAIN " + SECRET + b"!\r\n" * 10,
]


@pytest.mark.parametrize("stream", SECRET_STREAMS, ids=range(len(SECRET_STREAMS)))
def test_no_secret_shows_in_a_repr_an_error_or_a_reply(stream):
    dialogue = PreAuthDialogue(secure=True, starttls=False, mechanisms=MECHANISMS)
    dialogue.receive_data(stream)
    seen = []
    try:
        seen.append(repr(dialogue.next_event()))
    except ProtocolViolation as violation:
        error: BaseException | None = violation
        while error is not None:  # what a traceback would print
            seen.append(repr(error))
            error = error.__cause__ or error.__context__
    seen += [repr(dialogue), repr(vars(dialogue)), repr(dialogue.data_to_send())]
    for text in seen:
        assert SECRET.decode() not in text
        assert b64encode(SECRET).decode() not in text
        assert b64encode(b"\0ann\0" + SECRET).decode() not in text


@given(st.sampled_from(list(REPLIES)), st.booleans(), st.booleans())
def test_after_a_refusal_the_dialogue_goes_on(outcome, tells, last):
    dialogue = PreAuthDialogue(secure=True, starttls=False, mechanisms=MECHANISMS, greeting=False)
    dialogue.receive_data(b"a AUTHENTICATE CHATTY\r\n\r\n\r\n" if tells else b"a LOGIN ann pw\r\n")
    assert isinstance(dialogue.next_event(), LoginOffered)
    dialogue.data_to_send()
    dialogue.reject(outcome, last=last)
    refusal = b"a " + bytes(REPLIES[outcome]) + b"\r\n"
    failure = b"+ " + b64encode(b"failed") + b"\r\n" if tells and not last else b""
    assert dialogue.data_to_send() == (failure or refusal)
    dialogue.receive_data(b"\r\nb NOOP\r\n" if failure else b"b NOOP\r\n")
    assert dialogue.next_event() is None
    assert dialogue.data_to_send() == (refusal if failure else b"") + b"b OK NOOP completed.\r\n"
