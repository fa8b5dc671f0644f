"""Commands `pack`, `inspect` and `eval`: output, failed checks, refused input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import call, refused, supermask
from helpers.ticket_runs import Arrays, Runs, forged, ticket_runs

from supermask import Ticket, UserError, save_ticket
from supermask.api import tickets
from supermask.export.tickets.checks import MAX_LEVELS

Change = Callable[[dict[str, Any], Arrays], None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return ticket_runs(tmp_path_factory.mktemp("ticket-commands"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder, without environment variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("SUPERMASK_STORE", "SUPERMASK_DATA"):
        monkeypatch.delenv(name, raising=False)


def packed(runs: Runs, treatment: str = "rewound", weights: str = "auto", level: int = 2) -> Path:
    path = Path("ticket.safetensors").absolute()
    ended = call("pack", runs.id(treatment, level), path, "--weights", weights, "--store", runs.folder, "--force")
    assert (ended.status, ended.err) == (0, "")
    return path


def rewritten(path: Path, change: Change) -> Path:
    path.write_bytes(forged(path.read_bytes(), change))
    return path


def check_statuses(out: str) -> dict[str, str]:
    """Check -> `held`, `BROKEN` or `not checked`, from the output of `inspect`."""
    lines = out.rpartition("\n\n")[2].splitlines()
    return {line[13:].partition(":")[0]: line[:12].strip() for line in lines}


# --- pack, inspect, eval ---


@pytest.mark.slow
def test_run_is_packed_inspected_and_evaluated_in_separate_processes(runs: Runs, tmp_path: Path) -> None:
    run_id = runs.id("rewound")
    ended = supermask("pack", run_id[:12], "t.safetensors", SUPERMASK_STORE=str(runs.folder))
    size = (tmp_path / "t.safetensors").stat().st_size
    assert (ended.status, ended.err) == (0, "")
    counts = "fc-20 on digits, seed 0, level 2, 418 of 1,480 weights (28.24%)"
    assert ended.out == f"t.safetensors  {size:,} bytes: {counts}\n"
    ended = supermask("inspect", "t.safetensors")
    assert (ended.status, ended.err) == (0, "")
    fields = dict(line.split(maxsplit=1) for line in ended.out.partition("\n\n")[0].splitlines())
    assert fields["ticket"] == counts
    assert run_id in fields["run"]
    assert fields["bytes"].startswith(f"{size:,}: masks 185, weights {418 * 4:,}, others {30 * 4}, header ")
    assert set(check_statuses(ended.out).values()) == {"held"}
    assert "fc2.weight  10x20      200    98   49.00%  values        zero" in ended.out.splitlines()
    accuracy = runs.store.facts(run_id)["metrics"]["final_test_accuracy"]
    ended = supermask("eval", "t.safetensors")
    assert ended.out.splitlines() == [
        "data      digits, 360 test images; the same data as the run's",
        f"measured  {accuracy:.2%} ({round(accuracy * 360)} of 360 correct)",
        f"stored    {accuracy:.2%} (final weights)",
        "the same",
    ]


FROZEN = ("frozen", "frozen at the end", "zeros inside")


@pytest.mark.parametrize(
    "treatment", ["constants", "frozen", "frozen at the end", "late", "zeros inside", "one shot", "global", "reinit"]
)
@pytest.mark.parametrize("weights", ["final", "start"])
def test_every_check_of_a_packed_run_holds(runs: Runs, treatment: str, weights: str) -> None:
    status, out, _ = call("inspect", packed(runs, treatment, weights))
    assert status == 0
    verdicts = check_statuses(out)
    not_checked = {"pruned weights are 0"} if treatment in FROZEN else set()
    assert {name for name, verdict in verdicts.items() if verdict == "not checked"} == not_checked
    assert "BROKEN" not in verdicts.values()
    assert ("it is the start that was trained from, bit for bit" in verdicts) == (weights == "start")


def test_untrained_ticket_has_no_stored_accuracy(runs: Runs) -> None:
    path = packed(runs, weights="start")
    assert "accuracy  not known" in call("inspect", path).out
    assert call("eval", path).out.splitlines()[-1] == "stored    none: the ticket stores no accuracy of this network"


def test_dense_run_can_be_packed(runs: Runs) -> None:
    path = Path("dense.safetensors")
    assert call("pack", runs.dense, path, "--store", runs.folder).status == 0
    assert set(check_statuses(call("inspect", path).out).values()) == {"held"}


def test_other_data_and_another_accuracy_are_reported(runs: Runs) -> None:
    path = packed(runs)

    def other(document: dict[str, Any], tensors: Arrays) -> None:
        document["facts"]["run"]["data"]["fingerprint"] = "0" * 64
        document["facts"]["accuracy"]["test"] += 3 / 360

    status, out, _ = call("eval", rewritten(path, other))
    assert status == 0
    assert out.splitlines()[0] == "data      digits, 360 test images; OTHER data than the run's"
    assert out.splitlines()[-1] == "they DIFFER, by 3 images"


def test_ticket_of_a_foreign_module_can_be_inspected_but_not_evaluated(tmp_path: Path) -> None:
    mask = torch.eye(3, dtype=torch.bool)
    save_ticket(Ticket({"w": mask}, {"w": torch.eye(3)}, {}), tmp_path / "mine")
    status, out, _ = call("inspect", tmp_path / "mine")
    assert status == 0
    assert "a network without a known name, 3 of 9 weights (33.33%)" in out
    assert "w       3x3          9     3   33.33%  constant      zero" in out.splitlines()
    assert list(check_statuses(out).values()).count("not checked") == 4
    assert "Ticket.apply_to" in refused(call("eval", tmp_path / "mine"))
    assert "Ticket.apply_to" in refused(call("eval", tmp_path / "mine", "--dataset", "digits"))


def test_ticket_of_an_own_network_is_called_by_its_import_path(tmp_path: Path) -> None:
    facts = {"run": {"network": 'mynets:net {"width":3}', "dataset": "digits", "level": 2}}
    save_ticket(Ticket({"w": torch.eye(3, dtype=torch.bool)}, {"w": torch.eye(3)}, {}, facts=facts), tmp_path / "own")
    assert 'mynets:net {"width":3} on digits, level 2, 3 of 9 weights' in call("inspect", tmp_path / "own").out
    message = refused(call("eval", tmp_path / "own", "--dataset", "digits"))
    assert "is of your network" in message and "copy it into your module with Ticket.apply_to" in message


# --- failed checks under correct checksums ---


def run_fact(key: str, value: Any) -> Change:
    return lambda document, tensors: document["facts"]["run"].update({key: value})


def emptied(document: dict[str, Any], tensors: Arrays) -> None:
    document["layers"][1]["kept"] = 0
    tensors["mask/fc2.weight"][:] = 0
    tensors["kept/fc2.weight"] = np.zeros(0, np.float32)


def thawed(document: dict[str, Any], tensors: Arrays) -> None:
    document["layers"][0]["frozen"] = "values"
    tensors["frozen/fc1.weight"] = np.ones(20 * 64 - 320, np.float32)


def failed(document: dict[str, Any], tensors: Arrays) -> None:
    document["facts"]["run"]["certificate"]["checks"]["frozen_is_frozen"] = ["fc1.weight"]


COUNTS = "kept counts are what prune rates and level ask for"


@pytest.mark.parametrize(
    ("change", "check", "why"),
    [
        (failed, "the run's certificate held when it ended", "'frozen_is_frozen'"),
        (run_fact("seed", 1), "network, seed and counts of its facts are those of its tensors", "'seed'"),
        (emptied, "no layer is emptied", "'fc2.weight'"),
        (run_fact("level", 3), COUNTS, "'fc1.weight: 320 kept, 160 asked', 'fc2.weight: 98 kept, 69 asked'"),
        (run_fact("prune_rates", {"hidden": 0.5, "output": 0.4}), COUNTS, "'fc2.weight: 98 kept, 72 asked'"),
        (run_fact("level", 10**9), COUNTS, "out of range"),
        (run_fact("level", -1), COUNTS, "out of range"),
        (run_fact("prune_rates", {"hidden": "1e-999999999", "output": 0.5}), COUNTS, "out of range"),
        (run_fact("prune_rates", {"hidden": 7, "output": 0.5}), COUNTS, "out of range"),
        (thawed, "pruned weights are 0", "'fc1.weight'"),
        (
            lambda d, t: d.update(initial_content="0" * 64),
            "its seed gives the network that it was made of",
            "seed 0 gives",
        ),
    ],
)
def test_failed_check_is_reported_with_exit_status_1(runs: Runs, change: Change, check: str, why: str) -> None:
    status, out, err = call("inspect", rewritten(packed(runs), change))
    assert (status, err) == (1, "")
    assert check_statuses(out)[check] == "BROKEN"
    assert why in next(line for line in out.splitlines() if check in line)


def test_wrong_start_is_detected(runs: Runs) -> None:
    path = packed(runs, weights="start")

    def swapped(document: dict[str, Any], tensors: Arrays) -> None:
        bits = np.unpackbits(tensors["mask/fc1.weight"])
        kept, pruned = np.flatnonzero(bits)[0], np.flatnonzero(bits == 0)[0]
        bits[kept], bits[pruned] = 0, 1
        tensors["mask/fc1.weight"] = np.packbits(bits)

    status, out, _ = call("inspect", rewritten(path, swapped))
    assert status == 1
    assert [name for name, verdict in check_statuses(out).items() if verdict == "BROKEN"] == [
        "it is the start that was trained from, bit for bit"
    ]


def test_wrong_initial_network_leaves_dependent_checks_out(runs: Runs) -> None:
    path = packed(runs, weights="start")
    rewritten(path, lambda document, tensors: document.update(initial_content="0" * 64))
    status, out, _ = call("inspect", path)
    assert status == 1
    assert list(check_statuses(out).values()).count("not checked") == 2
    assert "seed 0 gives another fc-20 here" in refused(call("eval", path))


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"run": []},
        {"run": {"level": [], "prune_rates": 3, "certificate": None, "data": "x", "id": 1}},
        {"run": {"level": 1, "prune_rates": {"hidden": None}, "step": 3, "mask0": {}, "start_content": 7}},
        {"accuracy": {"test": "1", "of": 1}, "weights": {"start": 1}},
        {"accuracy": 1.0, "run": {"level": MAX_LEVELS, "prune_rates": {}, "certificate": {"held": "yes"}}},
        {"run": {"criterion": "\x1b[31m\n" * 5000, "id": "\u202e", "level": int("9" * 4000), "mask0": "x" * 10_000}},
        {"run": {"certificate": {"held": True, "checks": {"\n\x1b[2J": ["x"]}}, "data": {"fingerprint": "\n"}}},
        {"accuracy": {"test": 1e300, "of": "\x1b" * 10_000}},
    ],
    ids=range(9),
)
def test_malformed_facts_fail_checks_only(runs: Runs, facts: dict[str, Any]) -> None:
    path = rewritten(packed(runs), lambda document, tensors: document.update(facts=facts))
    for command in ("inspect", "eval"):
        status, out, err = call(command, path)
        assert status in (0, 1)
        assert err == ""
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert max(map(len, out.splitlines())) < 400


# --- refused input ---


def test_unknown_dataset_and_device_are_refused(runs: Runs) -> None:
    path = packed(runs)
    assert "did you mean 'digits'" in refused(call("eval", path, "--dataset", "digts"))
    assert "'gpu' is not a device" in refused(call("eval", path, "--device", "gpu"))


def test_shape_of_the_dataset_is_checked_before_it_is_read(runs: Runs) -> None:
    message = refused(call("eval", packed(runs), "--dataset", "cifar10"))
    assert "the ticket does not fit cifar10: 'fc1.weight' is of shape (20, 64), and in fc-20 on cifar10" in message
    assert "It was made for digits." in message


def test_existing_file_is_kept(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_text("mine")
    message = refused(call("pack", runs.id("rewound"), path, "--store", runs.folder))
    assert "exists already: give another name, or --force" in message
    assert path.read_text() == "mine"
    assert call("pack", runs.id("rewound"), path, "--store", runs.folder, "--force").status == 0


def test_damaged_ticket_is_one_message(runs: Runs) -> None:
    path = packed(runs)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for command in ("inspect", "eval"):
        assert "it is damaged. Get the file again." in refused(call(command, path))


def test_missing_store_unknown_run_and_unknown_weights_are_refused(runs: Runs, tmp_path: Path) -> None:
    assert "there is no store at" in refused(call("pack", "abc", "t"))
    assert "no run in" in refused(call("pack", "zz", "t", "--store", runs.folder))
    assert "'last' is not one of" in refused(call("pack", "ab", "t", "--weights", "last", "--store", runs.folder))
    assert not list(tmp_path.iterdir())


def test_damaged_store_is_a_system_failure(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.folder, tmp_path / "store")
    run_id = runs.id("rewound", 1)
    weights = tmp_path / "store" / "runs" / run_id[:2] / run_id / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"{run_id} in the store is damaged" in refused(call("pack", run_id, "t", "--store", "store"), status=1)
    assert not (tmp_path / "t").exists()


def test_functions_return_the_output_of_the_commands(runs: Runs) -> None:
    ticket, path = tickets.pack(runs.id("constants"), Path("t"), "start", store=runs.folder)
    inspection = tickets.inspect_ticket(path)
    assert inspection.passed
    assert sum(inspection.bytes.values()) == path.stat().st_size
    again, evaluation = tickets.evaluate_ticket(path)
    assert again.facts == ticket.facts
    assert (evaluation.images, evaluation.stored, evaluation.same_data) == (360, None, True)
    with pytest.raises(UserError, match="is not a device"):
        tickets.evaluate_ticket(path, device="tpu")
