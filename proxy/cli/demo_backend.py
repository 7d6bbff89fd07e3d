"""One in-memory IMAP server for the demo: pymap with a few users and a mailbox that names the server.

Run as a process of its own (pymap is asyncio): python -m proxy.cli.demo_backend NAME PORT USER:PASSWORD...
"""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from pymap.backend.dict import Config, DictBackend, Identity
from pymap.imap import IMAPService
from pymap.parsing.message import AppendMessage
from pymap.user import Passwords, UserMetadata

_MESSAGE = """\
From: {name} <postmaster@example.org>
To: {user}
Subject: Greetings from {name}
Date: {date}
Message-Id: <greeting-{name}-{user}>

Hello {user}, this mailbox lives on {name}.
"""


async def _serve(name: str, port: int, accounts: dict[str, str]) -> None:
    parser = ArgumentParser()
    DictBackend.add_subparser("dict", parser.add_subparsers())
    IMAPService.add_arguments(parser)
    parser.set_defaults(passlib_cfg=None, debug=False)
    # pymap makes one user of its own from its arguments; the first of ours is that one.
    first = next(iter(accounts))
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--no-tls", "dict", "--demo-user", first]
    args = parser.parse_args(arguments)
    backend, config = await DictBackend.init(args)
    config.apply_context()
    for user, password in accounts.items():
        await _add_user(backend, config, name, user, password)
    async with AsyncExitStack() as stack:
        await backend.start(stack)
        await IMAPService(backend, config).start(stack)
        print("ready", flush=True)
        await asyncio.Event().wait()


async def _add_user(backend: DictBackend, config: Config, name: str, user: str, password: str) -> None:
    hashed = await Passwords(config).hash_password(password)
    backend.login.users_dict[user] = UserMetadata(config, user, password=hashed)
    now = datetime.now(UTC)
    text = _MESSAGE.format(name=name, user=user, date=now.strftime("%a, %d %b %Y %H:%M:%S +0000"))
    async with Identity(user, backend.login, None, frozenset()).new_session() as session:
        await session.mailbox_set.add_mailbox(f"Hello from {name}")
        inbox = await session.mailbox_set.get_mailbox("INBOX")
        await inbox.append(AppendMessage(text.replace("\n", "\r\n").encode(), now, frozenset()))


def main() -> None:
    """Serve until killed."""
    name, port, *accounts = sys.argv[1:]
    try:
        asyncio.run(_serve(name, int(port), dict(account.split(":", 1) for account in accounts)))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
