"""The table of verbs: what is asked is read as it was meant, whichever way it comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from proxy.admin.verbs import VERBS, Role, Unusable, Verb
from tests.admin.test_api import ASKED


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_question_is_read_as_it_was_asked(verb: Verb) -> None:
    question = verb.ask(**ASKED[verb.name])
    if verb.method == "POST":
        body = verb.body(question)
        assert body is not None
        assert verb.target(question) == verb.path
        assert verb.read_body(body) == question
        return
    assert verb.body(question) is None
    parts = urlsplit(verb.target(question))
    values = dict(parse_qsl(parts.query))
    if verb.key:
        values[verb.key] = unquote(parts.path.removeprefix(verb.path.partition("{")[0]))
    else:
        assert parts.path == verb.path
    assert verb.read_query(values) == question


def test_names_are_their_own() -> None:
    assert all(name == verb.name for name, verb in VERBS.items())
    assert len({(verb.method, verb.path) for verb in VERBS.values()}) == len(VERBS)
    assert all(verb.help.endswith(".") for verb in VERBS.values())


def test_roles() -> None:
    assert Role.OPERATOR.may(Role.OPERATOR)
    assert Role.OPERATOR.may(Role.VIEWER)
    assert Role.VIEWER.may(Role.VIEWER)
    assert not Role.VIEWER.may(Role.OPERATOR)


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("drain", {"backend": "d1"}, "reason: missing; say why, for the log"),
    ("drain", {"backend": 1, "reason": "x"}, "backend: Input should be a valid string"),
    ("weight", {"backend": "d1", "weight": True, "reason": "x"}, "weight: Input should be a valid integer"),
    ("weight", {"backend": "d1", "weight": -1, "reason": "x"}, "weight: Input should be greater than or equal to 0"),
    ("drain", {"backend": "d1", "over_seconds": 1e9, "reason": "x"}, "over_seconds: Input should be less than"),
    ("move", {"user": "a", "backend": "d1", "for_seconds": 0, "reason": "x"}, "for_seconds: Input should be greater"),
    ("trace", {"user": "a", "seconds": 3601, "reason": "x"}, "seconds: Input should be less than"),
    ("status", {"secret-thing": "secret-value"}, "secret-thing: unknown; known: nothing"),
]


@pytest.mark.parametrize(("verb", "values", "text"), MISTAKES, ids=[row[2] for row in MISTAKES])
def test_mistakes(verb: str, values: dict[str, Any], text: str) -> None:
    with pytest.raises(Unusable) as raised:
        VERBS[verb].ask(**values)
    assert str(raised.value).startswith(text)
    assert "secret-value" not in str(raised.value)


def test_few_of_many_mistakes_are_told() -> None:
    with pytest.raises(Unusable) as raised:
        VERBS["status"].ask(**{f"x{number}": "" for number in range(100)})
    assert str(raised.value).count("unknown") == 5


def test_the_page_has_every_verb() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "admin-api.md").read_text()
    for verb in VERBS.values():
        assert f"| `{verb.path}` |" in page
        assert verb.help in page
