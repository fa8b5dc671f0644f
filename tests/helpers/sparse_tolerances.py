"""Learned masks in which small differences grow."""

from __future__ import annotations

TOO_SHARP = ("rounded", "adam")
"""Adam moves every logit by the same amount, also where the gradient is only rounding, and a hard mask follows. With
its initial state moved by 1e-7, the reference engine is 1e-2 away from itself after 200 steps (n = 3). For the other
methods it is below 1e-6, unless one of the first uniform numbers changes its comparison."""
