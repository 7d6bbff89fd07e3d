"""Messages between processes: whole, in order, and nothing of what was left unfinished."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from proxy.transport import packets
from proxy.transport.packets import MOST_BYTES, Packets, decode, encode, packet_pair, receive_packet, send_packet

texts = st.text(st.characters(), max_size=40)
values = st.lists(st.one_of(texts, st.integers(), st.booleans(), st.none()), max_size=5)
messages = st.lists(st.builds(lambda kind, rest: [kind, *rest], texts, values))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = packet_pair()
    with one, other:
        yield one, other


@given(messages)
def test_what_is_encoded_is_decoded(said: list[list[Any]]) -> None:
    assert [message for packet in encode(said) for message in decode(packet)] == said


def test_as_many_to_a_packet_as_fit() -> None:
    said = [["a", "x" * 25_000]] * 5
    assert [len(decode(packet)) for packet in encode(said)] == [2, 2, 1]
    assert all(len(packet) < MOST_BYTES + 64 for packet in encode([["a", "y" * 1_000_000], ["b"]]))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"=",
        b"=[",
        b"={}",
        b'=["kind"]',
        b"=[[]]",
        b"=[null]",
        b"=[[1]]",
        b'=[[null, "kind"]]',
        b'=[[["kind"]]]',
        b'=[{"kind": 1}]',
        b"=NaN",
        b"=[[" + b"9" * 5000 + b"]]",
        b"\xff",
        b"[]",
        b"<[[1]]",
        b"=\xff\xfe",
        b"=" + b"[" * 50_000,
    ],
)
def test_what_makes_no_sense_is_passed_over(packet: bytes) -> None:
    assert decode(packet) == []


def test_what_makes_sense_is_taken() -> None:
    assert decode(b'=[["a"],1,[],[2],["b",{"later": [1]}]]') == [["a"], ["b", {"later": [1]}]]


def test_without_a_loop(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    assert receive_packet(other) is None
    with open(os.devnull) as file:
        assert send_packet(one, [["files", ["a"]]], [file.fileno()])
        received = receive_packet(other)
        assert received is not None
        said, (descriptor,) = received
        assert said == [["files", ["a"]]]
        assert os.path.sameopenfile(descriptor, file.fileno())
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
    with pytest.raises(ValueError, match="not one packet"):
        send_packet(one, [["long", "x" * MOST_BYTES]])
    while send_packet(one, [["fill", "x" * 10_000]]):
        pass
    while receive_packet(other):
        pass
    one.close()
    with pytest.raises(EOFError):
        receive_packet(other)
    with pytest.raises(OSError, match="Broken pipe"):
        send_packet(other, [["late"]])


async def test_all_of_a_turn_goes_together(pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery) -> None:
    one, other = pair
    sender = Packets(one)
    nursery.start_soon(sender.run)
    for number in range(3):
        sender.post(["n", number])
    assert await Packets(other).receive() == [["n", 0], ["n", 1], ["n", 2]]


async def test_order_is_kept_between_the_lazy_and_the_urgent(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    one, other = pair
    sender, receiver = Packets(one), Packets(other)
    nursery.start_soon(sender.run)
    sender.post_lazily(["lazy"])
    sender.post(["urgent"])
    sender.post_lazily(["in company"])
    assert await receiver.receive() == [["lazy"], ["urgent"], ["in company"]]


async def test_the_lazy_comes_by_itself(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    one, other = pair
    sender = Packets(one)
    nursery.start_soon(sender.run)
    for number in range(2):
        sender.post_lazily(["lazy", number])
        assert await Packets(other).receive() == [["lazy", number]]


async def test_large_messages_and_a_slow_reader(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    one, other = pair
    sender, receiver = Packets(one), Packets(other)
    nursery.start_soon(sender.run)
    said = [["a", "x" * 700_000], ["b"], ["c", "y" * 70_000], *([["d", "z" * 5_000]] * 200)]
    for message in said:
        sender.post(message)
    await trio.testing.wait_all_tasks_blocked()
    assert sender.waiting > 0
    heard: list[Any] = []
    while len(heard) < len(said):
        heard += await receiver.receive()
    assert heard == said
    assert sender.waiting == 0


async def test_nothing_is_taken_of_what_was_left_unfinished(pair: tuple[socket.socket, socket.socket]) -> None:
    """A steward that dies in the middle of a long message, and the next one on the same socket."""
    one, other = pair
    first, further, *_, last = list(encode([["view", "x" * 200_000]]))
    receiver = Packets(other)
    for packet in (first, further, *encode([["hello", 1]]), last, *encode([["hello", 2]])):
        one.send(packet)
    assert await receiver.receive() == [["hello", 1]]
    assert await receiver.receive() == [["hello", 2]]


async def test_a_packet_that_is_too_large_is_passed_over(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    one.send(b'=[["a","' + b"x" * (MOST_BYTES + 1000) + b'"]]')
    one.send(b'=[["b"]]')
    assert await Packets(other).receive() == [["b"]]


def leave_last_words(one: socket.socket, other: socket.socket) -> None:
    """What was said to it unread, `one` has something to say and is gone."""
    assert send_packet(other, [["unread"]])
    assert send_packet(one, [["last words"]])
    one.close()


async def test_last_words_are_heard(pair: tuple[socket.socket, socket.socket]) -> None:
    leave_last_words(*pair)
    receiver = Packets(pair[1])
    assert await receiver.receive() == [["last words"]]
    assert await receiver.receive() == []


def test_last_words_are_heard_without_a_loop(pair: tuple[socket.socket, socket.socket]) -> None:
    leave_last_words(*pair)
    assert receive_packet(pair[1]) == ([["last words"]], [])
    with pytest.raises(EOFError):
        receive_packet(pair[1])


async def test_descriptors_of_a_packet_that_makes_no_sense(pair: tuple[socket.socket, socket.socket]) -> None:
    """They are closed, and nobody takes it for the end."""
    one, other = pair
    read, write = os.pipe()
    os.set_blocking(read, False)
    socket.send_fds(one, [b"?"], [write])
    os.close(write)
    one.send(b'=[["on it goes"]]')
    assert await Packets(other).receive_with_descriptors() == ([["on it goes"]], [])
    assert os.read(read, 1) == b""
    os.close(read)


async def test_descriptors_nobody_asked_for(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    read, write = os.pipe()
    os.set_blocking(read, False)
    assert send_packet(one, [["files"]], [write])
    os.close(write)
    assert await Packets(other).receive() == [["files"]]
    assert os.read(read, 1) == b""
    os.close(read)


async def test_whoever_talks_on_and_on_leaves_others_their_turn(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    one, other = pair
    receiver, turns = Packets(other), 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    nursery.start_soon(other_work)
    for _ in range(50):
        assert send_packet(one, [["more"]])
        assert await receiver.receive() == [["more"]]
    assert turns >= 25
    nursery.cancel_scope.cancel()


async def test_what_is_no_json_is_the_mistake_of_who_posts_it(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    one, other = pair
    sender = Packets(one)
    nursery.start_soon(sender.run)
    with pytest.raises(TypeError):
        sender.post(["set", {1}])
    with pytest.raises(TypeError):
        sender.post_lazily(["set", {1}])
    sender.post(["sense"])
    assert await Packets(other).receive() == [["sense"]]


async def test_what_is_posted_does_not_change_any_more(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery
) -> None:
    sender = Packets(pair[0])
    nursery.start_soon(sender.run)
    said = ["report", {"accepting": False}]
    sender.post(said)
    said[1] = None
    assert await Packets(pair[1]).receive() == [["report", {"accepting": False}]]


class Short(socket.socket):
    """A socket of a machine that is short of memory, the first time."""

    failed = False

    def send(self, *arguments: Any) -> int:
        if not self.failed:
            self.failed = True
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return super().send(*arguments)


async def test_short_of_memory_is_not_the_end(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    one, other = pair
    with Short(fileno=one.detach()) as short:
        assert not send_packet(short, [["kept by the sender"]])
        short.failed = False
        sender = Packets(short)
        nursery.start_soon(sender.run)
        sender.post(["a"])
        assert await Packets(other).receive() == [["a"]]
        nursery.cancel_scope.cancel()


async def test_what_is_put_together_has_a_bound(
    pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packets, "_MOST_ASSEMBLED", 2 * MOST_BYTES)
    sender, receiver = Packets(pair[0]), Packets(pair[1])
    nursery.start_soon(sender.run)
    for message in (["a", "x" * 300_000], ["b"], ["c", "x" * 70_000]):
        sender.post(message)
    assert await receiver.receive() == [["b"]]
    ((kind, text),) = await receiver.receive()
    assert (kind, len(text)) == ("c", 70_000)


async def test_closed_while_others_wait_in_it(pair: tuple[socket.socket, socket.socket]) -> None:
    ours = Packets(pair[0])
    ends: list[Any] = []

    async def receive() -> None:
        ends.append(await ours.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(ours.run)
        for _ in range(20):
            ours.post(["fill", "x" * 50_000])
        await trio.testing.wait_all_tasks_blocked()
        assert ours.waiting > 0
        ours.close()
    assert ends == [[]]
    assert await ours.receive() == []
    ours.close()


async def test_the_end(pair: tuple[socket.socket, socket.socket], nursery: trio.Nursery) -> None:
    one, other = pair
    sender = Packets(one)
    other.close()
    with trio.fail_after(5):
        sender.post(["to nobody"])
        await sender.run()
    sender.post(["to nobody"])
    sender.post_lazily(["to nobody"])
    assert sender.waiting == 0
    assert await sender.receive() == []
    assert packets.decode(b"") == []
