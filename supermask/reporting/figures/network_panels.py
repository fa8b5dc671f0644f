"""The paper's Figures 3 to 5: test accuracy against weights remaining, one panel per network of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from supermask.analysis.claims.endpoint_band import endpoint_band
from supermask.analysis.summary import Summary, data_rows, summarize
from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.reporting.figures.accuracy import (
    ACCURACY,
    SCALE_NOTES,
    choose_scale,
    draw_lines,
    remaining_weights_axis,
    set_y_axis,
)
from supermask.reporting.figures.caption import (
    data_notes,
    excluded_note,
    join_sentences,
    mean_note,
    significance_note,
    takeaway,
)
from supermask.reporting.figures.layout import FigurePage, fit_text
from supermask.reporting.figures.legends import add_legend_below, legend_height
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    GRAY,
    FigureOptions,
    LineStyle,
    assign_styles,
    style_context,
)
from supermask.store import Store
from supermask.store.planning import plan_study
from supermask.store.rows import plan_rows
from supermask.store.tables import treatment_labels
from supermask.study import Study, builtin_studies, load_study
from supermask.study.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER_NETWORKS = {
    "fc-300-100": "FC on MNIST",
    "conv2": "Conv2 on CIFAR-10",
    "conv4": "Conv4 on CIFAR-10",
    "conv6": "Conv6 on CIFAR-10",
}
"""Networks of the paper's Figures 3 to 5, in the order of the panels. Source: Zhou et al. 2019, Table S1."""


FindRows = Callable[[Study], "tuple[Plan, Sequence[Row]] | None"]
"""Study -> its plan and rows; None if no run of it is known."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper that a shipped study reproduces."""

    name: str
    also: str = ""
    """A shipped study whose treatments are drawn too."""


PAPER_FIGURES = {
    "mask-criteria": PaperFigure("figure-3"),
    "mask-1-actions": PaperFigure("figure-4", "mask-1-rescaled"),
    "mask-0-actions": PaperFigure("figure-5"),
}
"""Shipped study -> figure of the paper. Source: Zhou et al. 2019, Figs. 3, 4, 5."""

PAPER_DATASETS = ("mnist", "cifar10")

LEFT, GAP, PANEL_HEIGHT, HEADING_HEIGHT, AXIS_HEIGHT = 0.55, 0.5, 1.9, 0.2, 0.38
"""Inches: the y axis, between panels, a panel, its name, the x axis."""


@dataclass(frozen=True)
class NetworkPanel:
    """One network: its runs, or the reason why there are none."""

    network: str
    title: str
    summary: Summary | None
    missing: str = ""
    """Text in an empty panel."""


def is_shipped(plan: Plan) -> bool:
    """Return whether a plan's study has the treatments of the shipped study of its name; overrides may change them."""
    shipped = load_study(plan.study.name)
    return shipped.treatments == plan.study.treatments and shipped.reference == plan.study.reference


def make_store_finder(store: Store) -> FindRows:
    """Return the function that finds the rows of a study in a store."""

    def find_rows(study: Study) -> tuple[Plan, Sequence[Row]] | None:
        plan = plan_study(study, store)
        # Without one of its runs in the store, a study need not be read.
        return (plan, plan_rows(plan, store)[0]) if plan.runs.keys() & store.run_ids() else None

    return find_rows


def collect_panels(plan: Plan, rows: Sequence[Row], find_rows: FindRows) -> list[NetworkPanel]:
    """Return the panels of a shipped study: its own network from `rows`, the others from the study's other scales.

    Of several scales of one network the one with the most finished runs is drawn.
    """
    name = plan.study.name
    own = next(iter(plan.runs.values())).network
    scales = {study.name: study.scales for study in builtin_studies()}[name]
    by_network: dict[str, list[str]] = {}
    for scale in scales:
        by_network.setdefault(load_study(name, [f"scale={scale}"]).network, []).append(scale)
    panels = []
    for network, title in PAPER_NETWORKS.items():
        if network == own:
            panels.append(_panel(network, title, plan, rows, find_rows))
            continue
        candidates = []
        for scale in by_network.get(network, []):
            if planned := find_rows(load_study(name, [f"scale={scale}"])):
                candidates.append((sum(row["status"] == "finished" for row in planned[1]), *planned))
        if candidates:
            _, other, other_rows = max(candidates, key=lambda candidate: candidate[0])
            panels.append(_panel(network, title, other, other_rows, find_rows))
        else:
            scale = next(iter(by_network.get(network, [])), "")
            panels.append(NetworkPanel(network, title, None, f"not run: supermask run {name} scale={scale}"))
    return panels


