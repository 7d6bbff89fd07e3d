"""The observer's behaviour once more, slow and obvious: generators that take one octet after another.

It shares no code with the observer except names of commands. Where the observer must not differ from it: what may go
to the backend, states, refusals, violations, and what is reported to the tally, call by call. `Carrier` drives either
as the relay engine does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Any

from proxy.imap.commands import COMMANDS, OTHER, REFUSED_AFTER_LOGIN
from proxy.imap.observer import Permit, Permits, Refusal, State, Tally

Steps = Generator[None, None, None]

HEADER = re.compile(rb"\{([0-9]+)(\+?)\}")
LONG_NUMBER = re.compile(rb"[0-9]+\+?\}")
TAG = re.compile(rb"[!#$&',\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~][!#$&'+,\-./0-9:;<=>?@A-Z\[\]^_`a-z|}~]*")


def announced(line: bytes) -> tuple[int, bool] | str | None:
    """(size, whether it is synchronizing), "too large", or None. Of the line its last 34 octets count."""
    seen = without_end(line[-34:])
    start = seen.rfind(b"{")
    if start >= 0 and (header := HEADER.fullmatch(seen[start:])):
        size = int(header[1])
        return (size, not header[2]) if size < 2**63 else "too large"
    if start < 0 and len(line) >= 34 and LONG_NUMBER.fullmatch(seen):
        return "too large"
    return None


def ends_in_quoted_string(line: bytes) -> bool:
    inside = escaped = False
    for octet in line:
        if escaped:
            escaped = False
        elif inside and octet == ord("\\"):
            escaped = True
        elif octet == ord('"'):
            inside = not inside
    return inside


def without_end(line: bytes) -> bytes:
    return line[: -2 if line.endswith(b"\r\n") else -1]


def name_of(words: list[bytes]) -> str:
    name = b" ".join(words[1:2]).upper().decode("latin-1")
    if name == "UID" and len(words) > 2:
        name += " " + words[2].upper().decode("latin-1")
    return name if name in COMMANDS else OTHER


class Oracle:
    """An Observer, as obvious as it can be."""

    def __init__(
        self,
        tally: Tally,
        clock: Callable[[], float],
        *,
        refused: frozenset[bytes] = REFUSED_AFTER_LOGIN,
        max_pending: int = 1000,
        permits: Permits | None = None,
    ) -> None:
        self.tally, self.clock, self.refused, self.max_pending = tally, clock, refused, max_pending
        self.permits = permits or (lambda name: Permit.GRANTED)
        self.refusal: Refusal | None = None
        self.violation: str | None = None
        self.blind = False
        self.waiting = False
        self.pending: dict[bytes, tuple[str, float]] = {}
        self.idling = b""  # the tag of the IDLE that is in effect
        self.asking = ""  # "literal" or "idle": a continuation request would be for that
        self.latest = b""  # the tag of the client's last command
        self.mid_command = False
        self.inside_response = False
        self.client_skip = self.backend_skip = 0
        self.octets = b""  # of the client's present chunk
        self.passed = 0  # how many of them may go on
        self.client = self.client_side()
        self.to_swallow: Generator[None, None, None] | None = None
        self.arrived = b""  # the backend's present octet
        self.backend = self.backend_side()
        next(self.backend)

    # --- seen from outside ---

    @property
    def state(self) -> State:
        if self.blind:
            return State.BLIND
        if self.idling:
            return State.IN_IDLE if len(self.pending) == 1 else State.BUSY
        quiet = not (self.pending or self.mid_command or self.refusal or self.violation)
        return State.BETWEEN_COMMANDS if quiet else State.BUSY

    @property
    def between_responses(self) -> bool:
        return not (self.inside_response or self.blind)

    def from_client(self, data: bytes) -> int:
        if self.violation or self.refusal:
            return 0
        if self.blind:
            return len(data)
        self.octets, self.passed = data, 0
        next(self.client)
        return self.passed

    def swallow(self, data: bytes) -> int | None:
        self.octets, self.passed = data, 0
        if self.to_swallow is None:
            self.to_swallow = self.swallowing()
        try:
            next(self.to_swallow)
        except StopIteration:
            self.to_swallow = None
            return self.passed
        return None

    def from_backend(self, data: bytes) -> None:
        for at in range(len(data)):
            if not self.blind:
                self.arrived = data[at : at + 1]
                next(self.backend)

    def close(self) -> None:
        self.end_idle()

    # --- the client's side ---

    def resume(self) -> None:
        """Let the client's side see that something changed. What it held is with the caller."""
        self.octets, self.passed = b"", 0
        next(self.client)

    def client_side(self) -> Steps:
        while True:
            yield from self.command()

    def next_octet(self) -> Generator[None, None, bytes]:
        while self.passed == len(self.octets):
            yield
        self.passed += 1
        return self.octets[self.passed - 1 : self.passed]

    def forever(self) -> Steps:
        while True:
            yield

    def whole_line(self) -> Generator[None, None, bytes]:
        """A line, or 256 octets of one; it stays where it is until somebody adds to `passed`."""
        while True:
            rest = self.octets[self.passed :]
            end = rest.find(b"\n")
            if 0 <= end < 256:
                return rest[: end + 1]
            if len(rest) >= 256:
                return rest[:256]
            yield

    def violate(self, violation: str) -> Steps:
        self.end_idle()
        self.violation = violation
        yield from self.forever()

    def end_idle(self) -> None:
        if self.idling:
            self.idling = b""
            self.tally.idle(-1)

    def hold_until(self, condition: Callable[[], bool]) -> Steps:
        self.mid_command = self.waiting = True
        while not condition():
            yield
        self.mid_command = self.waiting = False

    def answered(self, tag: bytes) -> Steps:
        yield from self.hold_until(lambda: tag not in self.pending)

    def command(self) -> Steps:
        while True:
            line = yield from self.whole_line()
            complete = line.endswith(b"\n")
            words = line.split()
            valid = len(words) > 1 and TAG.fullmatch(words[0]) is not None and line.startswith(words[0] + b" ")
            if not complete and not (valid and re.match(rb"\S+\s+\S+\s", line)):
                yield from self.violate("line start too long")
            name = name_of(words)
            header = announced(line) if complete else None
            misplaced = name in ("IDLE", "COMPRESS") and (header is not None or not complete)
            if name == OTHER and header is not None and without_end(line).endswith(b"+}"):
                misplaced = True
            if not words:
                self.passed += len(line)
                return
            if not valid or words[1].upper() in self.refused or misplaced:
                self.refusal = Refusal(words[0] if TAG.fullmatch(words[0]) else b"*", name)
                yield
                continue
            tag = words[0]
            if tag in self.pending:
                yield from self.answered(tag)
                continue
            if len(self.pending) >= self.max_pending:
                yield from self.hold_until(lambda: len(self.pending) < self.max_pending)
                continue
            permit = self.permits(name)
            if permit is Permit.GRANTED:
                break
            if permit is Permit.REFUSED:
                self.refusal = Refusal(tag, name, limited=True)
            yield
        self.pending[tag] = (name, self.clock())
        self.latest = tag
        if name == "IDLE":
            self.passed += len(line)
            yield from self.idle(tag)
        elif name == "COMPRESS":
            self.passed += len(line)
            yield from self.answered(tag)
        else:
            yield from self.arguments(tag, name)

    def arguments(self, tag: bytes, name: str) -> Steps:
        self.mid_command = True
        while True:
            started = self.passed  # where in the present chunk this part of the line begins
            line = b""
            while not line.endswith(b"\n"):
                if self.passed == len(self.octets):
                    yield
                    started = 0
                line += yield from self.next_octet()
            literal = announced(line)
            if literal == "too large":
                self.passed = started
                yield from self.violate("literal too large")
            if not isinstance(literal, tuple):
                break
            size, synchronizing = literal
            if synchronizing:
                if tag not in self.pending:
                    break
                self.asking = "literal"
                yield from self.hold_until(lambda: self.asking == "" or tag not in self.pending)
                if self.asking:
                    self.asking = ""
                    break
                self.mid_command = True
            elif ends_in_quoted_string(without_end(line)):
                self.passed = started
                yield from self.violate("literal in a quoted string")
            elif name == OTHER:
                self.passed = started
                yield from self.violate("literal of an unknown command")
            self.client_skip = size
            while self.client_skip:
                yield from self.next_octet()
                self.client_skip -= 1
        self.mid_command = False

    def idle(self, tag: bytes) -> Steps:
        self.asking = "idle"
        yield from self.hold_until(lambda: self.asking == "" or tag not in self.pending)
        if self.asking:
            self.asking = ""
            return
        while self.idling:
            rest = self.octets[self.passed :]
            end = rest.find(b"\n", 0, 256)
            if end >= 0:
                self.end_idle()
                self.passed += end + 1
                if without_end(rest[: end + 1]).rstrip(b"\r").upper() != b"DONE":
                    yield from self.answered(tag)
                return
            if len(rest) >= 256:
                yield from self.violate("line start too long")
            yield

    def swallowing(self) -> Steps:
        while True:
            line = b""
            while not line.endswith(b"\n"):
                line += yield from self.next_octet()
            literal = announced(line)
            if literal == "too large":
                yield from self.violate("literal too large")
            if not isinstance(literal, tuple) or literal[1]:
                self.refusal = None
                return
            if ends_in_quoted_string(without_end(line)):
                yield from self.violate("literal in a quoted string")
            for _ in range(literal[0]):
                yield from self.next_octet()

    # --- the backend's side ---

    def backend_octet(self) -> Generator[None, None, bytes]:
        yield
        return self.arrived

    def backend_side(self) -> Steps:
        while True:
            line = yield from self.backend_line(b"")
            if line.startswith(b"+"):
                self.continuation()
            elif not line.startswith(b"*"):
                self.tagged(line)
            self.resume()
            may_announce = re.match(rb"\* (?!(?:OK|NO|BAD|BYE|PREAUTH)\s)", line, re.IGNORECASE) is not None
            while may_announce and line.endswith(b"}\r\n"):
                literal = announced(line)
                if literal == "too large":
                    self.go_blind("backend_literal")
                if not isinstance(literal, tuple):
                    break
                self.backend_skip = literal[0]
                while self.backend_skip:
                    yield from self.backend_octet()
                    self.backend_skip -= 1
                line = yield from self.backend_line(b"...")
            self.inside_response = False

    def backend_line(self, before: bytes) -> Generator[None, None, bytes]:
        line = b""
        self.inside_response = bool(before)
        while not line.endswith(b"\n"):
            line += yield from self.backend_octet()
            self.inside_response = True
        return line

    def continuation(self) -> None:
        if self.asking == "idle":
            self.idling = self.latest
            self.tally.idle(+1)
        self.asking = ""

    def tagged(self, line: bytes) -> None:
        tag, space, status = line.partition(b" ")
        if not space or tag not in self.pending:
            return
        name, since = self.pending.pop(tag)
        self.tally.finished(name, self.clock() - since)
        if tag == self.idling:
            self.end_idle()
        if name == "COMPRESS" and status[:2].upper() == b"OK":
            self.go_blind("compress")

    def go_blind(self, reason: str) -> None:
        self.end_idle()
        self.blind, self.waiting = True, False
        self.client_skip = self.backend_skip = 0
        self.tally.blind(reason)


