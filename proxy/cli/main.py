"""The command line: every verb with its options; what they do stands in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proxy import __version__

app = typer.Typer(
    name="imap-porter",
    help="An authenticating IMAP proxy and load balancer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with local variables could show a secret
)

Config = Annotated[
    Path, typer.Option("--config", "-c", help="The settings file.", show_default=True, envvar="IMAP_PORTER_CONFIG")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
_DEFAULT_CONFIG = Path("/etc/imap-porter/porter.yaml")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"imap-porter {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """An authenticating IMAP proxy and load balancer."""


@app.command()
def serve(config: Config = _DEFAULT_CONFIG) -> None:
    """Serve mail clients, in the foreground, until SIGTERM."""
    from proxy.app.serve import serve as run

    raise typer.Exit(run(config))


@app.command()
def check(config: Config = _DEFAULT_CONFIG, json_output: Json = False) -> None:
    """Read the settings as `serve` does, say every mistake, and start nothing."""
    from proxy.cli.check import check as run

    raise typer.Exit(run(config, json_output))


@app.command()
def schema() -> None:
    """Print the settings' JSON Schema, for editors."""
    from proxy.cli.schema import schema as run

    run()


@app.command()
def route(name: str, config: Config = _DEFAULT_CONFIG, json_output: Json = False) -> None:
    """Explain which backend a user is sent to."""
    from proxy.cli.route import route as run

    raise typer.Exit(run(name, config, json_output))


@app.command("hash-password")
def hash_password() -> None:
    """Ask for a password (or read a line of standard input) and print its hash for users.yaml."""
    from proxy.cli.hash_password import hash_password as run

    raise typer.Exit(run())


@app.command()
def demo(once: Annotated[bool, typer.Option("--once", help="End after the self-check.")] = False) -> None:
    """Two small IMAP servers and the proxy before them, on this machine's loopback."""
    from proxy.cli.demo import demo as run

    raise typer.Exit(run(once=once))


def main() -> None:
    """The console script."""
    app()
