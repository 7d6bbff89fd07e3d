"""A cheap IMAP server for thousands of sessions: `python -m tests.servers.sink PORT` in a process of its own.

Everybody gets in. It knows NOOP, IDLE and LOGOUT; `SLOW` sends one untagged response in pieces that take a second
together, so that somebody is inside a response whenever that is looked at.
"""

from __future__ import annotations

import functools
import resource
import sys

import trio

GREETING = b"* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ IDLE AUTH=PLAIN] ready\r\n"
SLOW_OCTETS = 1000
_PIECES = 10
_SLOW_SECONDS = 1.0


async def serve(stream: trio.SocketStream) -> None:
    """One session."""
    buffer = b""

    async def line() -> bytes:
        nonlocal buffer
        while b"\r\n" not in buffer:
            received = await stream.receive_some(4096)
            if not received:
                raise EOFError
            buffer += received
        first, _, buffer = buffer.partition(b"\r\n")
        return first

    try:
        await stream.send_all(GREETING)
        while True:
            tag, command, *_ = (await line()).split(b" ")
            command = command.upper()
            if command == b"IDLE":
                await stream.send_all(b"+ idling\r\n")
                await line()
            elif command == b"SLOW":
                await stream.send_all(b"* 1 FETCH (BODY[] {%d}\r\n" % SLOW_OCTETS)
                for _ in range(_PIECES):
                    await trio.sleep(_SLOW_SECONDS / _PIECES)
                    await stream.send_all(b"x" * (SLOW_OCTETS // _PIECES))
                await stream.send_all(b")\r\n")
            elif command == b"LOGOUT":
                await stream.send_all(b"* BYE\r\n")
            await stream.send_all(b"%b OK done\r\n" % tag)
            if command == b"LOGOUT":
                return
    except (EOFError, ValueError, trio.BrokenResourceError):
        return
    finally:
        await trio.aclose_forcefully(stream)


def main(port: int) -> None:
    """Serve until killed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft != hard else (soft, hard))
    trio.run(functools.partial(trio.serve_tcp, serve, port, host="127.0.0.1", backlog=4096))


if __name__ == "__main__":
    main(int(sys.argv[1]))
