"""The syntax of commands: words, strings, literals, base64 (RFC 9051 §9).

A command arrives as text that literals interrupt. Whoever reads it collects the parts in their order (text, literal,
text, ...) and then reads the arguments off them with `Arguments`, left to right, each octet once.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import NamedTuple

MAX_QUOTED_BYTES = 1000  # longer arguments travel better as literals: some servers bound their lines near there
MAX_ID_PAIRS, MAX_ID_FIELD_BYTES, MAX_ID_VALUE_BYTES = 30, 30, 1024  # RFC 2971 §3.3

_ATOM_CHARS = bytes(octet for octet in range(0x21, 0x7F) if octet not in b'(){%*"\\]')
_ASTRING_CHARS = _ATOM_CHARS + b"]"
_TAG_CHARS = bytes(octet for octet in _ASTRING_CHARS if octet not in b"+")
_BEYOND_ANY_BOUND = 1 << 63  # RFC 9051 §9: number64 ends below this
_QUOTE = 0x22


class BadSyntax(Exception):
    """A command breaks the grammar; it gets BAD with this text. Never holds what was received."""


class LiteralHeader(NamedTuple):
    """What announces a literal at the end of a line: `{3}`, `{3+}`, `~{3}` (RFC 9051 §4.3)."""

    size: int
    synchronizing: bool  # the sender waits for a continuation request
    binary: bool  # a literal8, with the tilde


def is_tag(word: bytes) -> bool:
    """Whether this may tag a command: ASTRING-CHARs but no "+"."""
    return bool(word) and not word.translate(None, _TAG_CHARS)


def is_quotable(value: bytes) -> bool:
    """Whether every server will take this as a quoted string: printable ASCII, and not too long."""
    return len(value) <= MAX_QUOTED_BYTES and value.isascii() and value.decode("ascii").isprintable()


def quote(value: bytes) -> bytes:
    """A quoted string. The caller has asked `is_quotable`."""
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def decode_base64(encoded: bytes) -> bytes:
    """The octets of a base64 string that is exactly what an encoder writes.

    Raises:
        BadSyntax: Foreign characters, padding missing or too much, bits set that say nothing (RFC 4648 §3.5).
    """
    # Comparing with what an encoder makes of the result is the one complete check: a2b_base64 skips what it does not
    # know, and its strict mode still takes "YWJj==".
    try:
        decoded = a2b_base64(encoded)
    except Base64Error:
        raise BadSyntax("Invalid base64.") from None
    if b2a_base64(decoded, newline=False) != encoded:
        raise BadSyntax("Invalid base64.")
    return decoded


def split_literal(line: bytes) -> tuple[bytes, LiteralHeader | None]:
    """The text of a line, and the literal that its end announces, if it does.

    Digits only: a header with a sign, a blank or an underscore is text, and no argument can have such text.
    """
    if not line.endswith(b"}"):
        return line, None
    start = line.rfind(b"{")
    digits = line[start + 1 : -1]
    synchronizing = not digits.endswith(b"+")
    if not synchronizing:
        digits = digits[:-1]
    if start < 0 or not digits.isdigit():  # of bytes: ASCII digits, at least one
        return line, None
    binary = line[:start].endswith(b"~")
    # int() of a line full of digits would take long, or raise.
    size = int(digits) if len(digits) < 20 else _BEYOND_ANY_BOUND
    return line[: start - binary], LiteralHeader(size, synchronizing, binary)


class Arguments:
    """Reads the arguments of one command, left to right. Every method raises BadSyntax where they don't fit."""

    __slots__ = ("_next_part", "_parts", "_position", "_text")

    def __init__(self, parts: list[bytes]) -> None:
        """Take the parts: text, literal, text, ..., text."""
        self._parts = parts
        self._text = parts[0]
        self._position = 0
        self._next_part = 1  # the literal behind the present text

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return self._position == len(self._text) and self._next_part == len(self._parts)

    def end(self) -> None:
        """Nothing may be left."""
        if not self.ended:
            raise BadSyntax("Too many or malformed arguments.")

    def accept(self, token: bytes) -> bool:
        """Step over `token` if it comes next."""
        if not self._text.startswith(token, self._position):
            return False
        self._position += len(token)
        return True

    def expect(self, token: bytes) -> None:
        """Step over `token`, which must come next."""
        if not self.accept(token):
            raise BadSyntax("Missing or malformed arguments.")

    def word(self) -> bytes:
        """All up to the next space or the end of the text, at least one octet."""
        end = self._text.find(b" ", self._position)
        word = self._text[self._position : end] if end >= 0 else self._text[self._position :]
        if not word:
            raise BadSyntax("Missing argument.")
        self._position += len(word)
        return word

    def atom(self) -> bytes:
        """One atom that a space or the end of the text follows."""
        word = self.word()
        if word.translate(None, _ATOM_CHARS):
            raise BadSyntax("Invalid character in atom.")
        return word

    def astring(self) -> bytes:
        """An atom (that may hold "]"), a quoted string or a literal."""
        if self._position == len(self._text) or self._text[self._position] == _QUOTE:
            return self.string()
        word = self.word()
        if word.translate(None, _ASTRING_CHARS):
            raise BadSyntax("Invalid character in atom.")
        return word

    def string(self) -> bytes:
        """A quoted string or a literal."""
        if self._position < len(self._text):
            self.expect(b'"')
            return self._quoted()
        if self._next_part == len(self._parts):
            raise BadSyntax("Missing argument.")
        literal, self._text = self._parts[self._next_part : self._next_part + 2]
        self._position = 0
        self._next_part += 2
        return literal

    def nstring(self) -> bytes | None:
        """A string, or None for NIL."""
        if self._text[self._position : self._position + 3].upper() != b"NIL":
            return self.string()
        self._position += 3
        return None

    def _quoted(self) -> bytes:
        """What stands up to the closing quote. Octets above 0x7F pass: UTF-8 is common there (RFC 9051 §4.3)."""
        text, start = self._text, self._position
        value = bytearray()
        end = text.find(b'"', start)
        while end >= 0:
            escape = text.find(b"\\", start, end)
            if escape < 0:
                self._position = end + 1
                return bytes(value) + text[start:end]
            escaped = text[escape + 1 : escape + 2]
            if escaped not in (b'"', b"\\"):
                raise BadSyntax("Invalid escape in quoted string.")
            value += text[start:escape] + escaped
            start = escape + 2
            if start > end:  # that quote was the escaped one; any other is still the next
                end = text.find(b'"', start)
        raise BadSyntax("Unterminated quoted string.")


def read_id(arguments: Arguments) -> dict[str, str]:
    """The parameters of ID: NIL, or pairs of a field and its value, within their bounds (RFC 2971 §3.3).

    Gives the fields that have a value, their names in lower case; what is no UTF-8 is replaced.

    Raises:
        BadSyntax: They are malformed, too many or too long.
    """
    fields: dict[str, str] = {}
    if not arguments.accept(b"("):
        if arguments.nstring() is not None:
            raise BadSyntax("Missing or malformed arguments.")
        return fields
    pairs = 0
    while not arguments.accept(b")"):
        if pairs == MAX_ID_PAIRS:
            raise BadSyntax("Too many ID parameters.")
        if pairs:
            arguments.expect(b" ")
        field = arguments.string()
        arguments.expect(b" ")
        value = arguments.nstring()
        if len(field) > MAX_ID_FIELD_BYTES or (value is not None and len(value) > MAX_ID_VALUE_BYTES):
            raise BadSyntax("ID parameter too long.")
        if value is not None:
            fields[field.lower().decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        pairs += 1
    return fields
