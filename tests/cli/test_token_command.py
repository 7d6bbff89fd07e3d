"""`imap-porter hash-password --token`: a token for the administrators' API, and its hash."""

from __future__ import annotations

from proxy.admin.tokens import Tokens
from proxy.settings.models import AdminToken
from tests.cli.asking import command


async def test_a_token_and_its_hash() -> None:
    result = command("hash-password", "--token")
    assert (result.exit_code, result.stderr) == (0, "")
    token, hashed = result.stdout.splitlines()
    assert len(token) == 43
    # 256 bits cannot be guessed, so to verify one is cheap.
    assert hashed.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    tokens = Tokens([AdminToken(name="ops", role="viewer", hash=hashed)])
    found = await tokens.find(token)
    assert found is not None
    assert found.name == "ops"
    assert await tokens.find(token[:-1]) is None


def test_each_is_new() -> None:
    assert len({command("hash-password", "--token").stdout.splitlines()[0] for _ in range(3)}) == 3


def test_one_or_the_other() -> None:
    result = command("hash-password", "--token", "--scram")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "either --scram or --token" in result.stderr
