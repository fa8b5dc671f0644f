"""Learned masks of which small differences grow."""

from __future__ import annotations

TOO_SHARP = ("rounded", "adam")
"""Adam moves every logit alike, also those whose gradient is nothing but rounding, and a hard mask follows: moved by
1e-7 at its start, the reference is 1e-2 away from itself after 200 steps (n = 3). The other ways it is below 1e-6,
unless one of the first coins falls to its other side."""