class Recorder:
    """A tally that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def finished(self, command: str, seconds: float) -> None:
        self.told.append((command, seconds))

    def idle(self, change: int) -> None:
        self.told.append(("idle", change))

    def blind(self, reason: str) -> None:
        self.told.append(("blind", reason))


class Carrier:
    """Carries chunks past an observer as the relay engine does, and writes down what could be seen."""

    def __init__(self, make: Callable[..., Any], **settings: object) -> None:
        self.tally = Recorder()
        self.now = 0.0
        self.observer = make(self.tally, lambda: self.now, **settings)
        self.held = b""
        self.forwarded = b""
        self.refused: list[Refusal] = []
        self.swallowing: Refusal | None = None
        self.seen: list[tuple[object, ...]] = []

    def client(self, data: bytes, *, skip: bool = False) -> None:
        """Octets from the client. `skip`: do not call the observer where it allows that."""
        if skip and not self.held and self.observer.client_skip >= len(data):
            self.observer.client_skip -= len(data)
            self.forwarded += data
        else:
            self.held += data
            self.feed()
        self.look()

    def backend(self, data: bytes, *, skip: bool = False) -> None:
        """Octets from the backend."""
        if skip and self.observer.backend_skip >= len(data):
            self.observer.backend_skip -= len(data)
        else:
            self.observer.from_backend(data)
        if self.held:
            self.feed()
        self.look()

    def feed(self) -> None:
        observer = self.observer
        while self.held and observer.violation is None:
            if observer.refusal is not None:
                self.swallowing = observer.refusal
                taken = observer.swallow(self.held)
                if taken is None:
                    self.held = b""
                    return
                self.held = self.held[taken:]
                self.refused.append(self.swallowing)
            passed = observer.from_client(self.held)
            self.forwarded += self.held[:passed]
            self.held = self.held[passed:]
            if observer.refusal is None:
                return

    def look(self) -> None:
        seen = self.observer
        places = (len(self.forwarded), len(self.held), seen.client_skip, seen.backend_skip)
        flags = (seen.state, seen.between_responses, seen.waiting, seen.violation, seen.refusal)
        self.seen.append((*places, *flags, len(self.tally.told)))
