"""The command line: every verb with its options; what they do stands in files of their own."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import typer

from proxy import __version__
from proxy.cli.changes import changes
from proxy.cli.looks import looks
from proxy.cli.options import DEFAULT_CONFIG, Config, Json, Sections

app = typer.Typer(
    name="imap-porter",
    help="An authenticating IMAP proxy and load balancer.",
    no_args_is_help=True,
    cls=Sections,
    context_settings={"max_content_width": 120},
    rich_markup_mode=None,  # to import it would take as long as all the rest
    pretty_exceptions_enable=False,  # a traceback with local variables could show a secret
)

_LOGIN_MECHANISMS = ("LOGIN", "PLAIN", "XOAUTH2", "OAUTHBEARER", "EXTERNAL", "SCRAM-SHA-256")


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise typer.BadParameter("expected an IP address, e.g. 192.0.2.7") from None


def _mechanism(value: str) -> str:
    # Typer's own choices are told in small letters where case doesn't matter.
    if value.upper() not in _LOGIN_MECHANISMS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(_LOGIN_MECHANISMS)}.")
    return value.upper()


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
def serve(config: Config = DEFAULT_CONFIG) -> None:
    """Serve mail clients, in the foreground, until SIGTERM."""
    from proxy.app.serve import serve as run

    raise typer.Exit(run(config))


@app.command()
def check(
    config: Config = DEFAULT_CONFIG,
    json_output: Json = False,
    connect: Annotated[
        bool,
        typer.Option(
            "--connect",
            help="Then try identity sources, DNS and backends: binds, keys, greetings, certificates, the probe login, "
            "which client address they see.",
        ),
    ] = False,
) -> None:
    """Read the settings as `serve` does, say every mistake, and start nothing."""
    from proxy.cli.check import check as run

    raise typer.Exit(run(config, json_output, connect))


@app.command()
def schema() -> None:
    """Print the settings' JSON Schema, for editors."""
    from proxy.cli.schema import schema as run

    run()


@app.command("test-login")
def try_login(
    name: str,
    config: Config = DEFAULT_CONFIG,
    mechanism: Annotated[
        str,
        typer.Option(
            callback=_mechanism,
            metavar=f"[{'|'.join(_LOGIN_MECHANISMS)}]",
            autocompletion=lambda: _LOGIN_MECHANISMS,
            help="How the client logs in; LOGIN is the command.",
        ),
    ] = "LOGIN",
    client_address: Annotated[
        str, typer.Option(callback=_address, help="Where the client is, for sources that want to know.")
    ] = "127.0.0.1",
    ask_all: Annotated[
        bool, typer.Option("--all", help="Ask every source, also those that a login would not come to.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Try a login: each source's answer, the route, the backend's reply. No mailbox is opened.

    The password or token is asked for, or read from the first line of standard input. Nothing is remembered or counted.

    Exit status: 0, the login works; 1, the settings have mistakes; 2, it is refused; 3, something is out.
    """
    from proxy.cli.test_login import try_login as run

    raise typer.Exit(run(name, mechanism, client_address, config, ask_all=ask_all, json_output=json_output))


@app.command("hash-password")
def hash_password(
    scram: Annotated[bool, typer.Option("--scram", help="Print SCRAM-SHA-256 keys in place of a hash.")] = False,
    token: Annotated[
        bool, typer.Option("--token", help="Ask for nothing: print a new token, and its hash for admin.tokens.")
    ] = False,
) -> None:
    """Ask for a password (or read a line of standard input) and print its hash for users.yaml."""
    from proxy.cli.hash_password import hash_password as run
    from proxy.cli.hash_password import make_token

    if scram and token:
        raise typer.BadParameter("expected either --scram or --token")
    raise typer.Exit(make_token() if token else run(scram=scram))


@app.command()
def demo(once: Annotated[bool, typer.Option("--once", help="End after the self-check.")] = False) -> None:
    """Two small IMAP servers and the proxy before them, on this machine's loopback."""
    from proxy.cli.demo import demo as run

    raise typer.Exit(run(once=once))


for _title, _part in (("Look at the running proxy", looks), ("Change the running proxy", changes)):
    for _command in _part.registered_commands:
        _command.rich_help_panel = _title
        app.registered_commands.append(_command)


def main() -> None:
    """The console script."""
    app()
