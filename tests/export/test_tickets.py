"""Tickets: packing of stored runs, round trips through files, and use in other modules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_studies import small_plan, train_plan
from helpers.ticket_runs import TREATMENTS, Runs, decode_independently, ticket_runs
from safetensors import safe_open
from safetensors.numpy import load_file

import supermask
from supermask import Ticket, UserError, load_ticket, pack_run, save_ticket
from supermask.core.types import NetworkState
from supermask.datasets import load
from supermask.export.tickets.files import encode_ticket, size_by_part
from supermask.networks.sequential import architecture, initial_state
from supermask.store import Store
from supermask.store.records import state_hash
from supermask.store.replay import StateReplayer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return ticket_runs(tmp_path_factory.mktemp("tickets"))


def are_bit_identical(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Compare names, types and bits."""
    return {n: (t.dtype, t.numpy().tobytes()) for n, t in a.items()} == {
        n: (t.dtype, t.numpy().tobytes()) for n, t in b.items()
    }


def all_tensors(state: NetworkState) -> dict[str, torch.Tensor]:
    return {**state.weights, **state.unmasked}


# --- packing and loading ---


@pytest.mark.slow
@pytest.mark.parametrize("snapshot", ["start", "final"])
@pytest.mark.parametrize("treatment", [*TREATMENTS, "dense"])
def test_packed_run_is_bit_identical_after_loading(runs: Runs, treatment: str, snapshot: Any, tmp_path: Path) -> None:
    run_id = runs.dense if treatment == "dense" else runs.id(treatment)
    parent = StateReplayer(runs.store).parent_run(run_id)
    ticket = load_ticket(save_ticket(pack_run(runs.store, run_id, snapshot), tmp_path / "ticket.safetensors"))
    state = parent.start.state if snapshot == "start" else parent.state_at("end")
    assert are_bit_identical(ticket.network_weights(), all_tensors(state))
    assert are_bit_identical(ticket.masks, parent.start.masks)
    assert list(ticket.masks) == ["fc1.weight", "fc2.weight"]
    initial = initial_state(architecture("fc-20", (1, 8, 8), 10), 0)
    assert are_bit_identical(ticket.initial_weights(), all_tensors(initial.state))
    assert ticket.facts["run"]["id"] == run_id
    assert (ticket.network, ticket.dataset, ticket.seed) == ("fc-20", "digits", 0)


@pytest.mark.parametrize(
    ("treatment", "snapshot", "weights", "frozen", "others"),
    [
        ("rewound", "start", "from_seed", "zero", "from_seed"),
        ("rewound", "final", "values", "zero", "values"),
        ("constants", "start", "constant", "zero", "from_seed"),
        ("constants", "final", "values", "zero", "values"),
        ("random constants", "start", "constant", "zero", "from_seed"),
        ("frozen", "start", "from_seed", "from_seed", "from_seed"),
        ("frozen", "final", "values", "from_seed", "values"),
        ("frozen at the end", "start", "from_seed", "values", "from_seed"),
        ("late", "start", "values", "zero", "values"),
        ("zeros inside", "start", "values", "values", "from_seed"),
        ("reinit", "start", "values", "zero", "from_seed"),
        ("one shot", "start", "from_seed", "zero", "from_seed"),
    ],
)
def test_only_tensors_that_the_seed_does_not_give_are_stored(
    runs: Runs, tmp_path: Path, treatment: str, snapshot: Any, weights: str, frozen: str, others: str
) -> None:
    path = save_ticket(pack_run(runs.store, runs.id(treatment), snapshot), tmp_path / "ticket")
    document, _ = decode_independently(path)
    assert [(layer["weights"], layer["frozen"]) for layer in document["layers"]] == [(weights, frozen)] * 2
    assert document["others"] == others


@pytest.mark.parametrize("snapshot", ["start", "final"])
@pytest.mark.parametrize("treatment", TREATMENTS)
def test_independent_reader_decodes_the_same_tensors(runs: Runs, tmp_path: Path, treatment: str, snapshot: Any) -> None:
    ticket = pack_run(runs.store, runs.id(treatment), snapshot)
    document, found = decode_independently(save_ticket(ticket, tmp_path / "ticket"))
    network = ticket.network_weights()
    assert found.keys() == network.keys()
    assert all(found[name].tobytes() == network[name].numpy().tobytes() for name in found)
    assert document["initial_content"] == state_hash(initial_state(architecture("fc-20", (1, 8, 8), 10), 0))


