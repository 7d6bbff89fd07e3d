from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from proxy.settings.keys import ITEM, walk
from proxy.settings.models import Settings
from proxy.settings.reference import DIALECT, differences, schema_json, settings_markdown


def test_every_key_is_described() -> None:
    for key in walk():
        assert key.field.description, key
        assert key.takes_hold in ("live", "new sessions", "reload"), key


def test_known_keys_by_name() -> None:
    names = [str(key) for key in walk()]
    assert len(names) == len(set(names)) == 220
    for name in ("listeners[].trusted_networks", "identity[].file.path", "backends.servers[].url", "log.level"):
        assert name in names


def test_the_page_has_every_key() -> None:
    page = settings_markdown()
    for key in walk():
        assert f"| `{key.steps[-1]}` |" in page
    assert "| `idle` | duration | `31m` | " in page
    assert "| `default_domain` | domain or null | `null` | " in page
    assert "| `trusted_networks` | list of networks | `[]` | " in page
    assert "| `password` | secret or null | `null` | " in page
    assert not re.search(r"PydanticUndefined|typing|<class", page)


def schema() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(schema_json())
    return document


def resolved(document: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    node = next((choice for choice in node.get("anyOf", ()) if "$ref" in choice), node)  # a section, or null
    if "$ref" in node:
        definition: dict[str, Any] = document["$defs"][node["$ref"].removeprefix("#/$defs/")]
        return definition
    return node


def at(document: dict[str, Any], steps: tuple[str, ...]) -> dict[str, Any]:
    """A property's schema, before its reference is followed."""
    node = document
    for step in steps:
        inner = resolved(document, node)
        node = inner["items"] if step == ITEM else inner["properties"][step]
    return node


def test_schema_knows_every_key_and_no_other() -> None:
    document = schema()
    assert document["$schema"] == DIALECT
    for key in walk():
        node = at(document, key.steps)
        assert node["takes_hold"] == key.takes_hold
        assert node.get("description") or resolved(document, node).get("description"), key
    for name, definition in [("", document), *document["$defs"].items()]:
        assert definition["type"] == "object", name
        assert definition["additionalProperties"] is False, name


def test_schema_refers_to_what_there_is() -> None:
    document = schema()
    references = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(document)))
    assert references == document["$defs"].keys()


def test_schema_speaks_the_spelling_of_the_file() -> None:
    document = schema()
    idle = at(document, ("timeouts", "idle"))
    assert (idle["type"], idle["default"]) == ("string", "31m")
    assert re.search(idle["pattern"], "31m")
    assert not re.search(idle["pattern"], "31")
    password = at(document, ("backends", "login", "password"))["anyOf"][0]
    assert password["properties"].keys() == {"file", "env"}
    assert (password["minProperties"], password["maxProperties"]) == (1, 1)
    source = document["$defs"]["IdentitySource"]
    assert (source["minProperties"], source["maxProperties"]) == (1, 1)
    assert source["properties"]["backend"]["$ref"] == "#/$defs/BackendIdentity"
    assert document["required"] == ["version", "listeners", "identity", "backends"]
    assert at(document, ("listeners",))["minItems"] == 1
    assert at(document, ("backends", "servers", ITEM, "weight"))["maximum"] == 1000
    address = at(document, ("listeners", ITEM, "address"))["pattern"]
    assert re.search(address, "[::]:993")
    assert not re.search(address, "*:993")


def patterns(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from patterns(inner)


def test_patterns_are_those_of_every_engine() -> None:
    """ECMA 262 and Python agree on what is used: anchors, classes, groups, counts."""
    for pattern in patterns(schema()):
        assert pattern.startswith("^")
        assert pattern.endswith("$")
        assert not re.search(r"\(\?|\\[AZdwsb]", pattern)


def test_differences(loaded: Callable[[str], Settings], minimal: str) -> None:
    text = minimal.replace("dovecot-1,", "dovecot-1, weight: 3,") + "timeouts: {login: 90s, drain: 30s}\n"
    found = {each.key: (each.value, each.default) for each in differences(loaded(text))}
    assert found == {"backends.servers[0].weight": (3, 1), "timeouts.login": ("90s", "2m")}


def test_a_differing_secret_is_its_place(loaded: Callable[[str], Settings], minimal: str) -> None:
    login = "  login: {method: master, name: porter, password: {file: master.password}}\n"
    found = {each.key: each.value for each in differences(loaded(minimal + login))}
    assert found["backends.login.password"].keys() == {"file"}
    assert "s3cret" not in repr(found)
