"""Results of others beside ours: tables of other programs, other stores, and values that were published."""

from supermask.analysis.comparisons.cells import (
    DEFAULT_MARGIN,
    CellComparison,
    ResultComparison,
    TreatmentCounts,
    compare_results,
)
from supermask.analysis.comparisons.csv_results import TableColumns, ValueUnit, column_names, read_csv_results
from supermask.analysis.comparisons.matching import parse_name_pairs
from supermask.analysis.comparisons.other_results import OtherResult, OtherResults, find_metric, row_results
from supermask.analysis.comparisons.published import PublishedValue, published_rows, published_values
from supermask.analysis.comparisons.settings import check_one_setting, describe_other_settings

__all__ = [
    "DEFAULT_MARGIN",
    "CellComparison",
    "OtherResult",
    "OtherResults",
    "PublishedValue",
    "ResultComparison",
    "TableColumns",
    "TreatmentCounts",
    "ValueUnit",
    "check_one_setting",
    "column_names",
    "compare_results",
    "describe_other_settings",
    "find_metric",
    "parse_name_pairs",
    "published_rows",
    "published_values",
    "read_csv_results",
    "row_results",
]