def _panel(network: str, title: str, plan: Plan, rows: Sequence[Row], find_rows: FindRows) -> NetworkPanel:
    labels = [treatment.label for treatment in plan.study.treatments]
    dataset = {"mnist": "MNIST", "cifar10": "CIFAR-10"}.get(plan.study.dataset, plan.study.dataset)
    title = f"{title.partition(' on ')[0]} on {dataset}"
    also = PAPER_FIGURES[plan.study.name].also
    if also:
        other_rows, other_labels = _same_settings(also, plan, find_rows)
        known = {row["id"] for row in rows}
        rows = [*rows, *(row for row in other_rows if row["id"] not in known)]
        labels += [label for label in other_labels if label not in labels]
    finished = {label for row in rows if row["status"] == "finished" for label in treatment_labels(row)}
    labels = [label for label in labels if label in finished]
    if plan.study.reference not in labels:
        return NetworkPanel(network, title, None, f"no finished run of {plan.study.reference}")
    band = endpoint_band(plan.study, network, plan.study.reference, ACCURACY.column)
    return NetworkPanel(network, title, replace(summarize(rows, labels, plan.study.reference, ACCURACY), band=band))


def _same_settings(name: str, plan: Plan, find_rows: FindRows) -> tuple[Sequence[Row], list[str]]:
    """Return rows and labels of another shipped study at the scale whose settings are those of the plan, if any."""
    for scale in {study.name: study.scales for study in builtin_studies()}[name]:
        study = load_study(name, [f"scale={scale}"])
        settings = ("network", "dataset", "train", "prune")
        is_same = all(getattr(study, key) == getattr(plan.study, key) for key in settings)
        if is_same and (planned := find_rows(study)):
            return planned[1], [treatment.label for treatment in study.treatments]
    return [], []


def network_panels_figure(
    panels: Sequence[NetworkPanel], title: str, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw test accuracy at early stopping against weights remaining, one panel per network; as `accuracy_figure`.

    A network without finished runs has an empty panel with its name. Raises UserError if no network has any.
    Source: Zhou et al. 2019, Figs. 3, 4, 5.
    """
    summaries = [panel.summary for panel in panels if panel.summary]
    if not summaries:
        raise UserError("there is nothing to draw: no network of the paper has finished runs; run the study first")
    labels = list(dict.fromkeys(label for summary in summaries for label in summary.series))
    styles = assign_styles(labels)
    caption = _caption(panels, options)
    with style_context(options):
        row_height = HEADING_HEIGHT + PANEL_HEIGHT + AXIS_HEIGHT
        rows = -(-len(panels) // 2)
        body = rows * row_height
        page = FigurePage(title, caption, body + legend_height(labels, options.layout_width), options, labels)
        width = (page.width - LEFT - 0.1 - GAP) / 2
        for index, panel in enumerate(panels):
            row, column = divmod(index, 2)
            left, top = LEFT + column * (width + GAP), row * row_height + HEADING_HEIGHT
            axes = page.axes(left, top, width, PANEL_HEIGHT, grid=panel.summary is not None)
            page.text(left, top - 0.04, panel.title, va="bottom")
            _draw_panel(page, axes, panel, styles, (left, top, width), options)
        for row in range(rows):
            middle = row * row_height + HEADING_HEIGHT + PANEL_HEIGHT / 2
            page.text(0.08, middle, "Test accuracy (%)", 7.5, rotation=90, va="center")
        page.text(LEFT + (page.width - LEFT) / 2, body - AXIS_HEIGHT + 0.19, "Weights remaining (%)", 7.5, ha="center")
        add_legend_below(page, labels, styles, body)
    drawn: list[Row] = [
        {"network": panel.network, **row} for panel in panels if panel.summary for row in data_rows(panel.summary)
    ]
    return RenderedFigure(page.finish(), page.caption, drawn)


def _draw_panel(
    page: FigurePage,
    axes: Axes,
    panel: NetworkPanel,
    styles: dict[str, LineStyle],
    place: tuple[float, float, float],
    options: FigureOptions,
) -> None:
    left, top, width = place
    if panel.summary is None:
        axes.set(xticks=[], yticks=[])
        text = fit_text(panel.missing, width - 0.2, lines=3)
        page.text(left + width / 2, top + PANEL_HEIGHT / 2, text, ha="center", va="center", color=GRAY)
        return
    set_y_axis(axes, panel.summary, choose_scale(panel.summary, options.axis))
    axes.set_ylabel("")
    remaining_weights_axis(axes, [100.0, *(point.remaining for point in panel.summary.points)], min_distance=0.12)
    draw_lines(axes, panel.summary, {label: styles[label] for label in panel.summary.series})


def _caption(panels: Sequence[NetworkPanel], options: FigureOptions) -> str:
    drawn = [(panel.title, panel.summary) for panel in panels if panel.summary]
    missing = [panel.title for panel in panels if panel.summary is None]
    scales = dict.fromkeys(SCALE_NOTES[choose_scale(summary, options.axis)] for _, summary in drawn)
    notes = [sentence for _, summary in drawn for sentence in (mean_note(summary), excluded_note(summary))]
    findings = [(title, takeaway(summary)) for title, summary in drawn]
    conclusion = "; ".join(
        f"{title}: {text.removeprefix('Takeaway: ').rstrip('.')}" for title, text in findings if text
    )
    return join_sentences(
        [
            *notes,
            significance_note(*(summary for _, summary in drawn)),
            "Dotted line: mean of the dense network.",
            *scales,
            *dict.fromkeys(note for _, summary in drawn for note in data_notes(summary)),
            f"Not run: {', '.join(missing)}." if missing else "",
            f"Takeaway: {conclusion}." if conclusion else "",
        ]
    )
