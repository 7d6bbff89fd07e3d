"""Whatever stands in a settings file, the answer is settings or sentences an administrator understands."""

from __future__ import annotations

import contextlib
import copy
import re
from pathlib import Path
from typing import Any

import hypothesis
import yaml
from hypothesis import strategies as st
from pydantic import ValidationError

from proxy.settings.loader import load
from proxy.settings.mistakes import TRANSLATIONS, SettingsError
from proxy.settings.models import Settings

EVERYTHING = {
    "version": 1,
    "workers": "auto",
    "listeners": [{"address": "[::]:993", "tls": "none", "trusted_networks": ["10.0.0.0/8"]}],
    "tls": {"certificates": [], "minimum_version": "1.2"},
    "names": {"lowercase": True, "default_domain": "a.example", "master_separator": "*"},
    "identity": [{"backend": {}}],
    "routing": {"hash": "name", "overrides": {"ann@a.example": "a"}},
    "backends": {
        "servers": [{"name": "a", "url": "imap://a", "weight": 1}],
        "tls": {"ca": None, "verify": True},
        "login": {"method": "password", "separator": "*"},
    },
    "limits": {
        "connections": 1,
        "failed_login_delay": "1s",
        "commands_per_user": {"rate": 1, "per": "1m", "action": "delay"},
        "commands_per_session": {"SEARCH": {"rate": 1}},
        "bytes_per_user": {"rate": "1MiB"},
    },
    "timeouts": {"idle": "31m"},
    "relay": {"compress": "allow"},
    "admin": {"address": None},
    "log": {"format": "json"},
}
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "x", "1", "30s", "*", "imap://b", "10.0.0.0/8", "master", "\x1b[31m", "\u2028"]),
    st.sampled_from([[], {}, [[]], [{}], {"file": "x"}, {"x": 1}, ["x"], {"path": None}]),
)  # fmt: skip
JARGON = re.compile(
    r"Input should|value_error|Field required|Extra inputs|pydantic|NoneType|\bdict\b|\btuple\b|\bstr\b|None|True|False"
)


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(place for key, inner in inside for place in places(inner, (*above, key)))]


@hypothesis.settings(
    max_examples=300, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], deadline=None
)
@hypothesis.given(changes=st.lists(st.tuples(st.sampled_from(places(EVERYTHING)[1:]), ODD), min_size=1, max_size=4))
def test_any_values_end_in_settings_or_plain_words(folder: Path, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    document = copy.deepcopy(EVERYTHING)
    for place, odd in changes:
        around: Any = document
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change took this place away
            for step in place[:-1]:
                around = around[step]
            around[place[-1]] = copy.deepcopy(odd)
    (folder / "porter.yaml").write_text(yaml.dump(document, Dumper=_WithoutAliases))
    try:
        load(folder / "porter.yaml")
    except SettingsError as exc:
        problems = [mistake.problem for mistake in exc.mistakes]
        assert not [problem for problem in problems if JARGON.search(problem)]


class _WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def test_every_translation_is_needed(folder: Path) -> None:
    """The table has a sentence for each kind of error that wrong values make, and none besides."""
    kinds = set()
    odd: list[Any] = [None, 5, -1, 10**9, "x", True, [], {}]
    for place in places(EVERYTHING)[1:]:
        for value in odd:
            document: Any = copy.deepcopy(EVERYTHING)
            around = document
            for step in place[:-1]:
                around = around[step]
            around[place[-1]] = value
            try:
                Settings.model_validate(document, context={"folder": folder})
            except ValidationError as exc:
                kinds |= {details["type"] for details in exc.errors()}
    assert kinds - {"missing", "extra_forbidden", "misplaced"} == set(TRANSLATIONS)
