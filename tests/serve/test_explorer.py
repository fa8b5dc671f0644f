"""Explorer: grouping of runs into series, labels, and plotted values against an independent computation."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.serving import Page, client, note_study
from helpers.small_studies import small_plan, train_plan
from PIL import Image
from scipy import stats

from supermask.core.text import Row
from supermask.serve import explorer
from supermask.serve.run_page import MAX_PIXELS, has_pixel_weights, mask_png, pixel_map_png
from supermask.serve.series import Series, group_series
from supermask.serve.store_cache import CachedStore

LEARNED = {"supermask": {"method": "bernoulli"}}
TREATMENTS = [
    {"name": "plain"},
    {"name": "once", "schedule": "one_shot"},
    {"name": "global", "scope": "global"},
    {"name": "late", "rewind_to": 4},
    {"name": "untrained", "trained": False},
    {"name": "untrained, rescaled", "trained": False, "mask1": "signed_constant", "rescaled": True},
    {"name": "learned", **LEARNED},
    {"name": "learned, rescaled", "supermask": {"method": "bernoulli", "rescaled": True}},
    {"name": "trained from learned", **LEARNED, "levels": 1, "mask1": "rewind"},
    {"name": "the same, rescaled", "supermask": {"method": "bernoulli", "rescaled": True}, "levels": 1},
]
SUBJECT = {"network": "fc-20", "dataset": "digits"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of run with two seeds and two levels, and one treatment also with another learning rate."""
    folder = tmp_path_factory.mktemp("series")
    learn = {"epochs": 0.6, "evaluate_every": 4}
    train_plan(small_plan(*TREATMENTS, seeds=2, learn=learn), folder)
    train_plan(small_plan({"name": "plain"}, {"name": "untrained", "trained": False}, seeds=3, lr=3e-3), folder)
    return folder


@pytest.fixture(scope="module")
def cache(store: Path) -> CachedStore:
    cached = CachedStore(store)
    cached.refresh()
    return cached


@pytest.fixture(scope="module")
def all_series(cache: CachedStore) -> dict[str, Series]:
    return group_series(cache.rows, cache.ancestry)


@pytest.fixture(scope="module")
def page(store: Path) -> Page:
    return client(store)


@pytest.mark.slow
def test_every_run_is_in_one_series_and_no_series_has_a_seed_twice_per_level(
    cache: CachedStore, all_series: dict[str, Series]
) -> None:
    counts = Counter(run_id for series in all_series.values() for run_id in series.run_ids)
    assert set(counts) == set(cache.rows)
    assert set(counts.values()) == {1}
    for series in all_series.values():
        rows = [cache.rows[run_id] for run_id in series.run_ids]
        assert len({(row["level"], row["seed"]) for row in rows}) == len(rows), series.label


def test_labels_have_only_distinguishing_settings(all_series: dict[str, Series]) -> None:
    labels = [series.label for series in all_series.values()]
    assert len(set(labels)) == len(labels)
    assert labels[:2] == ["dense, lr 0.0012", "dense, lr 0.003"]
    assert "supermask, bernoulli" in labels
    assert "supermask, bernoulli, rescaled" in labels
    assert "large_final, rewind, zero, one_shot, lr 0.0012" in labels
    assert "large_final, rewind, zero, global, lr 0.0012" in labels
    assert "large_final, rewind, zero, untrained, dense lr 0.003" in labels
    assert not [label for label in labels if label.endswith(")")]


def test_runs_with_different_ancestors_are_different_series(cache: CachedStore, all_series: dict[str, Series]) -> None:
    """Untrained networks have no recipe; their masks come from dense runs with two recipes."""
    untrained = [series for series in all_series.values() if ", untrained" in series.label and "rewind" in series.label]
    assert len(untrained) == 2
    assert {len(series.run_ids) for series in untrained} == {4, 6}


@pytest.mark.slow
def test_plotted_values_match_the_csv(page: Page) -> None:
    (subject,) = page.get("/explore/choices.json").json()["subjects"]
    keys = [treatment["key"] for treatment in subject["treatments"]]
    table = list(csv.DictReader(io.StringIO(page.get("/explore/runs.csv", params=SUBJECT).text)))
    by_label: dict[str, list[dict[str, str]]] = {}
    for row in table:
        by_label.setdefault(row["treatment"], []).append(row)
    assert set(by_label) == {treatment["label"] for treatment in subject["treatments"]}
    for metric, factor in (("early_stop_test_accuracy", 100), ("early_stop_iteration", 1)):
        figure = page.get("/explore/curves.json", params={**SUBJECT, "metric": metric, "treatment": keys}).json()
        shown = [trace for trace in figure["data"] if "name" in trace]
        assert [trace["name"] for trace in shown] == [treatment["label"] for treatment in subject["treatments"]]
        for trace in shown:
            rows = by_label[trace["name"]]
            levels = sorted({int(row["level"]) for row in rows})
            for index, level in enumerate(levels):
                values = np.array([float(row[metric]) * factor for row in rows if int(row["level"]) == level])
                density = np.array([float(row["density"]) for row in rows if int(row["level"]) == level])
                assert math.isclose(trace["x"][index], 100 * density.mean(), rel_tol=1e-12)
                assert math.isclose(trace["y"][index], values.mean(), rel_tol=1e-12, abs_tol=1e-12)
                assert f"n = {values.size}" in trace["text"][index]
                half = stats.t.ppf(0.975, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size)
                ends = values.mean() - half, values.mean() + half
                low, high = np.clip(ends, 0, 100) if factor == 100 else ends
                assert f"95% interval {low:.5g} to {high:.5g}" in trace["text"][index]


