"""The command line: every verb with its options; what they do stands in files of their own."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
Reason = Annotated[str, typer.Option("--reason", help="Why, for the log.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
_DEFAULT_CONFIG = Path("/etc/imap-porter/porter.yaml")
_LOGIN_MECHANISMS = ("LOGIN", "PLAIN", "XOAUTH2", "OAUTHBEARER", "EXTERNAL", "SCRAM-SHA-256")


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise typer.BadParameter("expected an IP address, e.g. 192.0.2.7") from None


def _duration(value: str) -> float:
    from proxy.settings.units import parse_duration

    try:
        return parse_duration(value)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--over") from None


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
def serve(config: Config = _DEFAULT_CONFIG) -> None:
    """Serve mail clients, in the foreground, until SIGTERM."""
    from proxy.app.serve import serve as run

    raise typer.Exit(run(config))


@app.command()
def check(
    config: Config = _DEFAULT_CONFIG,
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


@app.command()
def route(name: str, config: Config = _DEFAULT_CONFIG, json_output: Json = False) -> None:
    """Explain which backend a user is sent to: asked of the running proxy, or by the settings alone."""
    from proxy.cli.route import route as run

    raise typer.Exit(run(name, config, json_output))


@app.command()
def backends(config: Config = _DEFAULT_CONFIG, json_output: Json = False) -> None:
    """Show the running proxy's backends: state, health, weight, who is there.

    Exit status, of the commands below too: 0; 1, the settings have mistakes, or name no admin.socket; 2, it cannot be
    done; 3, the proxy does not answer.
    """
    from proxy.cli.backends import backends as run

    raise typer.Exit(run(config, json_output))


@app.command()
def status(config: Config = _DEFAULT_CONFIG, json_output: Json = False) -> None:
    """Show the running proxy's processes: generation, state, restarts, sessions."""
    from proxy.cli.processes import status as run

    raise typer.Exit(run(config, json_output))


@app.command()
def reload(config: Config = _DEFAULT_CONFIG, json_output: Json = False) -> None:
    """Have the running proxy read its settings anew: all or nothing, and no session is lost.

    It prints what changed, or every mistake. Where admin.socket is another in the new settings, send the first process
    SIGHUP in place of this.

    Exit status: 0; 1, the settings have mistakes, or name no admin.socket; 2, the proxy goes on as before; 3, it does
    not answer.
    """
    from proxy.cli.processes import reload as run

    raise typer.Exit(run(config, json_output))


@app.command()
def drain(
    reason: Reason,
    name: Annotated[str | None, typer.Argument(help="The backend.", show_default=False)] = None,
    backend: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The backend, to be emptied as the proxy is by SIGTERM, within --over."),
    ] = None,
    config: Config = _DEFAULT_CONFIG,
    over: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Move the users who are there, one after the other, within so long, e.g. 5m. With --backend: by "
            "default timeouts.drain.",
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Give a backend no new users. Those with a session there stay together, unless --over or --backend moves them."""
    named = [each for each in (name, backend) if each is not None]
    if len(named) != 1:
        raise typer.BadParameter("expected either NAME or --backend NAME")
    over_seconds = None if over is None else _duration(over)
    over_drain = backend is not None
    _change(named[0], "drain", config, reason, json_output, over_seconds=over_seconds, over_drain=over_drain)


@app.command()
def undrain(name: str, reason: Reason, config: Config = _DEFAULT_CONFIG, json_output: Json = False) -> None:
    """Take a backend into service: after a drain, or after it was set down."""
    _change(name, "undrain", config, reason, json_output)


@app.command()
def down(name: str, reason: Reason, config: Config = _DEFAULT_CONFIG, json_output: Json = False) -> None:
    """Send nobody to a backend. With backends.failover its users go to their next choice, else they are refused."""
    _change(name, "down", config, reason, json_output)


@app.command()
def weight(
    name: str,
    weight: Annotated[int, typer.Argument(min=0, max=1000, help="Relative to the others; 0: no one by hash.")],
    reason: Reason,
    config: Config = _DEFAULT_CONFIG,
    json_output: Json = False,
) -> None:
    """Change a backend's share of the users."""
    _change(name, "weight", config, reason, json_output, weight=weight)


def _change(name: str, verb: str, config: Path, reason: str, json_output: bool, **values: Any) -> NoReturn:
    from proxy.cli.backends import change as run

    raise typer.Exit(run(name, verb, config, reason=reason, json_output=json_output, **values))


@app.command("test-login")
def try_login(
    name: str,
    config: Config = _DEFAULT_CONFIG,
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
) -> None:
    """Ask for a password (or read a line of standard input) and print its hash for users.yaml."""
    from proxy.cli.hash_password import hash_password as run

    raise typer.Exit(run(scram=scram))


@app.command()
def demo(once: Annotated[bool, typer.Option("--once", help="End after the self-check.")] = False) -> None:
    """Two small IMAP servers and the proxy before them, on this machine's loopback."""
    from proxy.cli.demo import demo as run

    raise typer.Exit(run(once=once))


def main() -> None:
    """The console script."""
    app()
