"""One page that says what runs mean: claims first, then studies, then how it was made. Rows and facts in, HTML out."""

from supermask.reporting.html.content import Report, build_report, plot_data, table_data
from supermask.reporting.html.page import render_report, sections, table_of_contents

__all__ = ["Report", "build_report", "plot_data", "render_report", "sections", "table_data", "table_of_contents"]
