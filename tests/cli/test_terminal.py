"""What the commands share."""

from __future__ import annotations

import json

import pytest
import trio

from proxy.cli.terminal import console, log_kept_back, plain, print_json, run, table
from proxy.observe.log import get_logger

log = get_logger()


def test_log_lines_come_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    with log_kept_back():
        log.exception("oauth.keys_crashed", text="\x1b[31m")
        log.warning("ldap.server_down")
        assert capsys.readouterr().err == ""
    err = capsys.readouterr().err
    assert "oauth.keys_crashed" in err
    assert "ldap.server_down" not in err, "the table tells it"
    assert err.rstrip("\n").isprintable()


def test_log_lines_survive_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with log_kept_back():
            log.error("oauth.keys_crashed")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "oauth.keys_crashed" in capsys.readouterr().err


def test_an_interrupt_deep_inside_comes_out_alone() -> None:
    async def strike() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
            outer.start_soon(trio.sleep_forever)
            nursery.start_soon(strike)

    with pytest.raises(KeyboardInterrupt):
        run(main)


def test_results_and_errors_come_out() -> None:
    async def main() -> int:
        return 3

    async def fail() -> int:
        raise ValueError("a bug")

    assert run(main) == 3
    with pytest.raises(ValueError, match="a bug"):
        run(fail)


def test_json_means_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\x1b[31m\x9b\u202e\x7f"
    print_json({"text": text})
    out = capsys.readouterr().out
    assert json.loads(out) == {"text": text}
    assert all(line.isascii() and line.isprintable() for line in out.split("\n"))


def test_plain_text() -> None:
    assert plain("[red]\x1b[31m\n").plain == r"[red]\x1b[31m\n"


def test_a_table_of_labels_has_no_head() -> None:
    assert not table().show_header
    assert table("a", "ms", numbers=("ms",)).columns[1].justify == "right"


@pytest.mark.parametrize(("terminal", "lines"), [(False, 1), (True, 2)])
def test_a_line_is_folded_for_a_terminal_alone(
    terminal: bool, lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    rows = table()
    rows.add_row("problem", plain("x" * 100))
    console().print(rows)
    assert len(capsys.readouterr().out.splitlines()) == lines
