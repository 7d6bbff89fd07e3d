"""What the observer costs. By hand: `python tests/bench_observer.py`. Figures of one run compare, others don't."""

from __future__ import annotations

import sys
import timeit
from collections.abc import Callable, Iterable
from time import perf_counter

from proxy.imap.observer import Observer
from proxy.limits.meters import Meters
from proxy.settings.limit_models import CommandRate, Limits

CHUNK = 128 * 1024
GIB = 2**30


class NoTally:
    def finished(self, command: str, seconds: float) -> None:
        pass

    def idle(self, change: int) -> None:
        pass

    def blind(self, reason: str) -> None:
        raise AssertionError(reason)


def best(run: Callable[[], object], number: int) -> float:
    return min(timeit.repeat(run, number=number, repeat=5)) / number


def report(what: str, value: float, unit: str) -> None:
    sys.stdout.write(f"{what:<58}{value:10.4f} {unit}\n")


def exchange(command: bytes, answer: bytes) -> None:
    observer = Observer(NoTally(), perf_counter)

    def once() -> None:
        observer.from_client(command)
        observer.from_backend(answer)

    seconds = best(once, 100_000)
    report(command.split(b"\r\n")[0].decode()[:50] + ", command and answer", seconds * 1e6, "µs")


def limited(what: str, limits: Limits) -> None:
    meter = Meters(limits).open("ann")
    assert meter is not None
    observer = Observer(NoTally(), perf_counter, permits=meter.permits)

    def once() -> None:
        observer.from_client(b"a123 NOOP\r\n")
        observer.from_backend(b"a123 OK NOOP completed (0.001 + 0.000 secs).\r\n")

    report(f"a123 NOOP, command and answer, {what}", best(once, 100_000) * 1e6, "µs")


def pipelined(count: int) -> None:
    observer = Observer(NoTally(), perf_counter)
    commands = b"".join(b"a%d NOOP\r\n" % n for n in range(count))
    answers = b"".join(b"a%d OK NOOP completed.\r\n" % n for n in range(count))

    def once() -> None:
        observer.from_client(commands)
        observer.from_backend(answers)

    report(f"{count} pipelined NOOPs, all of them", best(once, 5_000) * 1e6, "µs")


def download(what: str, response: bytes, *, pending: int = 1, skip_outside: bool = False) -> None:
    stream = response * (64 * 2**20 // len(response))
    chunks = [stream[at : at + CHUNK] for at in range(0, len(stream), CHUNK)]
    observer = Observer(NoTally(), perf_counter)

    def once() -> None:
        for chunk in chunks:
            if skip_outside and observer.backend_skip >= len(chunk):
                observer.backend_skip -= len(chunk)
            else:
                observer.from_backend(chunk)

    for n in range(pending):
        observer.from_client(b"tag%d UID FETCH 1:* (FLAGS)\r\n" % n)
    assert observer.between_responses
    report(what, best(once, 1) * GIB / len(stream), "s/GiB")
    assert observer.between_responses


def upload() -> None:
    observer = Observer(NoTally(), perf_counter)
    size = 64 * 2**20
    chunk = b"x" * 16384

    def once() -> None:
        observer.from_client(b"a APPEND INBOX {%d}\r\n" % size)
        observer.from_backend(b"+ OK\r\n")
        for _ in range(size // len(chunk)):
            observer.from_client(chunk)
        observer.from_client(b"\r\n")
        observer.from_backend(b"a OK done\r\n")

    report("APPEND of 64 MiB in records of 16 KiB", best(once, 1) * GIB / size, "s/GiB")


def memory(what: str, feeds: Iterable[tuple[str, bytes]]) -> None:
    observer = Observer(NoTally(), perf_counter)
    for side, data in feeds:
        (observer.from_client if side == "C" else observer.from_backend)(data)
    held = [getattr(observer, slot) for slot in ("_tag", "_since", "_more", "_line", "_back", "_current")]
    size = sys.getsizeof(observer) + sum(map(sys.getsizeof, {id(thing): thing for thing in held if thing}.values()))
    report(what, size, "octets")


if __name__ == "__main__":
    exchange(b"a123 NOOP\r\n", b"a123 OK NOOP completed (0.001 + 0.000 secs).\r\n")
    exchange(b"a123 UID FETCH 1:* (FLAGS UID RFC822.SIZE)\r\n", b"a123 OK Fetch completed (0.001 + 0.000 secs).\r\n")
    exchange(
        b"a123 SELECT INBOX\r\n", b"* 5 EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 1] x\r\na123 OK [READ-WRITE] x\r\n"
    )
    exchange(b"a IDLE\r\n", b"+ idling\r\n* 3 EXISTS\r\na OK\r\n")
    never_reached = CommandRate(rate=1_000_000_000, per=1.0)
    limited("a limit on SEARCH", Limits(commands_per_user={"SEARCH": never_reached}))
    limited("one limit on all", Limits(commands_per_user={"all": never_reached}))
    limited(
        "two limits on all",
        Limits(commands_per_user={"all": never_reached}, commands_per_session={"all": never_reached}),
    )
    pipelined(20)
    message = b"* 1 FETCH (UID 7 BODY[] {%d}\r\n%s)\r\n"
    download("FETCH of 1 MiB literals", message % (2**20, b"x" * 2**20))
    download("FETCH of 1 MiB literals, skipped by the engine", message % (2**20, b"x" * 2**20), skip_outside=True)
    download("FETCH of 4 KiB literals", message % (4096, b"x" * 4096))
    download("FETCH of literals of 100 octets", message % (100, b"x" * 100))
    line = b"* 123 FETCH (UID 4567 FLAGS (\\Seen) RFC822.SIZE 12345)\r\n"
    download("untagged lines of 57 octets", line)
    download("untagged lines of 57 octets, nothing pending", line, pending=0)
    download("untagged lines of 57 octets, 20 pending", line, pending=20)
    upload()
    memory("memory, just made", [])
    memory("memory, in IDLE", [("C", b"a123 IDLE\r\n"), ("B", b"+ idling\r\n")])
