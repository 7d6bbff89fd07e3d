"""The commands that settings can limit are those that the observer tells apart."""

from __future__ import annotations

from proxy.imap.commands import COMMANDS
from proxy.settings.limit_models import ALL, COMMAND_CLASSES


def test_every_command_is_a_class() -> None:
    assert len(COMMAND_CLASSES) == len(set(COMMAND_CLASSES))
    assert {ALL, *COMMANDS} == set(COMMAND_CLASSES)
