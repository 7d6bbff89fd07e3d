"""The relay on real socket pairs: a script of the wire, from both ends."""

from __future__ import annotations

import random
import socket
import time

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from proxy.imap.commands import REFUSED_AFTER_LOGIN
from proxy.imap.observer import Observer
from proxy.outcome import FAREWELLS, Outcome
from tests.relay.stage import PairStream, Splicer, nothing_arrives


class BrokenObserver(Observer):
    """Has a bug."""

    def from_client(self, data: bytes) -> int:
        raise ZeroDivisionError


async def test_octets_pass_both_ways(splice: Splicer) -> None:
    wire = splice()
    await wire.client.send_all(b"a NOOP\r\n")
    assert await wire.backend.exactly(8) == b"a NOOP\r\n"
    await wire.backend.send_all(b"a OK done\r\n")
    assert await wire.client.exactly(11) == b"a OK done\r\n"
    assert wire.tally.commands == ["NOOP"]
    assert (wire.relay.bytes_from_client, wire.relay.bytes_from_backend) == (8, 11)


async def test_what_was_said_early_comes_first(splice: Splicer) -> None:
    wire = splice(early=(b"a NOOP\r\nb NO", b"* 3 EXISTS\r\n"))
    assert await wire.client.exactly(12) == b"* 3 EXISTS\r\n"
    await wire.client.send_all(b"OP\r\n")
    assert await wire.backend.exactly(16) == b"a NOOP\r\nb NOOP\r\n"


async def test_megabytes_pass_unchanged_against_back_pressure(splice: Splicer) -> None:
    """Both sides write at once and read late, so that both directions are kept and resumed many times."""
    wire = splice()
    generator = random.Random(7)
    size = 3_000_000
    up, down = generator.randbytes(size), generator.randbytes(size)
    received: dict[str, bytes] = {}

    async def read(name: str, stream: PairStream, count: int) -> None:
        await trio.sleep(0.05)
        received[name] = await stream.exactly(count)

    head_up, head_down = b"a APPEND x {%d+}\r\n" % size, b"* 1 FETCH (BODY[] {%d}\r\n" % size
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.client.send_all, head_up + up)
        nursery.start_soon(wire.backend.send_all, head_down + down)
        nursery.start_soon(read, "up", wire.backend, len(head_up) + size)
        nursery.start_soon(read, "down", wire.client, len(head_down) + size)
    assert received["up"] == head_up + up
    assert received["down"] == head_down + down


@pytest.mark.parametrize("command", [b"LOGIN a b", b"authenticate PLAIN", b"STARTTLS", b"UNAUTHENTICATE"])
async def test_a_command_that_ended_with_login_is_answered_here(splice: Splicer, command: bytes) -> None:
    wire = splice()
    await wire.client.send_all(b"x " + command + b"\r\ny NOOP\r\n")
    assert (await wire.client.receive()).startswith(b"x BAD ")
    assert await wire.backend.exactly(8) == b"y NOOP\r\n"


async def test_a_literal_of_a_command_that_nobody_knows_hides_nothing(splice: Splicer) -> None:
    wire = splice()
    await wire.client.send_all(b"a FOO {21+}\r\nb COMPRESS DEFLATE\r\n\r\nc NOOP\r\n")
    assert (await wire.client.receive()).startswith(b"a BAD ")
    assert await wire.backend.exactly(8) == b"c NOOP\r\n"


async def test_a_pipelined_logout_needs_no_second_farewell(splice: Splicer) -> None:
    wire = splice()
    await wire.client.send_all(b"a NOOP\r\nb LOGOUT\r\n")
    await wire.backend.exactly(18)
    answer = b"* 1 EXISTS\r\n" * 100 + b"a OK\r\n* BYE Logging out\r\nb OK Logout completed.\r\n"
    await wire.backend.send_all(answer)
    wire.backend.close()
    assert await wire.client.exactly(len(answer)) == answer
    assert await wire.client.receive() == b""
    assert wire.ended == [Outcome.LOGGED_OUT]


async def test_a_refusal_waits_for_the_answers_before_it(splice: Splicer) -> None:
    wire = splice()
    await wire.client.send_all(b"a NOOP\r\nb LOGIN {3+}\r\nfoo {3+}\r\nbar\r\nc NOOP\r\n")
    assert await wire.backend.exactly(8) == b"a NOOP\r\n"
    await nothing_arrives(wire.client)
    await wire.backend.send_all(b"a OK\r\n")
    said = await wire.client.exactly(len(b"a OK\r\nb BAD "))
    assert said == b"a OK\r\nb BAD "
    assert await wire.backend.exactly(8) == b"c NOOP\r\n"


