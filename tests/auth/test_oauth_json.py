"""JSON from strangers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth.oauth.strict_json import MAX_DEPTH, NotAnObject, read_object, shown

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_objects_come_back(value: dict[str, Any], ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if depth(value) > MAX_DEPTH or (
        not ascii_only and re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))
    ):
        with pytest.raises(NotAnObject):
            read_object(data)
    else:
        assert read_object(data) == value


@given(st.binary() | st.text(alphabet='{}[]":,\\a1 \n').map(str.encode))
def test_any_octets_end_in_an_object_or_a_no(data: bytes) -> None:
    try:
        found = read_object(data)
    except NotAnObject:
        return
    assert found == json.loads(data)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("extra", [0, 1])
def test_the_bound_of_depth(opening: str, extra: int) -> None:
    inner = MAX_DEPTH - 1 + extra
    text = '{"a":' + opening * inner + "1" + {"[": "]", "{": "}"}[opening[0]] * inner + "}"
    if extra:
        with pytest.raises(NotAnObject, match="nested deeper"):
            read_object(text.encode())
    else:
        assert depth(read_object(text.encode())) == MAX_DEPTH


def test_brackets_in_strings_and_beside_each_other_are_not_depth() -> None:
    wide = {"a": '[{"\\' * 100, "b\\": [[] for _ in range(1000)], '"[': ["\\", "[", '"']}
    assert read_object(json.dumps(wide).encode()) == wide


@pytest.mark.parametrize(
    "data",
    [b"", b"1", b"[]", b"null", b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1}x', b"{'a':1}", b'\xef\xbb\xbf{"a":1}',
     b'{"a":"\n"}', b'{"a":1,}', b'{"a":"\xff"}', '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-32-le"),
     b'{"a":1,"a":1}', b'{"a":1,"\\u0061":1}', b'{"a":' + b"1" * 10_000 + b"}",
     b'{"a":' + b"[" * 25 + b'"' + b'\\"' * 11_000],  # takes half a second where each quote is tried as a beginning
)  # fmt: skip
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(NotAnObject):
        read_object(data)


@pytest.mark.parametrize("value", ["x" * 10_000, "\r\n\x1b", "\ud800", {"a": ["é"]}, 7, None])
def test_shown_is_printable_and_short(value: object) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) <= 101
