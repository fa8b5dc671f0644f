"""Accessibility of a page in a browser, checked by axe-core, which comes with axe-playwright-python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def serious_violations(page: Page) -> list[str]:
    """Return one line per element with a serious or critical violation: rule, selector, reason."""
    from axe_playwright_python.sync_playwright import Axe

    # Without `preload`, which fetches style sheets again: a page from disk may not, and its rule is a minor one. With
    # one element, not all, for each rule that is kept: describing them takes longer than checking them.
    options = {"preload": False, "resultTypes": ["violations"]}
    violations = Axe().run(page, options=options).response["violations"]
    return [
        f"{violation['id']}: {node['target']}: {node['failureSummary'].splitlines()[-1].strip()}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