def test_file_can_be_read_by_the_safetensors_library(runs: Runs, tmp_path: Path) -> None:
    path = save_ticket(pack_run(runs.store, runs.id("frozen")), tmp_path / "ticket.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        values = file.get_tensor("kept/fc1.weight")
    assert list(metadata) == ["supermask.ticket"]
    assert json.loads(metadata["supermask.ticket"])["facts"]["run"]["mask0"] == "freeze_init"
    ticket = load_ticket(path)
    assert torch.equal(values, ticket.weights["fc1.weight"][ticket.masks["fc1.weight"]])
    assert load_file(path)["mask/fc2.weight"].shape == (25,)


@pytest.mark.slow
def test_equal_tickets_give_equal_bytes_in_every_process(runs: Runs, tmp_path: Path) -> None:
    ticket = pack_run(runs.store, runs.id("late"))
    data = encode_ticket(ticket)
    path = save_ticket(ticket, tmp_path / "ticket")
    assert path.read_bytes() == data == encode_ticket(load_ticket(path))
    program = "import sys; from supermask import *; save_ticket(load_ticket(sys.argv[1]), sys.argv[2])"
    subprocess.run([sys.executable, "-c", program, str(path), str(tmp_path / "again")], check=True)
    assert (tmp_path / "again").read_bytes() == data


def test_masks_and_a_seed_take_one_bit_per_weight(runs: Runs) -> None:
    sizes = size_by_part(pack_run(runs.store, runs.id("rewound"), "start"))
    assert (sizes["masks"], sizes["weights"], sizes["others"]) == (20 * 64 // 8 + 10 * 20 // 8, 0, 0)
    constants = size_by_part(pack_run(runs.store, runs.id("constants"), "start"))
    kept = [320, 98]
    assert constants["weights"] == sum(4 + (count + 7) // 8 for count in kept)


# --- stored accuracy ---


def test_stored_accuracy_belongs_to_the_packed_network(runs: Runs) -> None:
    run_id = runs.id("rewound")
    metrics = runs.store.facts(run_id)["metrics"]
    final = pack_run(runs.store, run_id)
    assert final.facts["accuracy"] == {"test": metrics["final_test_accuracy"], "of": "final weights"}
    assert final.facts["weights"] == "final"
    assert "accuracy" not in pack_run(runs.store, run_id, "start").facts


USER_PROGRAM = '''
import sys
import numpy as np
import torch
from torch import nn
from supermask import load_ticket

class UserNetwork(nn.Module):
    """A network with other names and another structure."""
    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleList([nn.Linear(64, 20)])
        self.read_out = nn.Linear(20, 10)
    def forward(self, pixels):
        return self.read_out(self.trunk[0](pixels).relu())

names = {"fc1.weight": "trunk.0.weight", "fc1.bias": "trunk.0.bias",
         "fc2.weight": "read_out.weight", "fc2.bias": "read_out.bias"}
data = np.load("digits.npz")
pixels = torch.from_numpy(data["images"].reshape(len(data["images"]), 64) / np.float32(16))
for path in sys.argv[1:]:
    for matching in ({"names": names}, {"match": "order"}):
        network = load_ticket(path).apply_to(UserNetwork(), **matching)
        right = int((network(pixels).argmax(1).numpy() == data["labels"]).sum())
        print(repr(right / len(pixels)))
'''


@pytest.mark.slow
def test_foreign_module_in_another_process_has_the_stored_accuracy(runs: Runs, tmp_path: Path) -> None:
    """Tickets of several treatments, with tensors matched by name and by order."""
    tickets = [pack_run(runs.store, runs.id(treatment)) for treatment in ("rewound", "frozen", "zeros inside")]
    paths = [str(save_ticket(ticket, tmp_path / f"{index}.safetensors")) for index, ticket in enumerate(tickets)]
    images = load("digits")
    np.savez(tmp_path / "digits.npz", images=images.test_images, labels=images.test_labels)
    (tmp_path / "mine.py").write_text(USER_PROGRAM)
    command = [sys.executable, "mine.py", *paths]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    stored = [ticket.facts["accuracy"]["test"] for ticket in tickets]
    assert [float(line) for line in out.splitlines()] == [accuracy for accuracy in stored for _ in range(2)]
    assert len({*stored}) == 3 and all(0.7 < accuracy < 1 for accuracy in stored)


# --- runs that cannot be packed ---


def test_untrained_ticket_can_be_packed_after_weights_were_dropped(tmp_path: Path) -> None:
    plan = small_plan({"criterion": "large_final"}, network="fc-8")
    train_plan(plan, tmp_path, keep="masks")
    store, run_id = Store(tmp_path), list(plan.runs)[-1]
    with pytest.raises(UserError, match=r"were dropped \(--keep\).*--weights start"):
        pack_run(store, run_id)
    assert pack_run(store, run_id, "start").needs_seed


def test_final_weights_of_a_diverged_run_cannot_be_packed(tmp_path: Path) -> None:
    plan = small_plan(network="fc-8", lr=1e30)
    train_plan(plan, tmp_path)
    run_id = next(iter(plan.runs))
    with pytest.raises(UserError, match="diverged at iteration"):
        pack_run(Store(tmp_path), run_id)
    assert pack_run(Store(tmp_path), run_id, "start").facts["run"]["status"] == "diverged"


def test_run_with_a_failed_certificate_cannot_be_packed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Store.facts
    monkeypatch.setattr(Store, "facts", lambda store, run_id: facts(store, run_id) | {"status": "certificate_failed"})
    with pytest.raises(UserError, match="its certificate does not hold"):
        pack_run(runs.store, runs.id("rewound"), "start")


def test_unknown_run_and_unknown_option_are_refused(runs: Runs) -> None:
    with pytest.raises(UserError, match=r"no run in .* begins with 'zz'"):
        pack_run(runs.store, "zz")
    with pytest.raises(UserError, match="weights='finl'; did you mean 'final'"):
        pack_run(runs.store, runs.dense, "finl")  # type: ignore[arg-type]


# --- tickets without a stored run ---

MASKS = {"fc1.weight": torch.arange(512).reshape(8, 64) % 3 == 0, "fc2.weight": torch.ones(10, 8, dtype=torch.bool)}


def test_ticket_of_masks_and_a_seed(tmp_path: Path) -> None:
    ticket = Ticket(MASKS, network="fc-8", dataset="digits", seed=3)
    start = initial_state(architecture("fc-8", (1, 8, 8), 10), 3)
    again = load_ticket(save_ticket(ticket, tmp_path / "ticket"))
    assert again.initial_content == state_hash(start)
    for name, weights in again.network_weights().items():
        expected = start.weights[name] * MASKS[name] if name in MASKS else torch.zeros(weights.shape)
        assert torch.equal(weights, expected)


def test_seed_that_gives_another_network_is_refused(tmp_path: Path) -> None:
    ticket = Ticket(MASKS, network="fc-8", dataset="digits", seed=3, initial_content="0" * 64)
    again = load_ticket(save_ticket(ticket, tmp_path / "ticket"))
    with pytest.raises(UserError, match="seed 3 gives another fc-8 here"):
        again.network_weights()


def test_signed_zeros_nan_and_infinity_are_preserved(tmp_path: Path) -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    values = torch.tensor([[-0.0, float("nan"), float("-inf")], [1e-45, -0.0, float("nan")]])
    again = load_ticket(save_ticket(Ticket({"w": mask}, {"w": values}, {}, frozen={"w": values}), tmp_path / "ticket"))
    assert are_bit_identical(again.network_weights(), {"w": values})
    zeros = torch.tensor([[-0.0, 0.0, 0.0], [-0.0, 0.0, 0.0]])
    again = load_ticket(save_ticket(Ticket({"w": mask}, {"w": zeros}, {}), tmp_path / "other"))
    assert are_bit_identical(again.network_weights(), {"w": zeros * mask})


def test_values_at_pruned_weights_are_ignored_unless_frozen() -> None:
    dense, masked = torch.ones(8, 64), MASKS["fc1.weight"]
    assert torch.equal(Ticket({"w": masked}, {"w": dense}, {}).network_weights()["w"], masked.float())
    held = Ticket({"w": masked}, {"w": dense}, {}, frozen={"w": 2 * dense})
    assert torch.equal(held.network_weights()["w"], 2 - masked.float())


def test_negative_zeros_at_pruned_weights_are_stored_as_zero() -> None:
    weights = -torch.ones(8, 64)
    masked = {"w": weights * MASKS["fc1.weight"]}
    ticket = Ticket({"w": MASKS["fc1.weight"]}, masked, {}, frozen=masked)
    assert size_by_part(ticket)["weights"] == 4 + (171 + 7) // 8


def test_ticket_of_a_foreign_module_needs_no_network(tmp_path: Path) -> None:
    others = {"norm.running_mean": torch.randn(4), "norm.num_batches_tracked": torch.tensor(7)}
    mask = torch.zeros(2, 3, 3, 3, dtype=torch.bool)
    ticket = Ticket({"größe\n.weight": mask}, {"größe\n.weight": torch.zeros(2, 3, 3, 3)}, others)
    again = load_ticket(save_ticket(ticket, tmp_path / "ticket"))
    assert are_bit_identical(again.network_weights(), ticket.network_weights())
    with pytest.raises(UserError, match="names no seed, so"):
        again.initial_weights()


ONES = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"masks": {}}, "needs at least one mask"),
        ({"masks": {"w": ONES.float()}}, "not a bool tensor"),
        ({"masks": [ONES]}, "masks of a ticket are a dict of names to tensors, not list"),
        ({"masks": {"w": ONES.numpy()}}, "masks: 'w' is ndarray, not a PyTorch tensor: give torch.from_numpy"),
        ({"masks": {0: ONES}}, "masks: 0 is not the name of a tensor, a text"),
        ({"masks": {"w": None}}, "masks: 'w' is NoneType, not a PyTorch tensor"),
        ({"masks": {"w": ONES}, "weights": {"w": [[1.0]]}, "others": {}}, "weights: 'w' is list, not a PyTorch tensor"),
        ({"masks": {"w": ONES}, "others": 3}, "others of a ticket are a dict"),
        ({"masks": {"b": torch.ones(3, dtype=torch.bool)}}, "not a bool tensor of a kernel's shape"),
        ({"masks": {"w": ONES}, "weights": {"w": torch.zeros(3, 2)}, "others": {}}, r"shape \(3, 2\)"),
        ({"masks": {"w": ONES}, "weights": {"w": torch.zeros(2, 3).double()}, "others": {}}, "torch.float64"),
        ({"masks": {"w": ONES}, "weights": {"v": torch.zeros(2, 3)}, "others": {}}, "values of 'v' do not fit a mask"),
        ({"masks": {"w": ONES}, "frozen": {"v": None}}, "'v' has frozen values, but no mask"),
        ({"masks": {"w": ONES}, "frozen": {"w": ONES}}, "values of 'w' do not fit a mask"),
        (
            {"masks": {"w": ONES}, "weights": {"w": torch.zeros(2, 3)}, "others": {}, "frozen": {"w": None}},
            "without a seed",
        ),
        ({"masks": {"w": ONES}, "others": {}}, "without a seed needs weights for every mask"),
        ({"masks": {"w": ONES}, "weights": {"w": torch.zeros(2, 3)}}, "and `others`"),
        (
            {"masks": {"w": ONES}, "weights": {"w": torch.zeros(2, 3)}, "others": {"w": ONES}},
            "'w' cannot be in `others`: it is masked",
        ),
        ({"masks": MASKS, "network": "fc-8", "seed": 0}, "names both a network and the data set"),
        ({"masks": MASKS, "network": "fc-9", "dataset": "digits", "seed": 0}, r"in fc-9 on digits .* \(9, 64\)"),
        ({"masks": MASKS, "network": "fc-8", "dataset": "mnist", "seed": 0}, r"1x28x28 images, 10 classes"),
        ({"masks": MASKS, "network": "fx", "dataset": "digits", "seed": 0}, "is not a network"),
        ({"masks": MASKS, "network": "fc-8", "dataset": "digts", "seed": 0}, "did you mean 'digits'"),
        ({"masks": MASKS, "network": "fc-8", "dataset": "digits", "seed": -1}, "-1 is not a seed"),
        ({"masks": MASKS, "network": "fc-8", "dataset": "digits", "seed": True}, "is not a seed"),
        ({"masks": MASKS, "seed": 0}, "name the network and its data set"),
    ],
)
def test_inconsistent_arguments_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Ticket(**given)


def test_another_object_than_a_ticket_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dict is not a ticket: give supermask.Ticket\(masks, weights, others\)"):
        save_ticket({"w": ONES}, tmp_path / "own.safetensors")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("facts", [{"a": (1,)}, {1: "a"}, {"a": float("nan")}, {"a": {1}}])
def test_facts_that_are_not_json_are_refused(facts: dict[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        save_ticket(Ticket(MASKS, network="fc-8", dataset="digits", seed=0, facts=facts), tmp_path / "ticket")
    assert not list(tmp_path.iterdir())


def test_public_names() -> None:
    assert {"Ticket", "load_ticket", "save_ticket", "pack_run"} <= set(supermask.__all__)
