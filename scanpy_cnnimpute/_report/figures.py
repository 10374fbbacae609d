"""Figures of the report: those of `pl`, as SVG in a data address, the same bytes for the same results."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

# Text as outlines, since the fonts of the reader's machine are unknown; ids that do not vary.
STYLE = {"svg.fonttype": "path", "svg.hashsalt": "scanpy-cnnimpute"}


@dataclass(frozen=True)
class Drawing:
    """An image for a page.

    Attributes
    ----------
    address
        ``data:`` address with all of the image.
    alt
        What it shows, in words.
    caption
        How to read it.
    width, height
        In pixels of 1/96 inch.
    """

    address: str
    alt: str
    caption: str
    width: int
    height: int


def draw(plot: Callable[..., Any], *, size: tuple[float, float], alt: str, caption: str, **options: Any) -> Drawing:
    """Draw a function of :mod:`~scanpy_cnnimpute.pl` in Matplotlib's default style.

    Parameters
    ----------
    plot
        The function, with its AnnData bound.
    size
        Width and height in inches.
    alt, caption
        See :class:`Drawing`.
    options
        Of the function.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        # Names may have letters that the font lacks; the tables have them in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        axes: Axes = figure.add_subplot()
        plot(ax=axes, show=False, **options)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    code = base64.b64encode(content.getvalue()).decode()
    width, height = (round(96 * each) for each in size)
    return Drawing(f"data:image/svg+xml;base64,{code}", alt, caption, width, height)