def test_dense_network_is_a_horizontal_line(page: Page) -> None:
    (subject,) = page.get("/explore/choices.json").json()["subjects"]
    keys = [treatment["key"] for treatment in subject["treatments"]]
    data = page.get("/explore/curves.json", params={**SUBJECT, "treatment": keys}).json()["data"]
    dense = next(trace for trace in data if trace.get("name") == "dense, lr 0.0012")
    assert dense["x"] == [100, min(x for trace in data for x in trace["x"])]
    assert dense["y"][0] == dense["y"][1]


def test_default_selection_is_the_dense_network_and_the_papers_actions(
    cache: CachedStore, all_series: dict[str, Series]
) -> None:
    first = [all_series[key].label for key in explorer.default_selection(explorer.RunSet(cache.rows, all_series))]
    assert first[0].startswith("dense")
    assert all("rewind, zero" in label and "untrained" not in label for label in first[1:3])


ROWS: list[Row] = [
    {"id": "a", "level": 2, "early_stop_test_accuracy": 0.5},
    {"id": "b", "level": 1, "early_stop_test_accuracy": None},
    {"id": "c", "level": 10, "early_stop_test_accuracy": 0.25},
    {"id": "d", "level": 1},
]


@pytest.mark.parametrize(
    ("sort", "descending", "order"),
    [
        ("level", False, "bdac"),
        ("level", True, "cabd"),
        ("early_stop_test_accuracy", False, "cabd"),
        ("early_stop_test_accuracy", True, "acbd"),
        ("id", True, "dcba"),
    ],
)
def test_sorting_keeps_missing_values_last(sort: str, descending: bool, order: str) -> None:
    page = explorer.runs_page([(row, "") for row in ROWS], sort, descending, 0)
    assert "".join(row[-1] for row in page["rows"]) == order


def test_pages_have_every_row_once() -> None:
    rows: list[Row] = [{"id": f"{number:03d}", "level": number % 7} for number in range(250)]
    pages = [explorer.runs_page([(row, "") for row in rows], "level", False, page) for page in range(4)]
    assert [len(page["rows"]) for page in pages] == [100, 100, 50, 0]
    assert {page["pages"] for page in pages} == {3}
    ids = [row[-1] for page in pages for row in page["rows"]]
    assert sorted(ids) == [row["id"] for row in rows]


def test_too_many_series_are_refused(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "MAX_SERIES", 1)
    (subject,) = page.get("/explore/choices.json").json()["subjects"]
    keys = [treatment["key"] for treatment in subject["treatments"]][:2]
    answer = page.get("/explore/curves.json", params={**SUBJECT, "treatment": keys})
    assert answer.status_code == 400
    assert answer.json()["error"] == "2 treatments are too many for one plot: choose up to 1."


@pytest.mark.slow
def test_every_kind_of_run_has_a_page(page: Page, cache: CachedStore) -> None:
    for run_id in cache.rows:
        html = page.get(f"/run/{run_id}")
        assert html.status_code == 200, cache.rows[run_id]
        assert "✓ holds" in html.text
        assert page.get(f"/run/{run_id}/mask/1.png").content[:4] == b"\x89PNG"
        assert page.get(f"/run/{run_id}/curve.json").status_code == 200


def test_diverged_runs_are_shown_but_not_averaged(tmp_path: Path) -> None:
    plan = small_plan({"name": "plain"}, seeds=2, lr=1e30)
    train_plan(plan, tmp_path)
    note_study(tmp_path, plan)
    page = client(tmp_path)
    (study,) = page.get("/live.json").json()["studies"]
    assert (study["done"], study["total"], study["counts"]) == (6, 6, "4 blocked, 2 diverged")
    for run in plan.runs.values():
        html = page.get(f"/run/{run.id}")
        assert html.status_code == (404 if run.level else 200)
        if not run.level:
            assert '<strong class="status diverged">diverged</strong>' in html.text
    (subject,) = page.get("/explore/choices.json").json()["subjects"]
    keys = [treatment["key"] for treatment in subject["treatments"]]
    assert page.get("/explore/curves.json", params={**SUBJECT, "treatment": keys}).json()["data"] == []
    assert page.get("/explore/runs.json", params=SUBJECT).json()["total"] == 2


def test_image_of_a_convolution_has_one_pixel_per_kernel() -> None:
    mask = np.zeros((3, 2, 3, 3), dtype=bool)
    mask[1, 0] = True
    mask[2, 1, 0] = True
    pixels = np.asarray(Image.open(io.BytesIO(mask_png(mask)))).astype(float)
    assert pixels.shape == (3, 2, 3)
    darkness = (255 - pixels[..., 0]) / 245
    assert np.allclose(darkness, mask.mean(axis=(2, 3)), atol=0.5 / 245)
    assert not has_pixel_weights({"conv1.weight": mask}, (2, 3, 3))
    with pytest.raises(ValueError, match="not one of a fully connected first layer"):
        pixel_map_png(mask, (2, 3, 3))


@pytest.mark.parametrize("window", [(5,), (2, 3, 2)], ids=["conv1d", "conv3d"])
def test_image_of_a_convolution_in_another_dimension(window: tuple[int, ...]) -> None:
    mask = np.zeros((3, 2, *window), dtype=bool)
    mask[1, 0] = True
    mask[2, 1, 0] = True
    pixels = np.asarray(Image.open(io.BytesIO(mask_png(mask)))).astype(float)
    darkness = (255 - pixels[..., 0]) / 245
    assert np.allclose(darkness, mask.reshape(3, 2, -1).mean(axis=2), atol=0.5 / 245)


def test_images_are_limited_in_size() -> None:
    wide = np.asarray(Image.open(io.BytesIO(mask_png(np.ones((300, 20_000), dtype=bool)))))
    assert wide.shape[0] * wide.shape[1] <= MAX_PIXELS
