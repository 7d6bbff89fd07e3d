"""The house of docs/architecture.md: imports go down, never up, never sideways; pure rooms stay pure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROXY = Path(__file__).resolve().parents[2] / "proxy"

FLOORS = {
    "model": 0, "outcome": 0, "settings": 0, "observe": 0, "__init__": 0,
    "imap": 1, "sasl": 1,
    "transport": 2,
    "auth": 3, "routing": 3, "backends": 3, "ledger": 3, "limits": 3,
    "session": 4, "relay": 4, "admin": 4,
    "app": 5, "cli": 5, "__main__": 5,
}  # fmt: skip

# Rooms of one floor that may use each other: the story hands its session to the engine; both know the same values.
NEIGHBOURS = {
    ("session", "relay"), ("settings", "model"), ("model", "outcome"), ("cli", "app"), ("__main__", "cli"),
}  # fmt: skip

PURE = (
    "imap", "sasl", "model", "outcome", "routing", "ledger/homes", "ledger/moves", "ledger/pins", "ledger/resident",
    "backends/discovered",
)  # fmt: skip
THE_WORLD = {"trio", "ssl", "socket", "time", "random", "structlog", "prometheus_client", "OpenSSL", "os", "threading"}

# One foreign library, one door: where it may be imported, files or folders (with a slash).
DOORS = {
    "OpenSSL": {"transport/tls.py", "transport/tls_client.py", "transport/records.py"},
    "argon2": {"auth/passwords.py"},
    "coredis": {"ledger/fleet.py"},
    "dns": {"backends/discovery.py"},
    "httpx": {"auth/web.py"},
    "hypercorn": {"admin/"},
    "jwt": {"auth/oauth/"},
    "ldap3": {"auth/ldap/"},
    "prometheus_client": {"observe/metrics.py"},
    "pydantic": {"settings/", "admin/"},
    "pymap": {"cli/demo_backend.py"},
    "rich": {"cli/"},
    "scramp": {"auth/scram_keys.py"},
    "service_identity": {"transport/tls_client.py"},
    "starlette": {"admin/"},
    "structlog": {"observe/log.py"},
    "trio_websocket": {"cli/"},
    "typer": {"cli/"},
    "wsproto": {"transport/websocket.py"},
    "yaml": {"settings/", "cli/demo.py"},
}


def modules() -> list[Path]:
    return sorted(PROXY.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PROXY).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """Full dotted names that a file imports, those inside functions and type-checking blocks too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            if node.module == "proxy":
                found |= {f"proxy.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PROXY)))
def test_arrows_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in FLOORS, f"which floor does {room} stand on?"
    for name in imports(path):
        if not name.startswith("proxy."):
            continue
        other = name.split(".")[1]
        if other == room or other not in FLOORS:
            continue
        down = FLOORS[other] < FLOORS[room]
        assert down or (room, other) in NEIGHBOURS, f"{path.relative_to(PROXY)} imports {name}"


def test_no_permission_is_left_over() -> None:
    used = {(room_of(path), name.split(".")[1]) for path in modules() for name in imports(path) if name[:6] == "proxy."}
    assert used >= NEIGHBOURS


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_do_not_know_the_world(room: str) -> None:
    paths = [path for path in modules() if str(path.relative_to(PROXY).with_suffix("")).startswith(room)]
    assert paths
    for path in paths:
        used = {name.split(".")[0] for name in imports(path)}
        assert not used & THE_WORLD, f"{path.relative_to(PROXY)} imports {used & THE_WORLD}"


@pytest.mark.parametrize("library", DOORS)
def test_one_library_one_door(library: str) -> None:
    for path in modules():
        where = str(path.relative_to(PROXY))
        if any(name.split(".")[0] == library for name in imports(path)):
            doors = DOORS[library]
            assert any(where == door or (door[-1] == "/" and where.startswith(door)) for door in doors), where
