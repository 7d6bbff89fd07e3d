"""Commands that ask the running proxy, run in this process against the real API of a house that is made up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from typer.testing import CliRunner, Result

from proxy.cli.main import app
from tests.admin.houses import FakeHouse, open_house


def command(*arguments: str | Path) -> Result:
    """Run the program."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


async def asked(house: FakeHouse, config: Path, *arguments: str) -> Result:
    """Run a command while the house is open at the socket that the settings name."""
    async with open_house(config.with_name("admin.sock"), house):
        return await trio.to_thread.run_sync(lambda: command(*arguments, "-c", config))


async def while_it_runs(
    house: FakeHouse, config: Path, happen: Callable[[FakeHouse], Awaitable[None]], *arguments: str
) -> Result:
    """Run a command while the house is open, and something happens there."""
    results: list[Result] = []

    async def run() -> None:
        results.append(await trio.to_thread.run_sync(lambda: command(*arguments, "-c", config)))
        nursery.cancel_scope.cancel()

    async with open_house(config.with_name("admin.sock"), house):
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await happen(house)
                await trio.sleep_forever()
    return results[0]
