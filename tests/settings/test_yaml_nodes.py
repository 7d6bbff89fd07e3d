from __future__ import annotations

import contextlib
import json
from pathlib import Path

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from proxy.settings import yaml_nodes
from proxy.settings.yaml_nodes import Document, YamlError, key_text, read_flawed_yaml, read_yaml


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parsers of PyYAML: which one there is depends on how it was installed."""
    monkeypatch.setattr(yaml_nodes, "_Loader", getattr(yaml, request.param))


pytestmark = pytest.mark.usefixtures("_loader")


def read(tmp_path: Path, text: str | bytes, max_bytes: int = 10_000) -> Document:
    file = tmp_path / "some.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file, max_bytes)


VALUES: list[tuple[str, str | bytes, object]] = [
    ("nothing", "", None),
    ("comments alone", "# nothing\n", None),
    ("byte order mark", b"\xef\xbb\xbfa: 1", {"a": 1}),
    ("whole numbers", "[0, 7, -7, +7, 010, 0x1F, 0o17]", [0, 7, -7, 7, 10, 31, 15]),
    ("broken numbers", "[1.5, .5, 1e3]", [1.5, 0.5, 1000.0]),
    ("truth", "[true, True, TRUE, false]", [True, True, True, False]),
    ("words that YAML 1.1 took for truth", "[yes, no, on, off, y, n]", ["yes", "no", "on", "off", "y", "n"]),
    ("times and dates are text", "[12:30, 2026-01-01]", ["12:30", "2026-01-01"]),
    ("null", "[null, ~, Null, ]", [None, None, None]),
    ("quoted text is text", "['1', \"true\", 'null', '']", ["1", "true", "null", ""]),
    ("block text", "a: |\n  1\n", {"a": "1\n"}),
    ("a number beyond all bounds is text", "9" * 5000, "9" * 5000),
    ("keys are text", "{1: a, true: b, null: c, 1.5: d}", {"1": "a", "true": "b", "null": "c", "1.5": "d"}),
    ("empty values", "a:\nb: {}\nc: []\n", {"a": None, "b": {}, "c": []}),
    ("nesting", "a: [{b: [1, [2]]}]", {"a": [{"b": [1, [2]]}]}),
]


@pytest.mark.parametrize(("name", "text", "value"), VALUES, ids=[row[0] for row in VALUES])
def test_value(tmp_path: Path, name: str, text: str | bytes, value: object) -> None:
    assert read(tmp_path, text).value == value


ERRORS: list[tuple[str, str | bytes, int, str]] = [
    ("a list that never ends", "a: [1,\nb: 2\n", 3, "not valid YAML"),
    ("a quote that never ends", "a: 'x\n\n", 3, "line 1"),
    ("a tab", "a:\n\tb: 1", 2, "not valid YAML"),
    ("two colons", "a: b: c", 1, "not valid YAML"),
    ("a second document", "a: 1\n---\nb: 2\n", 2, "second document"),
    ("a list as key", "a: 1\n? [a]\n: b\n", 2, "plain word"),
    ("a mapping as key", "? {a: 1}\n: b\n", 1, "plain word"),
    ("too deep", "a:\n  " + "[" * 50 + "]" * 50, 2, "nested deeper than 40"),
    ("very deep", "[" * 9_000, 1, "nested deeper than 40"),
    ("not UTF-8", b"a: 1\nb: \xff\n", 2, "not UTF-8"),
    ("a control character", b"a: 1\nb: \x07\n", 2, "control character"),
    ("a key given twice", "a: 1\nb: 2\na: 3\n", 3, "a: given twice; the first is on line 1"),
    ("a key given twice, inside", "x:\n  - {a: 1,\n     a: 2}\n", 3, "x[0].a: given twice; the first is on line 2"),
    ("an anchor", "a: &x 1\n", 1, "anchors (&x)"),
    ("an alias", "a: 1\nb: [*a]\n", 2, "b[0]: aliases"),
    ("an alias as key", "b: 1\n*a : 1\n", 2, "aliases"),
    ("a merge key", "a: 1\n<<: {b: 1}\n", 2, "merge keys"),
    ("a tag", "a: !!str 1\n", 1, "tags"),
    ("a tag that would run code", "a: !!python/object/apply:os.system [id]\n", 1, "tags"),
    ("too large", "a" * 10_001, 0, "larger than 10000 bytes"),
]


@pytest.mark.parametrize(("name", "text", "line", "problem"), ERRORS, ids=[row[0] for row in ERRORS])
def test_error(tmp_path: Path, name: str, text: str | bytes, line: int, problem: str) -> None:
    with pytest.raises(YamlError) as caught:
        read(tmp_path, text)
    assert caught.value.line == line
    assert problem in caught.value.problem


def test_a_file_of_just_the_size_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "a" * 10_000).value == "a" * 10_000


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(YamlError, match=r"none\.yaml: no such file$"):
        read_yaml(tmp_path / "none.yaml", 100)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(YamlError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path, 100)


def test_lines(tmp_path: Path) -> None:
    document = read(tmp_path, "# first\na:\n  b: 1\n  c:\n    - x\n    - {d: 1,\n       e: 2}\n'f': |\n  text\n")
    lines = {
        (): 2,
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 4,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("a", "c", 1, "e"): 7,
        ("f",): 8,
        ("a", "missing", "deeper"): 2,
        ("a", "c", 1, "missing"): 6,
        ("a", "b", "beneath a scalar"): 3,
        ("missing",): 2,
    }
    assert {keys: document.line(keys) for keys in lines} == lines


def test_flaws_are_read_past(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("a: 1\na: {b: [1, 2]}\nc: *x\nd: 4\nd: 5\n")
    document = read_flawed_yaml(file, 1000)
    assert document.value == {"a": 1, "c": None, "d": 4}
    assert [(flaw.line, flaw.keys) for flaw in document.flaws] == [(2, ("a",)), (3, ("c",)), (5, ("d",))]


def test_key_text_shows_control_characters_escaped() -> None:
    assert key_text(("tls", "certificates", 1, "a\x1b")) == "tls.certificates[1].'a\\x1b'"


TEXT = st.text(st.characters(categories=["L", "N"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
READING = hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])


@READING
@hypothesis.given(value=JSON)
def test_json_is_read_as_json(tmp_path: Path, value: object) -> None:
    assert read(tmp_path, json.dumps(value, ensure_ascii=False), 100_000).value == value


@READING
@hypothesis.given(data=st.binary(max_size=200) | st.text("{}[]:,-?*&!'\"|>#% ab\n\t", max_size=40).map(str.encode))
def test_any_bytes_end_in_a_document_or_an_error(tmp_path: Path, data: bytes) -> None:
    with contextlib.suppress(YamlError):
        read(tmp_path, data)
