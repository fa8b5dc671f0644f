"""Page of one run as plain data: facts, ancestors and children, certificate, masks; masks as PNG images.

Mask arrays have the shape of the weights: (out, in), or (out, in, *window) for convolutions in one to three
dimensions. An image has one pixel per value; the page scales it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.masks import MaskArrays, layer_densities, pixel_map, unit_connectivity
from supermask.core.masks import unpack
from supermask.core.text import Row, Value, format_duration
from supermask.networks.registry import is_layer_chain
from supermask.serve.store_cache import CachedStore
from supermask.store import CorruptEntry
from supermask.store.files.entry import Entry
from supermask.store.records import decode_curve
from supermask.store.tables import COLUMNS
from supermask.study.networks import run_network
from supermask.study.run import Run

KEPT, PRUNED = (11, 60, 122), (240, 242, 246)
"""RGB colors, dark blue and near white: readable on the light and on the dark page."""

WHITE, DARK_BLUE = np.array([255.0, 255.0, 255.0]), np.array([10.0, 47.0, 94.0])
"""RGB colors of the shares 0 and 1."""

MAX_PIXELS = 4_000_000
"""Pixels of an image; larger masks are drawn with every n-th row and column."""


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """Return a mask as PNG: one row per output unit, one column per input.

    A pixel of a convolution, in one to three dimensions, is the kept share of its kernel window.
    """
    if mask.ndim > 2:
        return fraction_png(mask.mean(axis=tuple(range(2, mask.ndim))), 1.0)
    colors = np.array([PRUNED, KEPT], dtype=np.uint8)
    return _png(colors[mask.astype(np.uint8)])


def pixel_map_png(mask: NDArray[np.bool_], image_shape: tuple[int, int, int]) -> bytes:
    """Return the kept share of each input pixel of a first layer as PNG; the largest share is the darkest.

    Raises ValueError as `pixel_map` does. Source: Zhou et al. 2019, Sec. 2, Fig. S3.
    """
    share = pixel_map(mask, image_shape)
    return fraction_png(share, float(share.max()) or 1.0)


def fraction_png(share: NDArray[np.float64], top: float) -> bytes:
    """Return values from 0 (white) to `top` (dark blue) as PNG."""
    amount = np.clip(share / top, 0.0, 1.0)[..., None]
    return _png((WHITE + amount * (DARK_BLUE - WHITE)).round().astype(np.uint8))


def has_pixel_weights(masks: MaskArrays, image_shape: tuple[int, int, int]) -> bool:
    """True if the first layer is fully connected to the pixels of an image."""
    first = next(iter(masks.values()))
    return first.ndim == 2 and first.shape[1] == int(np.prod(image_shape))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    height, width = pixels.shape[:2]
    stride = max(1, int(np.ceil((height * width / MAX_PIXELS) ** 0.5)))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[::stride, ::stride])).save(file, "PNG", optimize=False)
    return file.getvalue()


MAX_CHILDREN = 200

RESULTS = (
    *(name for name in COLUMNS if name.startswith(("early_stop", "final_", "initial_"))),
    "test_accuracy_std",
    "thresholded_test_accuracy",
    "expected_test_accuracy",
    "expected_density",
    "hardened",
    "diverged_at",
)
TRAINING = (
    *("iterations", "first_iteration", "optimizer", "lr", "batch_size", "evaluate_every"),
    *("momentum", "weight_decay", "lr_drops", "lr_drop_factor", "warmup"),
    *("lr_schedule", "nesterov", "betas", "eps", "label_smoothing", "loss", "augment", "normalize", "precision"),
)
PROVENANCE_COLUMNS = ("seconds", "engine", "torch", "environment", "data_fingerprint", "data_note")
HIDDEN_COLUMNS = ("id", "parent", "study", "treatment", "certificate", "status", "network", "dataset", "seed", "level")


@dataclass(frozen=True)
class RunLink:
    """Link to another run."""

    id: str
    label: str


@dataclass(frozen=True)
class LayerSummary:
    """One masked tensor of a run, for the table of masks."""

    number: int
    name: str
    shape: str
    weights: int
    kept: int
    units: int
    dead: int | None
    """Units on no path of kept weights from input to output; None for a network with shortcuts."""

    @property
    def share(self) -> float:
        """Share of kept weights, in [0, 1]."""
        return self.kept / self.weights


@dataclass(frozen=True)
class RunPage:
    """Content of the page of a run."""

    id: str
    label: str
    row: Row
    studies: list[tuple[str, str]]
    """Pairs (study, treatment) of the studies that the run belongs to."""
    facts: dict[str, list[tuple[str, str, str]]]
    """Heading -> triples (name, value, meaning)."""
    parents: list[RunLink]
    """Ancestors, nearest first."""
    children: list[RunLink]
    more_children: int
    certificate: dict[str, list[str]]
    """Check -> faults; empty if it holds."""
    notes: dict[str, list[str]]
    """Check -> observations that are no faults."""
    layers: list[LayerSummary]
    pixels: bool
    """True if the first layer has a pixel map."""
    has_curve: bool
    damaged: str


def run_page(store: CachedStore, run_id: str, studies: list[tuple[str, str]]) -> RunPage:
    """Collect the page of a run. If its tensors are damaged, the facts are shown without masks and curve."""
    row, facts = store.rows[run_id], store.facts(run_id)
    damaged, layers, pixels, has_curve = "", [], False, False
    try:
        entry = store.read(run_id)
        masks = load_masks(entry)
        run = Run.from_data(facts)
        layers = list(_layers(masks, is_layer_chain(run.network)))
        pixels = has_pixel_weights(masks, run.spec.image_shape)
        has_curve = len(decode_curve(entry.tensors).iterations) > 1
    except CorruptEntry as damage:
        damaged = str(damage)
    children = [child for child in store.rows.values() if child.get("parent") == run_id]
    return RunPage(
        id=run_id,
        label=run_label(row),
        row=row,
        studies=studies,
        facts=dict(_groups(row)),
        parents=list(_parents(store, row)),
        children=[RunLink(str(child["id"]), run_label(child)) for child in children[:MAX_CHILDREN]],
        more_children=max(0, len(children) - MAX_CHILDREN),
        certificate=facts["certificate"]["checks"],
        notes=facts["certificate"].get("notes", {}),
        layers=layers,
        pixels=pixels,
        has_curve=has_curve,
        damaged=damaged,
    )


def run_label(row: Row) -> str:
    """Return the label of a run, such as `large_final, rewind, zero, level 3, seed 0`."""
    level = f", level {row['level']}" if row["level"] else ""
    return f"{row['treatment']}{level}, seed {row['seed']}"


def load_masks(entry: Entry) -> MaskArrays:
    """Return the masks of a run as arrays; all ones for a dense run. Raises CorruptEntry.

    It uses NumPy rather than `api.mask_loading`, which imports torch: the server starts without torch.
    """
    run = Run.from_data(entry.facts)
    layers = run_network(run).tensors
    if run.parent is None and run.learning is None:
        return {name: np.ones(layer.shape, dtype=bool) for name, layer in layers.items()}
    try:
        return {name: unpack(entry.tensors[f"mask/{name}"], layer.shape) for name, layer in layers.items()}
    except (KeyError, ValueError) as error:
        raise CorruptEntry(run.id, f"its masks do not fit its network ({error})") from error


def loss_curve_plot(entry: Entry) -> dict[str, Any]:
    """Return a Plotly figure of the validation loss (nats) per evaluation, with the accuracy (%) as a second view."""
    curve = decode_curve(entry.tensors)
    best = entry.facts["metrics"].get("early_stop_iteration")
    loss = [value if np.isfinite(value) else None for value in curve.validation_loss]
    accuracy = [100 * value if np.isfinite(value) else None for value in curve.validation_accuracy]
    views = []
    for label, title, values in (
        ("Validation loss", "Validation loss (nats)", loss),
        ("Validation accuracy", "Validation accuracy (%)", accuracy),
    ):
        trace = {
            "x": curve.iterations,
            "y": values,
            "name": label.lower(),
            "mode": "lines",
            "line": {"width": 2, "color": "#0072B2"},
            "hovertemplate": "iteration %{x:,}<br>%{y:.5g}<extra></extra>",
        }
        layout = {
            "xaxis": {"title": {"text": "Iteration"}},
            "yaxis": {"title": {"text": title}},
            "showlegend": False,
            "margin": {"l": 64, "r": 16, "t": 16, "b": 48},
            "shapes": [] if best is None else [_vertical_line(best)],
        }
        views.append({"label": label, "data": [trace], "layout": layout})
    return {**views[0], "views": views[1:]}


def _vertical_line(x: int) -> dict[str, Any]:
    line = {"dash": "dot", "width": 1, "color": "#888888"}
    return {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}


def _groups(row: Row) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    known = {*RESULTS, *TRAINING, *PROVENANCE_COLUMNS, *HIDDEN_COLUMNS}
    treatment = tuple(name for name in COLUMNS if name not in known)
    for heading, names in (
        ("Results", RESULTS),
        ("Treatment", treatment),
        ("Training", TRAINING),
        ("Provenance", PROVENANCE_COLUMNS),
    ):
        facts = [(name, _text(name, row[name]), COLUMNS[name].meaning) for name in names if row.get(name) is not None]
        if facts:
            yield heading, facts


def _text(name: str, value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "seconds" and isinstance(value, int | float):
        return format_duration(float(value))
    if name == "data_fingerprint":
        return f"{str(value)[:16]}…"
    if isinstance(value, float):
        return f"{100 * value:.2f}%" if "accuracy" in name or "density" in name else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _parents(store: CachedStore, row: Row) -> Iterator[RunLink]:
    rows: Mapping[str, Row] = store.rows
    parent = row.get("parent")
    while parent in rows:
        parent_row = rows[str(parent)]
        yield RunLink(str(parent), run_label(parent_row))
        parent = parent_row.get("parent")


def _layers(masks: MaskArrays, is_chain: bool) -> Iterator[LayerSummary]:
    density, units = layer_densities(masks), unit_connectivity(masks) if is_chain else {}
    for number, (name, mask) in enumerate(masks.items()):
        shape = " × ".join(map(str, mask.shape))
        dead = units[name].dead if is_chain else None
        yield LayerSummary(number, name, shape, density[name].weights, density[name].kept, mask.shape[0], dead)
