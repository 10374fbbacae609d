"""Check that every public function and class has a page: ``python docs/check_api.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import scanpy_cnnimpute as scnn

PAGES = Path(__file__).parent / "api"
MODULES = ("pp", "tl", "get", "pl", "metrics", "datasets")


def public_names() -> list[str]:
    """Functions and classes that users import, from the modules and from the package itself."""
    names = [(module, name) for module in MODULES for name in getattr(scnn, module).__all__]
    documented = [f"{module}.{name}" for module, name in names if callable(getattr(getattr(scnn, module), name))]
    return documented + [name for name in scnn.__all__ if name not in MODULES]


def listed_names() -> set[str]:
    """Names in the tables of the pages."""
    texts = [path.read_text() for path in PAGES.glob("*.md")]
    tables = [table for text in texts for table in re.findall(r"autosummary::\n(?:   :.*\n)*\n((?:   \S+\n)+)", text)]
    return {line.strip() for table in tables for line in table.splitlines()}


def missing_from_pages() -> list[str]:
    """Public names that no page lists."""
    return sorted(set(public_names()) - listed_names())


def unknown_on_pages() -> list[str]:
    """Listed names that are not public."""
    return sorted(listed_names() - set(public_names()))


def main() -> int:
    """Print what is wrong; the exit status is 0 if nothing is."""
    problems = [f"{name} is public and on no page of docs/api" for name in missing_from_pages()]
    problems += [f"{name} is on a page of docs/api and not public" for name in unknown_on_pages()]
    print("\n".join(problems) or f"{len(public_names())} public names, each on a page")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
