"""Pages made of the package: links to other projects, commands, protocols, and files of the repository."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from check_api import missing_from_pages
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective
from sphinx.util.logging import getLogger

if TYPE_CHECKING:
    from pathlib import Path

    from docutils.nodes import Element, Node
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

PYTHON = "https://docs.python.org/3/library"
NUMPY = "https://numpy.org/doc/stable/reference"
PANDAS = "https://pandas.pydata.org/docs/reference/api"
SCANPY = "https://scanpy.readthedocs.io/en/stable/api/generated"
# The names of other projects that docstrings and annotations mention. A list, and no inventories of those projects:
# these are downloaded at every build, and one that cannot be reached is a warning.
EXTERNAL = {
    "anndata.AnnData": "https://anndata.readthedocs.io/en/stable/generated/anndata.AnnData.html",
    "collections.abc.Callable": f"{PYTHON}/collections.abc.html#collections.abc.Callable",
    "collections.abc.Mapping": f"{PYTHON}/collections.abc.html#collections.abc.Mapping",
    "collections.abc.Sequence": f"{PYTHON}/collections.abc.html#collections.abc.Sequence",
    "matplotlib.axes.Axes": "https://matplotlib.org/stable/api/_as_gen/matplotlib.axes.Axes.html",
    "numpy.ndarray": f"{NUMPY}/generated/numpy.ndarray.html",
    "numpy.typing.ArrayLike": f"{NUMPY}/typing.html#numpy.typing.ArrayLike",
    "os.PathLike": f"{PYTHON}/os.html#os.PathLike",
    "pandas.DataFrame": f"{PANDAS}/pandas.DataFrame.html",
    "pandas.Series": f"{PANDAS}/pandas.Series.html",
    "pathlib.Path": f"{PYTHON}/pathlib.html#pathlib.Path",
    "scanpy.tl.rank_genes_groups": f"{SCANPY}/scanpy.tl.rank_genes_groups.html",
    "scipy.sparse.csr_array": "https://docs.scipy.org/doc/scipy/reference/generated/scipy.sparse.csr_array.html",
    "typing.Any": f"{PYTHON}/typing.html#typing.Any",
    "typing.Literal": f"{PYTHON}/typing.html#typing.Literal",
    "typing.Self": f"{PYTHON}/typing.html#typing.Self",
    **{name: f"{PYTHON}/functions.html#{name}" for name in ("bool", "float", "int")},
    **{name: f"{PYTHON}/stdtypes.html#{name}" for name in ("dict", "list", "str", "tuple")},
    "None": f"{PYTHON}/constants.html#None",
    **{
        name: f"{PYTHON}/exceptions.html#{name}"
        for name in (
            "FileExistsError",
            "FileNotFoundError",
            "KeyError",
            "RuntimeError",
            "TypeError",
            "ValueError",
        )
    },
}
# Where annotations have a name from, or how they write it.
ALIASES = {
    "AnnData": "anndata.AnnData",
    "anndata._core.anndata.AnnData": "anndata.AnnData",
    "Axes": "matplotlib.axes.Axes",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "Path": "pathlib.Path",
    "np.ndarray": "numpy.ndarray",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
    "pandas.core.series.Series": "pandas.Series",
    "pd.DataFrame": "pandas.DataFrame",
    "scipy.sparse._csr.csr_array": "scipy.sparse.csr_array",
}
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")
README = re.compile(r"\.\./(\w+)/README\.md(#[\w-]+)?")


def link_external(_app: Sphinx, _env: BuildEnvironment, node: Element, contents: Node) -> nodes.reference | None:
    """Link a name of another project."""
    name = node.get("reftarget", "")
    address = EXTERNAL.get(ALIASES.get(name, name)) if node.get("refdomain") == "py" else None
    if address is None:
        return None
    return nodes.reference("", "", contents, internal=False, refuri=address)


def link_included(_app: Sphinx, path: Path, _parent: str, contents: list[str]) -> None:
    """Turn links of an included file of the repository into links of the documentation, or else into text."""
    if path.parts[0] != "..":
        return

    def changed(match: re.Match[str]) -> str:
        text, target = match.groups()
        readme = README.fullmatch(target)
        return f"[{text}]({readme[1]}.md{readme[2] or ''})" if readme else text

    contents[0] = LINK.sub(changed, contents[0])


def remove_colons(_app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Take out the colon that sphinx_autodoc_typehints puts under "Returns", which napoleon would print."""
    for i in range(len(lines) - 1, 1, -1):
        if lines[i] == ":" and lines[i - 2] == "Returns":
            del lines[i]


class Command(SphinxDirective):
    """Usage and options of one command of the command line."""

    required_arguments = 1

    def run(self) -> list[Node]:
        """Read the parser, so that the page has what ``--help`` prints."""
        parser = _commands()[self.arguments[0]]
        parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=84)
        lines = [parser.description or "", "", ".. code-block:: text", ""]
        lines += [f"   {line}" for line in parser.format_usage().splitlines()]
        lines += ["", f".. program:: {parser.prog}", ""]
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            lines += [_signature(action), "", f"   {_description(action)}", ""]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=parser.prog), self.content_offset, node)
        return node.children


def _commands() -> dict[str, argparse.ArgumentParser]:
    from scanpy_cnnimpute import _cli

    groups = _cli._parser()._actions
    return next(dict(action.choices) for action in groups if isinstance(action, argparse._SubParsersAction))


def _signature(action: argparse.Action) -> str:
    if not action.option_strings:
        return f".. option:: {action.dest}"
    value = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.metavar or ""
    return ".. option:: " + ", ".join(f"{name} {value}".strip() for name in action.option_strings)


def _description(action: argparse.Action) -> str:
    text = (action.help or "") % vars(action)
    # Names of keys hold characters that reStructuredText reads as markup.
    return re.sub(r"([*_|`\\])", r"\\\1", text)


class Protocols(SphinxDirective):
    """Table of the protocols with a published capture efficiency."""

    def run(self) -> list[Node]:
        """One row for each protocol."""
        from scanpy_cnnimpute.dropout.protocols import PROTOCOLS

        lines = [".. list-table::", "   :header-rows: 1", ""]
        rows = [("name", "share", "published range", "how it was measured", "source")]
        for name, protocol in PROTOCOLS.items():
            figures = f"{protocol.low:g} to {protocol.high:g}" if protocol.low < protocol.high else ""
            rows.append((f"``{name}``", f"{protocol.efficiency:g}", figures, protocol.method, protocol.source))
        for row in rows:
            lines += [f"   {'*' if not i else ' '} - {cell}" for i, cell in enumerate(row)]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source="protocols"), self.content_offset, node)
        return node.children


def check_pages(_app: Sphinx) -> None:
    """Warn of public names that have no page."""
    for name in missing_from_pages():
        getLogger(__name__).warning("%s is public and on no page of docs/api", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register everything."""
    app.add_directive("command", Command)
    app.add_directive("protocols", Protocols)
    app.connect("missing-reference", link_external)
    app.connect("include-read", link_included)
    app.connect("builder-inited", check_pages)
    # After sphinx_autodoc_typehints, which has the same priority, and before napoleon, which has 500.
    app.connect("autodoc-process-docstring", remove_colons, priority=499)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
