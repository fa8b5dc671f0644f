"""Several tests shown together: their p-values, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given: max over j <= i of min(1, (m - j) p_(j)), j from 0.

    m counts the p-values that exist; a None (nothing could be tested) stays None. Controls the family-wise error
    rate whatever the dependence between the tests, which matters here: levels are correlated. Raises ValueError for
    what is no probability. Source: paper.md section 7.
    """
    for p in ps:
        if p is not None and not 0.0 <= p <= 1.0:
            raise ValueError(f"a p-value lies between 0 and 1; one is {p}")
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i] or 0.0)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (ps[index] or 0.0)))
        adjusted[index] = largest
    return adjusted
