"""One page that says what runs mean: claims first, then studies, then how it was made. Rows and facts in, HTML out."""

from supermask.report.content import Report, gather, plots_of, tables_of
from supermask.report.page import contents, page, sections

__all__ = ["Report", "contents", "gather", "page", "plots_of", "sections", "tables_of"]
