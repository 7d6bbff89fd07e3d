"""The octets of one command before login: its first line, then its literals and the text between them, within bounds.

Whether the command will be refused is decided elsewhere, with its first line; here it decides about its literals: no
continuation request goes out for a command that is refused anyway, and octets that come all the same are consumed.
"""

from __future__ import annotations

from collections.abc import Generator

from proxy.imap import responses
from proxy.imap.grammar import LiteralHeader, split_literal
from proxy.imap.reader import LineTooLong, Reader
from proxy.imap.strangers import TLS_HANDSHAKE, DialogueBounds, ForeignProtocol, TooBig, has_bad_character

BAD_CHARACTER = b"BAD Invalid character."
NO_LITERAL = b"BAD Literal not allowed here."
_TOO_BIG = b"NO [TOOBIG] Literal too large."


class CommandText:
    """Reads them; the methods are generators that yield None where more octets are needed."""

    __slots__ = ("_bounds", "_out", "_reader")

    def __init__(self, reader: Reader, out: bytearray, bounds: DialogueBounds) -> None:
        self._reader = reader
        self._out = out
        self._bounds = bounds

    def first_line(self) -> Generator[None, None, bytes]:
        """The line that a command begins with.

        Raises:
            ProtocolViolation: It is too long, or no IMAP at all.
        """
        reader, bounds = self._reader, self._bounds
        first = yield from reader.peek(1)
        if first == TLS_HANDSHAKE[:1] and (yield from reader.peek(2)) == TLS_HANDSHAKE:
            # Its record may hold no LF; who speaks TLS here waits for our handshake, not for a line.
            raise ForeignProtocol("TLS where plain text is spoken")
        try:
            return (yield from reader.line(bounds.max_line_bytes))
        except LineTooLong:
            head = yield from reader.peek(min(len(reader), bounds.max_tag_bytes + len(b" AUTHENTICATE ")))
            if head.upper().split(b" ", 2)[1:2] != [b"AUTHENTICATE"]:
                raise
        return (yield from reader.line(bounds.max_auth_line_bytes))

    def literals(
        self, parts: list[bytes], text_bytes: int, literal: LiteralHeader | None, refusal: bytes | None
    ) -> Generator[None, None, bytes | None]:
        """Add literals and the text between them to `parts`, or consume them; gives the refusal, if there is one.

        Args:
            parts: The text of the first line.
            text_bytes: How long that line was.
            refusal: Why the command is refused whatever follows; None: it is not.
        Raises:
            ProtocolViolation: A line is too long, or a literal that must be consumed is.
        """
        literal_bytes = 0
        while literal is not None:
            literal_bytes += literal.size
            too_big = literal_bytes > self._bounds.max_literal_bytes
            if too_big and not literal.synchronizing:
                raise TooBig("literal too large")
            if refusal is None and literal.binary:
                refusal = NO_LITERAL
            if refusal is None and too_big:
                refusal = _TOO_BIG
            if refusal is None:
                if literal.synchronizing:
                    self._out += responses.READY_FOR_LITERAL
                parts.append((yield from self._reader.octets(literal.size)))
            elif literal.synchronizing:
                return refusal  # the client waits; it was not told to go on and so ends its command here
            else:
                yield from self._reader.skip(literal.size)
            line = yield from self._reader.line(max(0, self._bounds.max_line_bytes - text_bytes))
            text_bytes += len(line)
            text, literal = split_literal(line)
            if refusal is None and (has_bad_character(text) or b"\0" in parts[-1]):
                refusal = BAD_CHARACTER
            parts.append(text)
        return refusal