async def test_a_refused_command_in_pieces_never_passes(splice: Splicer) -> None:
    wire = splice()
    for octet in b"t LOGIN a b\r\n":
        await wire.client.send_all(bytes([octet]))
        await trio.testing.wait_all_tasks_blocked(0.001)
    assert (await wire.client.receive()).startswith(b"t BAD ")
    wire.client.end()
    assert await wire.backend.receive() == b""


async def test_compress_is_refused_with_no_where_it_is_not_wanted(splice: Splicer) -> None:
    wire = splice(refused=REFUSED_AFTER_LOGIN | {b"COMPRESS"})
    await wire.client.send_all(b"z COMPRESS DEFLATE\r\n")
    assert (await wire.client.receive()).startswith(b"z NO [CANNOT] ")


async def test_a_client_that_half_closes_still_gets_its_answer(splice: Splicer) -> None:
    wire = splice()
    await wire.client.send_all(b"a NOOP\r\n")
    wire.client.end()
    assert await wire.backend.exactly(8) == b"a NOOP\r\n"
    assert await wire.backend.receive() == b""
    await wire.backend.send_all(b"a OK done\r\n")
    wire.backend.close()
    assert await wire.client.exactly(11) == b"a OK done\r\n"
    assert await wire.client.receive() == b""
    assert wire.ended == [Outcome.CLIENT_CLOSED]


async def test_a_backend_lost_between_responses_is_announced(splice: Splicer) -> None:
    wire = splice()
    wire.backend.close()
    assert await wire.client.receive() == FAREWELLS[Outcome.BACKEND_CLOSED]
    assert await wire.client.receive() == b""
    assert wire.ended == [Outcome.BACKEND_CLOSED]


@pytest.mark.parametrize("part", [b"* 1 FETCH (BODY[] {100}\r\nhalf of", b"* 1 FET", b"a OK almo"])
async def test_a_backend_lost_inside_a_response_ends_without_a_word(splice: Splicer, part: bytes) -> None:
    wire = splice()
    await wire.client.send_all(b"a FETCH 1 BODY[]\r\n")
    await wire.backend.exactly(18)
    await wire.backend.send_all(part)
    wire.backend.close()
    assert await wire.client.exactly(len(part)) == part
    assert await wire.client.receive() == b""
    assert wire.ended == [Outcome.BACKEND_CLOSED]


async def test_a_logout_needs_no_second_farewell(splice: Splicer) -> None:
    wire = splice()
    await wire.client.send_all(b"a LOGOUT\r\n")
    await wire.backend.exactly(10)
    answer = b"* BYE Logging out\r\na OK Logout completed.\r\n"
    await wire.backend.send_all(answer)
    wire.backend.close()
    assert await wire.client.exactly(len(answer)) == answer
    assert await wire.client.receive() == b""
    assert wire.ended == [Outcome.LOGGED_OUT]


async def test_a_farewell_of_the_backend_is_the_only_one(splice: Splicer) -> None:
    wire = splice()
    await wire.backend.send_all(b"* BYE Disconnected for inactivity.\r\n")
    wire.backend.close()
    assert await wire.client.exactly(36) == b"* BYE Disconnected for inactivity.\r\n"
    assert await wire.client.receive() == b""
    assert wire.ended == [Outcome.BACKEND_CLOSED]


async def test_a_silent_session_is_ended(splice: Splicer) -> None:
    wire = splice()
    wire.relay.sweep(splice.engine.now + 1859)
    assert wire.ended == []
    wire.relay.sweep(splice.engine.now + 1861)
    assert await wire.client.receive() == FAREWELLS[Outcome.IDLE_TIMEOUT]
    assert wire.ended == [Outcome.IDLE_TIMEOUT]
    assert await wire.backend.receive() == b""


async def test_a_session_whose_token_has_expired_ends_at_a_safe_point(splice: Splicer) -> None:
    wire = splice()
    now = splice.engine.now
    wire.relay.session.ends_at = now + 900
    wire.relay.sweep(now + 899)
    assert wire.ended == []
    await wire.client.send_all(b"a FETCH 1 BODY[]\r\n")
    await wire.backend.exactly(18)
    wire.relay.sweep(now + 901)  # a command is under way
    assert wire.ended == []
    await wire.backend.send_all(b"a OK done\r\n")
    await wire.client.exactly(11)
    wire.relay.sweep(now + 906)
    assert wire.ended == [Outcome.EXPIRED]
    assert await wire.client.receive() == FAREWELLS[Outcome.EXPIRED]
    assert await wire.backend.receive() == b""


async def test_a_session_that_never_comes_to_a_safe_point_outlives_its_token_by_minutes_at_most(
    splice: Splicer,
) -> None:
    wire = splice()
    now = splice.engine.now
    wire.relay.session.ends_at = now + 900
    await wire.client.send_all(b"a FETCH 1 BODY[]\r\n")
    await wire.backend.exactly(18)
    await wire.backend.send_all(b"* 1 FETCH (BODY[] {9}\r\nabc")
    await wire.client.exactly(26)
    wire.relay.sweep(now + 1199)
    assert wire.ended == []
    wire.relay.sweep(now + 1201)
    assert wire.ended == [Outcome.EXPIRED]
    assert await wire.client.receive() == b""  # nothing is put into the middle of a literal


