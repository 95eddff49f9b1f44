# ruff: noqa: INP001 - a script of the images, no package
"""
Prints the entries of some packages from a hashed requirement file, for tools that only a build needs.

    python3 docker/pick.py requirements/dev.txt hatchling packaging

Standard library only: it runs before anything is installed.
"""

import re
import sys
from pathlib import Path


def pick(text: str, names: list[str]) -> str:
    """
    Return the entries of *names*, hashes included.

    Raises:
        KeyError: One of them is not there.
    """
    # An entry goes on as long as its lines end in a backslash.
    entries = re.finditer(r"^([\w.-]+)==(?:[^\n]*\\\n)*[^\n]*\n?", text, re.MULTILINE)
    found = {entry.group(1).lower(): entry.group() for entry in entries}
    return "".join(found[name] for name in names)


if __name__ == "__main__":
    sys.stdout.write(pick(Path(sys.argv[1]).read_text(), sys.argv[2:]))
