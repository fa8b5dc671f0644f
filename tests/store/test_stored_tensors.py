"""The form of a run's tensors is checked on every read: one sealed run of another form spares the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import call
from helpers.faulty_disk import quick_folder
from helpers.golden_store import copy_golden, golden_entries, write_entry

from supermask.store import CorruptEntry, Store
from supermask.store.files.entry import Entry, Tensors
from supermask.store.records import decode_curve
from supermask.store.rows import store_rows
from supermask.store.verify import verify_store


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def set_curve(change: Callable[[np.ndarray], np.ndarray], column: str = "validation_loss") -> Callable[[Tensors], None]:
    def apply(tensors: Tensors) -> None:
        tensors[f"curve/{column}"] = change(tensors[f"curve/{column}"])

    return apply


CURVES: dict[str, Callable[[Tensors], object]] = {
    "missing": lambda tensors: tensors.pop("curve/validation_loss"),
    "float32": set_curve(lambda values: values.astype(np.float32)),
    "of text": set_curve(lambda values: values.astype(np.uint8)),
    "two dimensions": set_curve(lambda values: values[None]),
    "one number": set_curve(lambda values: values.sum()),
    "shorter": set_curve(lambda values: values[:-1]),
    "real iterations": set_curve(lambda values: values.astype(np.float64), "iterations"),
}


@pytest.mark.parametrize("change", CURVES.values(), ids=CURVES)
def test_a_curve_of_another_form_is_refused(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = dict(golden_entries(copy_golden(folder).root)["finished dense"][3].tensors)
    decode_curve(tensors)
    change(tensors)
    with pytest.raises(ValueError, match="learning curve"):
        decode_curve(tensors)


def forge(store: Store, name: str, change: Callable[[Tensors], object]) -> str:
    """Change the tensors of a golden run and reseal it. Return its id."""
    _, key, path, entry = golden_entries(store.root)[name]
    tensors = dict(entry.tensors)
    change(tensors)
    write_entry("run", key, path, Entry(entry.facts, tensors, entry.weights))
    return key


@pytest.mark.parametrize("name", ["finished bernoulli", "finished dense", "finished pruned"])
@pytest.mark.parametrize("change", [CURVES["missing"], CURVES["shorter"]], ids=["no curve", "a shorter curve"])
def test_a_run_with_another_curve_is_named_and_spares_the_others(
    folder: Path, name: str, change: Callable[[Tensors], object]
) -> None:
    store = copy_golden(folder)
    before, _ = store_rows(store)
    key = forge(store, name, change)
    with pytest.raises(CorruptEntry, match="learning curve"):
        store.read(key)
    rows, damaged = store_rows(store)
    assert [row["id"] for row in rows] == [row["id"] for row in before]
    # Only the rows of learned masks read curves.
    assert [message.split()[0] for message in damaged] == ([key] if name == "finished bernoulli" else [])
    (verdict,) = [verdict for verdict in verify_store(store) if verdict.key == key]
    assert verdict.verdict == "damaged" and verdict.culprits == (key,) and "learning curve" in verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finished bernoulli", "finished dense"])
def test_commands_name_a_run_with_another_curve(folder: Path, name: str) -> None:
    store = copy_golden(folder)
    key = forge(store, name, CURVES["missing"])
    at = ("--store", store.root)
    counted = call("query", "SELECT count(*) AS n FROM runs", *at)
    assert counted.status == 0 and str(len(store.run_ids())) in counted.out
    sent = call("export-tracker", "tensorboard", *at, "--out", folder / "tracker")
    built = call("tickets", "build", *at, "--out", folder / "tickets")
    for ended in (sent, built) if name == "finished dense" else (counted, sent, built):
        # `tickets build` counts equal reasons of several runs, without their ids.
        named = "ID" if ended is built else key
        assert f"{named} in the store is damaged: it has no column validation_loss" in ended.err + ended.out
        assert "Traceback" not in ended.err
    assert len(list((folder / "tracker").iterdir())) > 1


def test_a_mask_of_another_form_is_damage(folder: Path) -> None:
    store = copy_golden(folder)

    def cut(tensors: Tensors) -> None:
        name = min(name for name in tensors if name.startswith("mask/"))
        tensors[name] = tensors[name][:-1]

    key = forge(store, "finished pruned", cut)
    with pytest.raises(CorruptEntry, match=r"its mask for .* does not have one bit per weight"):
        store.read(key)
