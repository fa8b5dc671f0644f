"""Display of names: missing glyphs and invisible characters, shortening in the middle, distinct labels."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from supermask.reporting.figures.style import RC

GLYPH_NOTE = "Characters without a glyph in the font of this figure are written as \\uXXXX."


def escape_missing_glyphs(text: str) -> str:
    r"""Replace control and invisible characters, and those that the font of the figures lacks, by `\uXXXX`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_drawable(c) else _escape(c) for c in text)


def glyph_note(texts: Iterable[str]) -> str:
    """Return a sentence for the caption if one of these texts is not drawn literally, else an empty string."""
    return GLYPH_NOTE if any(escape_missing_glyphs(text) != text for text in texts) else ""


def escape_invisible(text: str) -> str:
    r"""Replace control and invisible characters by `\uXXXX`; browsers and terminals have glyphs for all others."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def shorten_middle(text: str, fits: Callable[[str], bool]) -> str:
    """Return the text, or as much of its beginning and end as fits, with `…` between them.

    The ends of names are kept because names of one study often begin alike.
    """
    if fits(text):
        return text

    def cut(kept: int) -> str:
        head, tail = (kept + 1) // 2, kept // 2
        return f"{text[:head].rstrip()}…{text[len(text) - tail :].lstrip()}"

    # `kept` letters fit up to some number: the first that does not is found by bisection.
    too_many = bisect_left(range(1, len(text)), True, key=lambda kept: not fits(cut(kept))) + 1
    return cut(max(too_many - 1, 1))


def distinct_labels(labels: Sequence[str], shorten: Callable[[str, str], str]) -> list[str]:
    """Shorten labels and number those that would look alike: `large_final…seed 0`, `large_final…seed 0 (2)`.

    `shorten(label, suffix)` returns a short text that ends in the suffix. White space does not distinguish labels.
    """
    shown: list[str] = []
    used: set[str] = set()
    # Short text -> last number after it: shortening is slow, and the numbers before it are taken.
    numbers: dict[str, int] = {}
    for label in labels:
        text = shorten(label, "")
        start = "".join(text.split())
        number = numbers.get(start, 1)
        while "".join(text.split()) in used:
            number += 1
            text = shorten(label, f" ({number})")
        numbers[start] = number
        used.add("".join(text.split()))
        shown.append(text)
    return shown


def short_labels(labels: Sequence[str], max_length: int) -> list[str]:
    """Return distinct labels of at most `max_length` letters, with invisible characters escaped."""

    def shorten(label: str, suffix: str) -> str:
        limit = max_length - len(suffix)
        return shorten_middle(escape_invisible(label), lambda text: len(text) <= limit) + suffix

    return distinct_labels(labels, shorten)


def _is_drawable(character: str) -> bool:
    if not character.isprintable() or ord(character) not in _glyphs():
        return False
    # Before 3.11 matplotlib draws scripts that are written from right to left in the wrong order.
    return _has_text_shaping() or unicodedata.bidirectional(character) not in ("R", "AL")


@lru_cache(maxsize=1)
def _has_text_shaping() -> bool:
    import matplotlib

    return matplotlib.__version_info__ >= (3, 11)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    """Return the code points that the font of the figures has; matplotlib brings this font along."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont(FontProperties(family=RC["font.family"]))).get_charmap())


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
