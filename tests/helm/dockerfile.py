"""A Dockerfile and its .dockerignore, read as far as ours go."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Stage:
    """What follows one FROM, in order."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.instructions if word == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    def words(self, instruction: str) -> list[str]:
        """The list of an instruction in exec form, which no shell reads."""
        return json.loads(self.last(instruction))  # type: ignore[no-any-return]

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for line in self.all("ENV") for pair in line.split())


def read_dockerfile(path: Path) -> list[Stage]:
    stages: list[Stage] = []
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        else:
            stages[-1].instructions.append((word, rest.strip()))
    return stages


def lets_through(ignore_file: Path, path: PurePosixPath) -> bool:
    """Whether a file of the folder is sent to the builder: the last pattern that fits it or a folder above decides."""
    sent = True
    for line in filter(None, ignore_file.read_text().splitlines()):
        pattern = line.removeprefix("!")
        fits = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(fits, str(each)) for each in (path, *path.parents)):
            sent = line.startswith("!")
    return sent
