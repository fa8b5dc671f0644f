"""The HTML report: rows and facts in, one page with claims, studies and provenance out."""

from supermask.reporting.html.content import Report, build_report, plot_data, table_data
from supermask.reporting.html.page import render_report, sections, table_of_contents

__all__ = ["Report", "build_report", "plot_data", "render_report", "sections", "table_data", "table_of_contents"]
