"""Pages for operators say what the program says: quoted words, commands, links, and examples as they are shipped."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest
from typer.main import get_command

from proxy.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "config" / "examples"
FAILURES = DOCS / "failures.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

# What OpenSSL, Dovecot, Valkey or the system says, and names of things.
FOREIGN = {
    "wrong version number",
    "unsupported protocol",
    "peer did not return a certificate",
    "bind: invalidCredentials …",
    "verify error",
    "Unable to establish a connection to …",
    "Connection lost while receiving response",
    "invalid username-password pair or user is disabled",
    "HELLO must be called with the client already authenticated",
    "this user has no permissions to run the '…' command",
    "OOM command not allowed when used memory > 'maxmemory'",
    "You can't write against a read only replica",
    "--over",
    "limit",
    "outcome",
    "detail",
    "test-login",
    "serve",
    "reload",
    "proxy_protocol",
    "client_address",
    "login_failures_per_user",
}


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


def links() -> list[tuple[Path, str]]:
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        found += [(page, target) for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [(page, target) for page, target in found if not target.startswith(("http:", "https:"))]


@pytest.mark.parametrize(("page", "target"), links(), ids=lambda value: getattr(value, "name", value))
def test_links_lead_somewhere(page: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    led_to = page if not name else (page.parent / name).resolve()
    assert led_to.exists()
    if anchor:
        assert anchor in headings(led_to)


def test_the_map_is_complete() -> None:
    index = (DOCS / "index.md").read_text()
    assert [page.name for page in sorted(DOCS.glob("*.md")) if f"]({page.name}" not in index] == ["index.md"]


def cells() -> list[str]:
    """The first cell of each row of the failure table, which quotes."""
    rows = re.findall(r"^\| (.+?) \| ", FAILURES.read_text(), re.MULTILINE)
    return [quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row)]


@lru_cache
def source() -> str:
    """All that the program could say, with `…` for what is put in, and texts over several lines as one."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "proxy").rglob("*.py")))
    text = re.sub(r"""(["'])\s*\n\s*f?\1""", "", text).replace("\\'", "'")
    text = re.sub(r"\{[^{}\n]*(?:\{[^{}\n]*\}[^{}\n]*)*\}", "…", text)
    return text + (DOCS / "settings.md").read_text()


def test_there_are_enough_rows() -> None:
    assert len(re.findall(r"^\| (?!---)", FAILURES.read_text(), re.MULTILINE)) > 80


@pytest.mark.parametrize("quoted", sorted({*cells()} - FOREIGN))
def test_words_are_the_programs(quoted: str) -> None:
    """What stands between two `…`, and is long enough to mean something, is said somewhere."""
    words = re.sub(r"^(NO|\* BYE|BAD) (\[(\w+)\] )?", "", quoted)
    pieces = [piece.strip() for piece in words.split("…")]
    for piece in [piece for piece in pieces if len(piece) > 3]:
        assert piece in source()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "benchmarks.md"], ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = re.findall(r"`imap-porter ([a-z][a-z-]*)\b", page.read_text())
    named += re.findall(r"^\$ imap-porter ([a-z][a-z-]*)", page.read_text(), re.MULTILINE)
    assert {name for name in named if name not in known} == set()


@pytest.mark.parametrize("example", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
def test_examples_are_shown_as_they_are(example: Path) -> None:
    pages = "\n".join(page.read_text() for page in sorted(DOCS.glob("moving-from-*.md")))
    assert f"\n{example.read_text()}```\n" in pages
