"""What commands that ask the running proxy have in common, as typer sees it; and the help's sections.

What takes long to import is imported by the commands that need it: so `--help` and a shell's completion are quick.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from proxy.cli import completion

DEFAULT_CONFIG = Path("/etc/imap-porter/porter.yaml")

Config = Annotated[
    Path, typer.Option("--config", "-c", help="The settings file.", show_default=True, envvar="IMAP_PORTER_CONFIG")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the log.", show_default=False)]
Backend = Annotated[
    str, typer.Argument(metavar="BACKEND", help="Its name.", autocompletion=completion.backends, show_default=False)
]
UserName = Annotated[
    str, typer.Argument(metavar="USER", help="His name, as he may log in with it.", show_default=False)
]
For = Annotated[
    str | None,
    typer.Option("--for", metavar="DURATION", help="For so long, e.g. 1h; by default until `release`."),
]
_Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        envvar="IMAP_PORTER_URL",
        help="Ask at admin.address, https://HOST:PORT, in place of the settings' admin.socket; it takes a token: "
        "--token-file, or the variable IMAP_PORTER_TOKEN.",
    ),
]
_TokenFile = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="With --url: its first line is the token.")
]
_Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        envvar="IMAP_PORTER_CA",
        help="With --url: the authorities to trust (PEM), in place of the system's.",
    ),
]


@dataclass(frozen=True, slots=True)
class Call:
    """Which proxy is asked, and how the answer is shown."""

    config: Path
    json_output: bool = False
    url: str | None = None  # None: by the socket that the settings name
    token_file: Path | None = None
    ca: Path | None = None


def _common(
    config: Config = DEFAULT_CONFIG,
    url: _Url = None,
    token_file: _TokenFile = None,
    ca: _Ca = None,
    json_output: Json = False,
) -> Call:
    return Call(config, json_output, url, token_file, ca)


def asks(function: Callable[..., int]) -> Callable[..., None]:
    """A command that asks the running proxy: it has the options of all those, and gets them as `call`.

    Typer reads a command's options from its signature; so this makes one, of both.

    Args:
        function: Takes `call` first, and gives the exit status.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "call"]
    shared = list(inspect.signature(_common, eval_str=True).parameters.values())

    @functools.wraps(function)
    def command(**values: Any) -> None:
        call = _common(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        raise typer.Exit(function(call, **values))

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *shared)
    ]  # in their order, whether or not they have a default
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def seconds_of(duration: str | None, option: str) -> float | None:
    """An option's duration.

    Raises:
        typer.BadParameter: It is none.
    """
    from proxy.settings.units import parse_duration

    try:
        return None if duration is None else parse_duration(duration)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint=option) from None


class Sections(TyperGroup):
    """The program: its help lists the commands in sections."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write them, each with its first sentence."""
        widest = max(map(len, self.commands))
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            title = getattr(command, "rich_help_panel", None) or "Commands"
            text = command.get_short_help_str(max(formatter.width - widest - 6, 20))
            sections.setdefault(title, []).append((name.ljust(widest), text))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)
