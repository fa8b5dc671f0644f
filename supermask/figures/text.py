"""How wide text is in a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TextWidth(Protocol):
    """(text, size in points) -> width in inches."""

    def __call__(self, text: str, size: float, *, bold: bool = False) -> float:
        """Of one line."""


def text_width(figure: Figure) -> TextWidth:
    """Measures text as the figure will show it, literally."""
    from matplotlib.font_manager import FontProperties

    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]

    def width(text: str, size: float, *, bold: bool = False) -> float:
        font = FontProperties(size=size, weight="bold" if bold else "normal")
        return float(renderer.get_text_width_height_descent(text, font, ismath=False)[0]) / figure.dpi

    return width