async def test_inside_compression_a_silence_has_to_do(splice: Splicer) -> None:
    wire = splice()
    await wire.client.send_all(b"a COMPRESS DEFLATE\r\n")
    await wire.backend.exactly(20)
    await wire.backend.send_all(b"a OK begin\r\n")
    await wire.client.exactly(12)
    now = splice.engine.now
    wire.relay.session.ends_at = now - 1
    wire.relay.sweep(now + 4)
    assert wire.ended == []
    wire.relay.sweep(now + 6)
    assert wire.ended == [Outcome.EXPIRED]
    assert await wire.client.receive() == b""


async def test_a_client_that_is_gone_takes_its_backend_along(splice: Splicer) -> None:
    wire = splice()
    wire.client.close()
    assert await wire.backend.receive() == b""
    wire.backend.close()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert wire.ended == [Outcome.CLIENT_CLOSED]


async def test_sessions_get_their_turn_from_tasks_that_are_busy(splice: Splicer) -> None:
    """Without a checkpoint: the engine's own task cannot have done it."""
    wire = splice()
    await trio.testing.wait_all_tasks_blocked()
    wire.client.raw.send(b"a NOOP\r\n")
    splice.engine.now = time.monotonic() + 60  # it has just had its turn
    splice.engine.turn()
    with pytest.raises(BlockingIOError):
        wire.backend.raw.recv(100)
    splice.engine.now = time.monotonic() - 60
    splice.engine.turn()
    assert wire.backend.raw.recv(100) == b"a NOOP\r\n"


async def test_safe_points(splice: Splicer) -> None:
    wire = splice()
    assert wire.relay.at_safe_point
    await wire.client.send_all(b"a IDLE\r\n")
    await wire.backend.exactly(8)
    assert not wire.relay.at_safe_point
    await wire.backend.send_all(b"+ idling\r\n")
    await wire.client.exactly(10)
    assert wire.relay.at_safe_point
    assert wire.tally.idling == 1
    wire.relay.say_goodbye(Outcome.DRAINED)
    assert await wire.client.receive() == FAREWELLS[Outcome.DRAINED]
    assert wire.tally.idling == 0


async def test_a_bug_in_one_session_ends_that_session_only(splice: Splicer) -> None:
    broken, sound = splice(), splice()
    broken.relay._observer = BrokenObserver(broken.tally, time.monotonic)
    await broken.client.send_all(b"a NOOP\r\n")
    assert await broken.client.receive() == b""
    assert broken.ended == [Outcome.SERVER_BUG]
    await sound.client.send_all(b"a NOOP\r\n")
    assert await sound.backend.exactly(8) == b"a NOOP\r\n"


async def test_a_client_that_vanishes_while_it_is_not_read_is_noticed(splice: Splicer) -> None:
    wire = splice()
    await wire.client.send_all(b"a NOOP\r\nb LOGIN x y\r\n")
    assert await wire.backend.exactly(8) == b"a NOOP\r\n"
    wire.client.close()
    assert await wire.backend.receive() == b""
    assert wire.ended == [Outcome.CLIENT_CLOSED]


async def test_refused_commands_without_end_end_the_session(splice: Splicer) -> None:
    wire = splice()
    await wire.client.send_all(b"a LOGIN\r\n" * 1000)
    said = b""
    while data := await wire.client.receive():
        said += data
    assert said.count(b"a BAD ") == 50
    assert said.endswith(FAREWELLS[Outcome.PROTOCOL_VIOLATION])
    assert wire.ended == [Outcome.PROTOCOL_VIOLATION]


class KeyUpdates:
    """A TLS connection that has to answer a KeyUpdate while its socket is full, and then gives a command."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reads = 0

    def recv(self, count: int) -> bytes:
        self.reads += 1
        if self.reads == 1:
            raise SSL.WantWriteError
        return self.sock.recv(count)

    def send(self, data: bytes | memoryview) -> int:
        return self.sock.send(data)


async def test_a_key_update_meets_a_full_backend_and_nothing_spins(splice: Splicer) -> None:
    wire = splice()
    updates = KeyUpdates(wire.relay._client.socket)  # type: ignore[union-attr]
    wire.relay._client_recv = updates.recv
    body = b"a APPEND x {2000000+}\r\n" + b"x" * 2_000_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.client.send_all, body)
        with trio.fail_after(5):  # the backend reads nothing: all is full, and then nobody may have anything to do
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert await wire.backend.exactly(len(body)) == body
