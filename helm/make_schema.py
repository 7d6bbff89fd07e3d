"""Print the chart's values.schema.json: the values' own schema with the program's settings schema inside.

    python helm/make_schema.py > helm/imap-porter/values.schema.json

So a wrong setting fails at `helm install`, with its place. Helm reads drafts up to 7 in its older versions, of which
all that is used here is a part.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from proxy.settings.reference import schema_json

BASE = Path(__file__).with_name("values.schema.base.json")


def values_schema() -> dict[str, Any]:
    """Both in one document, whose references hold."""
    schema: dict[str, Any] = json.loads(BASE.read_text())
    settings = json.loads(schema_json())
    settings.pop("$schema", None)
    definitions = settings.pop("$defs")
    schema["$defs"] = {**definitions, "Settings": settings}
    return schema


if __name__ == "__main__":
    json.dump(values_schema(), sys.stdout, indent=1)
    print()
