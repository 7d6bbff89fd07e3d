"""What operators build on: names, labels and their page in docs/."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.metrics import METRICS, Declaration
from proxy.observe.reference import import_all_rooms, metrics_page

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
# People, addresses and sessions belong to the log: as labels they would grow without bound and be looked at by all.
PERSONAL_LABELS = {"name", "user", "identity", "client", "address", "session", "session_id", "tag", "mailbox"}


@pytest.fixture(scope="module")
def declarations() -> list[Declaration]:
    import_all_rooms()
    return METRICS.declarations


def test_the_page_is_what_the_program_exports(declarations: list[Declaration]) -> None:
    assert PAGE.read_text() == metrics_page(declarations), "python -m proxy.observe.reference > docs/metrics.md"


def test_every_declared_metric_is_exported(declarations: list[Declaration]) -> None:
    text, _ = METRICS.exposition()
    exported = set()
    for family in text_string_to_metric_families(text.decode()):
        exported.add(family.name + "_total" if family.type == "counter" else family.name)
    assert {declaration.name for declaration in declarations} == exported


def test_no_label_is_personal(declarations: list[Declaration]) -> None:
    assert [d.name for d in declarations if PERSONAL_LABELS & d.labels.keys()] == []
