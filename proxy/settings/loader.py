"""From a settings file to typed settings, or to every mistake in it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from proxy.settings.checks import cross_findings
from proxy.settings.mistakes import Finding, Mistake, SettingsError, findings, read_with_mistakes
from proxy.settings.models import Settings
from proxy.settings.yaml_nodes import key_text

__all__ = ["MAX_BYTES", "SettingsError", "load"]

MAX_BYTES = 1 << 20


def load(path: Path) -> Settings:
    """Read, check and type a settings file; what it names (certificates, secrets, the users file) is looked at too.

    Raises:
        SettingsError: With every mistake, in the order of the file.
    """
    document, mistakes = read_with_mistakes(path, MAX_BYTES)
    settings, found = _validate(document.value, path.absolute().parent)
    flawed = {(flaw.line, flaw.keys) for flaw in document.flaws}
    for each in found:
        line = document.line(each.keys)
        if (line, each.keys) not in flawed:  # an alias reads as null; that it is one has been told
            mistakes.append(Mistake(path, line, key_text(each.keys), each.problem))
    if mistakes or settings is None:
        raise SettingsError(sorted(mistakes, key=lambda mistake: mistake.line))
    return settings


def _validate(value: Any, folder: Path) -> tuple[Settings | None, list[Finding]]:
    """The settings, if they can be made, and what is wrong with them."""
    if not isinstance(value, dict):
        return None, [Finding((), "expected keys at the top level, beginning with version: 1")]
    context = {"folder": folder}
    try:
        settings = Settings.model_validate(value, context=context)
    except ValidationError as exc:
        found = list(findings(exc))
        broken = {str(finding.keys[0]) for finding in found}
        return None, [*found, *cross_findings(_sound_sections(value, broken, context), broken)]
    return settings, list(cross_findings(settings, frozenset()))


def _sound_sections(value: dict[str, Any], broken: set[str], context: dict[str, Any]) -> Settings:
    """Settings of the sections that have no mistake of their own, for the checks across sections."""
    sections = {
        name: TypeAdapter(field.rebuild_annotation()).validate_python(value[name], context=context)
        for name, field in Settings.model_fields.items()
        if name in value and name not in broken
    }
    return Settings.model_construct(**sections)
