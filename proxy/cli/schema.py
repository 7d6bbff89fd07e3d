"""`imap-porter schema`: the JSON Schema of the settings file, for editors and charts."""

from __future__ import annotations

import sys

from proxy.settings.reference import schema_json


def schema() -> None:
    """Print the JSON Schema."""
    sys.stdout.write(schema_json())
