"""Networks named by import path: their names, their identity, and where their code is imported."""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import supermask_each
from helpers.small_studies import train_plan
from helpers.trainings import data
from torch import nn

from supermask.core.errors import UserError
from supermask.core.initializers import INITIALIZERS
from supermask.core.learned_masks import initial_mask_state
from supermask.core.rng import child_streams
from supermask.engines import reference, reference_masks
from supermask.engines.job import TrainingJob
from supermask.execution.run import RunOptions, run_plans
from supermask.export.tickets.checks import check_ticket
from supermask.export.tickets.packing import pack_run
from supermask.networks.network import UnmaskedTensor
from supermask.networks.registry import canonical_name
from supermask.store import Store
from supermask.store.planning import plan_study
from supermask.store.rows import plan_rows
from supermask.store.verify import verify_store
from supermask.study import study_from_dict
from supermask.study.networks import canonical_network, examine_network, run_network, split_user_network
from supermask.study.plan import Plan, make_plan
from supermask.study.plan_inputs import PlanInputs
from supermask.study.run import Run
from supermask.study.source_files import UserModuleNotFound
from supermask.study.user_data import read_user_data

NETS = '''
"""Networks of a user."""
import torch
from torch import nn

import layers


class Net(nn.Module):
    """A residual network whose last two blocks are one."""

    def __init__(self, image_shape, classes, width=3):
        super().__init__()
        shared = layers.Block(width)
        self.stem = nn.Conv2d(image_shape[0], width, 3, padding=1)
        self.blocks = nn.Sequential(layers.Block(width), shared, shared)
        self.drop = nn.Dropout(0.1)
        self.head = nn.LazyLinear(classes)

    def forward(self, images):
        return self.head(self.drop(self.blocks(self.stem(images)).mean((2, 3))))


def make(image_shape, classes):
    return Net(image_shape, classes)


def narrow(shape, n):
    return Net(shape, n, 2)
'''

LAYERS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with two modules of the user, which no other test has imported."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "layers.py").write_text(LAYERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("nets", "layers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    run_network.__globals__["_import_network"].cache_clear()
    monkeypatch.setattr("supermask.study.user_code._imported_hashes", {})
    return tmp_path


def study(network: Any = "nets:Net", **keys: Any) -> Any:
    data: dict[str, Any] = {
        "network": network,
        "seeds": 1,
        "train": {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "epochs": 0.6, "evaluate_every": 4},
        "prune": {"levels": 2, "rates": {"conv": 0.4, "output": 0.2, "global": 0.3}},
        "treatments": [{"name": "base"}, {"name": "late", "rewind_to": 5, "scope": "global"}],
    }
    return study_from_dict(data | keys)


def examined(**keys: Any) -> Plan:
    plan = make_plan(study(**keys))
    facts = {plan.study.network: examine_network(plan.network, (1, 8, 8), 10)}
    return make_plan(plan.study, PlanInputs(network_facts=facts))


# --- names ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("nets:Net", "nets:Net"),
        ("nets.make", "nets:make"),
        ({"make": "nets:Net"}, "nets:Net"),
        ({"width": 5, "make": "nets:Net"}, 'nets:Net {"width":5}'),
        ('nets:Net {"width": 5, "p": 0.1}', 'nets:Net {"p":0.1,"width":5}'),
        ("not_there:Net", "not_there:Net"),
        ("fc", "fc-300-100"),
    ],
)
def test_canonical_texts(folder: Path, value: Any, expected: str) -> None:
    assert canonical_network(value) == expected
    assert canonical_network(expected) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nets:Nett", "has no function 'Nett'; did you mean 'Net'?"),
        ({"width": 5}, "needs make: module:function, and this one has only width; give the function"),
        ({"make": "resnet20"}, "needs make: module:function, and this one has make: 'resnet20'"),
        ("resnet21-4", "'resnet21-4' is not a network; did you mean 'resnet20-4'?"),
        ("resnet35", "did you mean 'resnet32'?"),
        ("resnet19", "did you mean 'resnet18'?"),
        ("resnet20-0", "did you mean 'resnet20'?"),
        ("vgg12", "did you mean 'vgg11'?"),
        ("conv5", "did you mean 'conv4'?"),
        ({"make": "nets:Net", "width": {"a": 1}}, "width is dict; allowed are"),
        ({"make": "nets:Net", "a-b": 1}, "'a-b' is not a keyword argument"),
        ({"make": "nets:Net", "p": float("nan")}, "p is nan; allowed are finite numbers"),
        ("nets:Net {5}", "are not keyword arguments as JSON"),
        ("os:getcwd", "standard library"),
        (3, "3 is not a network"),
    ],
)
def test_refused_names(folder: Path, value: Any, message: str) -> None:
    with pytest.raises(UserError) as refused:
        study(value)
    assert message in str(refused.value)


def test_a_study_survives_its_plain_data(folder: Path) -> None:
    original = study({"make": "nets:Net", "width": 2}, initializer="kaiming_normal")
    assert study_from_dict(original.as_data(), name=original.name) == original


def test_functions_classes_and_partials_in_python(folder: Path) -> None:
    import nets  # type: ignore[import-not-found]

    assert study(nets.Net).network == "nets:Net"
    assert study(functools.partial(nets.Net, width=2)).network == 'nets:Net {"width":2}'
    assert split_user_network('nets:Net {"width":2}') == ("nets:Net", {"width": 2})
    with pytest.raises(UserError, match="cannot be imported by worker processes"):
        study(lambda image_shape, classes: nets.Net(image_shape, classes))
    with pytest.raises(UserError, match="keyword arguments, not positional"):
        study(functools.partial(nets.Net, (1, 8, 8)))


# --- identity ---


def test_the_id_contains_the_arguments_the_source_and_the_initializer(folder: Path) -> None:
    def dense_id(*args: Any, **keys: Any) -> str:
        return next(iter(make_plan(study(*args, **keys)).runs))

    first = dense_id()
    assert dense_id() == dense_id(initializer="own") == first
    others = [dense_id({"make": "nets:Net", "width": 4}), dense_id(initializer="glorot_normal"), dense_id("nets:make")]
    (folder / "layers.py").write_text(LAYERS + "\n# changed\n")
    others.append(dense_id())
    assert len({first, *others}) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fc", "fc-20", "conv2", "conv8"])
def test_networks_that_are_no_modules_have_no_weights_of_their_own(name: str) -> None:
    """`own` is refused before training, with the allowed initializers."""
    allowed = f"Allowed: {', '.join(INITIALIZERS)}."
    reason = f"initializer: own is for modules that draw their own weights, .*; {canonical_name(name)} has none. "
    data: dict[str, Any] = {"network": name, "dataset": "cifar10"}
    with pytest.raises(UserError, match=f"^study 'study': {reason}{allowed}"):
        make_plan(study_from_dict({**data, "initializer": "own", "treatments": [{}]}))
    with pytest.raises(UserError, match=f"^study 'study': treatment 'a': {reason}{allowed}"):
        make_plan(study_from_dict({**data, "treatments": [{}, {"name": "a", "initializer": "own"}]}))
    for module in ("resnet20-2", "vgg11"):
        make_plan(study_from_dict({**data, "treatments": [{"network": module, "initializer": "own"}]}))


def test_each_network_of_a_treatment_has_a_dense_network_of_its_own() -> None:
    treatments = [{"network": ["resnet20-2", "fc-20"], "levels": 2}, {"name": "same", "levels": 1}]
    plan = make_plan(study("fc-20", treatments=treatments, reference={"name": "same"}))
    first = {role.treatment: plan.runs[role.run_id] for role in plan.treatment_runs if role.level == 0}
    assert list(first) == ["network=resnet20-2 + levels=2", "network=fc-20 + levels=2", "same"]
    residual, named, same = first.values()
    assert residual.network == "resnet20-2" and named is same and same.network == "fc-20"
    assert {run.id for run in plan.runs.values() if run.network == "fc-20"} == make_plan(study("fc-20")).runs.keys() - {
        run.id for run in make_plan(study("fc-20")).runs.values() if run.step and run.step.scope == "global"
    }
    assert make_plan(study_from_dict(plan.study.as_data())).runs.keys() == plan.runs.keys()


def test_treatments_name_networks_by_import_path_with_the_study_s_ids(folder: Path) -> None:
    treatments = [
        {"network": {"make": "nets:Net", "width": [2, 4]}},
        {"network": "nets:narrow"},
        {"name": "same", "network": {"make": "nets:Net"}},
    ]
    reference = {"network": {"make": "nets:Net", "width": 4}}
    made = study("fc-8", treatments=treatments, reference=reference)
    labels = [treatment.label for treatment in made.treatments]
    assert labels == ["network=nets:Net(width=2)", "network=nets:Net(width=4)", "network=nets:narrow", "same"]
    assert made.reference == labels[1] and study_from_dict(made.as_data()) == made
    assert made.user_networks == ('nets:Net {"width":2}', 'nets:Net {"width":4}', "nets:narrow", "nets:Net")
    plan = make_plan(made)
    for network in (made.user_networks[1], "nets:Net"):
        alone = make_plan(study(network, treatments=[{}])).runs.keys()
        assert alone == {run.id for run in plan.runs.values() if run.network == network}
    assert set(plan.inputs.network_sources) == set(made.user_networks)


@pytest.mark.slow
def test_networks_of_treatments_are_examined_trained_and_read_without_their_code(folder: Path) -> None:
    made = study("fc-8", treatments=[{"network": ["nets:make", "nets:narrow"]}], prune={"levels": 1})
    run_plans([plan_study(made, Store(folder / "store"))], RunOptions(folder / "store", 1))
    (folder / "nets.py").unlink()
    sys.modules.pop("nets", None)
    read = plan_study(made, Store(folder / "store"))
    assert len(read.notices) == 2
    rows = plan_rows(read, Store(folder / "store"))[0]
    assert {row["status"] for row in rows} == {"finished"} and len({row["weights"] for row in rows}) == 2
    assert PlanInputs.from_data(read.inputs.to_data()) == read.inputs


def test_facts_are_not_part_of_the_id(folder: Path) -> None:
    assert list(examined().runs) == list(make_plan(study()).runs)


def test_initializers_of_named_networks_are_part_of_the_id() -> None:
    def dense(**keys: Any) -> Run:
        return next(iter(make_plan(study("resnet20-2", **keys)).runs.values()))

    assert dense().to_data().keys() == dense(initializer="glorot_normal").to_data().keys()
    assert dense().id == dense(initializer="glorot_normal").id
    assert dense(initializer="own").id != dense(initializer="kaiming_normal").id != dense().id
    assert Run.from_data(dense(initializer="own").to_data()).id == dense(initializer="own").id


# --- running and reading ---


@pytest.mark.slow
def test_a_network_of_the_user_from_plan_to_ticket(folder: Path) -> None:
    plan = examined(treatments=[{"name": "base"}, {"name": "late", "rewind_to": 5}, {"name": "new", "mask1": "reinit"}])
    assert dict(plan.network.facts.aliases)["blocks.2.conv.weight"] == "blocks.1.conv.weight"  # type: ignore[union-attr]
    assert list(plan.network.tensors) == ["stem.weight", "blocks.0.conv.weight", "blocks.1.conv.weight", "head.weight"]
    store = Store(folder / "store")
    train_plan(plan, folder / "store")
    assert {row["status"] for row in plan_rows(plan, store)[0]} == {"finished"}

    # From here on the user's code is gone: everything is read from the store.
    (folder / "nets.py").unlink()
    (folder / "layers.py").unlink()
    for name in ("nets", "layers"):
        sys.modules.pop(name, None)
    read = plan_study(study(treatments=plan.study.as_data()["treatments"]), store)
    assert "Shown as the runs in the store were made" in read.notices[0]
    rows = plan_rows(read, store)[0]
    assert {row["status"] for row in rows} == {"finished"}
    assert {row["weights"] for row in rows} == {plan.network.size}
    results = list(verify_store(store))
    # The weights that level 1 drew anew come from the module's constructors.
    needing_code = {r.key for r in results if r.verdict == "partly"}
    assert needing_code == {run.id for run in plan.runs.values() if run.step and run.step.mask1 == "reinit"}
    assert {r.verdict for r in results} == {"held", "partly"}
    late = next(run for run in plan.runs.values() if run.step is not None and run.step.rewind_to == 5)
    ticket = pack_run(store, late.id)
    assert not [check for check in check_ticket(ticket) if check.status == "BROKEN"]
    forged_kept = replace(ticket, facts={**ticket.facts, "run": {**ticket.facts["run"], "kept": {}}})
    assert [check.why for check in check_ticket(forged_kept) if check.status == "BROKEN"] == ["'kept'"]
    forged_network = replace(ticket, facts={**ticket.facts, "run": {**ticket.facts["run"], "network": "fc"}})
    broken = [check.why for check in check_ticket(forged_network) if check.status == "BROKEN"]
    assert broken == ["'network', 'dataset', 'seed'"]
    sys.modules.pop("nets", None)
    assert "nets" not in sys.modules

    (folder / "nets.py").write_text(NETS)
    (folder / "layers.py").write_text(LAYERS)
    import nets

    module = nets.Net((1, 8, 8), 10)
    module(torch.zeros(2, 1, 8, 8))
    ticket.apply_to(module)
    for name, mask in ticket.masks.items():
        assert not module.get_parameter(name)[~mask].any()
    assert module.blocks[1].conv.weight is module.blocks[2].conv.weight


@pytest.mark.slow
def test_plans_and_tables_import_nothing(folder: Path) -> None:
    (folder / "study.yaml").write_text("network: nets:Net\ntreatments:\n- {criterion: large_final}\n")
    (folder / "nets.py").write_text(NETS + "\nraise RuntimeError('this code was run')\n")
    options = ("study.yaml", "--store", "store")
    for ended in supermask_each(
        ("plan", *options), ("plan", "--estimate", "--gpus", "2", *options), ("table", *options)
    ):
        assert "this code was run" not in ended.out + ended.err
        assert ended.status == 0, ended.err


def test_two_positional_arguments_of_any_name(folder: Path) -> None:
    assert next(iter(examined(network="nets:narrow").network.tensors.values())).shape == (2, 1, 3, 3)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            {"make": "nets:Net", "widht": 4},
            "keyword argument 'widht'; did you mean 'width'? Its parameters: image_shape,",
        ),
        ({"make": "nets:narrow", "shape": [1, 8, 8]}, "missing a required argument: 'n'. Its parameters: shape, n. "),
    ],
)
def test_arguments_that_a_network_does_not_take_are_refused(
    folder: Path, network: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        examined(network=network)
    assert message in str(error.value)


def test_a_changed_file_is_refused_while_a_plan_runs(folder: Path) -> None:
    plan = examined()
    run_network.__globals__["_import_network"].cache_clear()
    (folder / "layers.py").write_text(LAYERS + "\n# changed\n")
    with pytest.raises(UserError, match="changed"):
        plan.network.initial_state(0)


PATHS = """
import os, sys

def extend():
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
"""
HELPERS = {
    "import": f"{PATHS}\nextend()\nfrom helper_d import make\n",
    "call": f"{PATHS}\ndef make(image_shape, classes):\n    extend()\n    import helper_d\n",
}


@pytest.mark.parametrize("when", HELPERS)
def test_a_helper_that_is_not_in_the_identity_is_refused(folder: Path, when: str) -> None:
    (folder / "lib").mkdir()
    (folder / "lib" / "helper_d.py").write_text("def make(image_shape, classes): ...\ndef load(): ...\n")
    (folder / "helped.py").write_text(HELPERS[when] + "\ndef load():\n    extend()\n    import helper_d\n")
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"'helped:make' imports the module 'helper_d' from .*put it beside helped.py"
        ):
            examined(network="helped:make")
        with pytest.raises(
            UserError, match=r"'helped:load' imports the module 'helper_d' from .*put it beside helped.py"
        ):
            read_user_data("helped:load")


@pytest.mark.parametrize("line", ["torch.manual_seed(42)", "first = nn.Linear(3, 3)"])
def test_draws_and_seeds_of_an_import_change_no_initialization(folder: Path, line: str) -> None:
    (folder / "drawing.py").write_text(NETS.replace("import layers", f"import layers\n\n{line}"))
    plain, drawing = examined(), examined(network="drawing:Net")
    run_network.__globals__["_import_network"].cache_clear()
    states = [plan.network.initial_state(seed) for plan in (plain, drawing) for seed in (0, 1)]
    del sys.modules["drawing"]
    assert all(torch.equal(states[0].weights[n], w) for n, w in states[2].weights.items())
    assert all(torch.equal(states[1].weights[n], w) for n, w in states[3].weights.items())
    assert not torch.equal(states[0].weights["stem.weight"], states[1].weights["stem.weight"])


BRANCHES = """
import random
from torch import nn


class Net(nn.Module):
    def __init__(self, image_shape, classes):
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, classes)

    def forward(self, images):
        x = self.stem(images.flatten(1)).relu()
        if not self.training or random.random() < 0.5:
            x = x + self.branch(x)
        return self.head(x)
"""


def test_runs_with_facts_of_earlier_versions_are_verified_and_extended(folder: Path) -> None:
    (folder / "nets.py").write_text(BRANCHES)
    plan = make_plan(study(treatments=[{"name": "base"}]))
    facts = examine_network(plan.network, (1, 8, 8), 10)
    assert [t.name for t in facts.tensors] == ["stem.weight", "branch.weight", "head.weight"]
    # An earlier version took a layer that its one pass had skipped for untrained.
    branch = [
        UnmaskedTensor("branch.weight", (8, 8), "float32", False),
        UnmaskedTensor("branch.bias", (8,), "float32", False),
    ]
    unmasked = (*(t for t in facts.unmasked if not t.name.startswith("branch")), *branch)
    tensors = tuple(t for t in facts.tensors if t.name != "branch.weight")
    earlier = replace(facts, tensors=tensors, unmasked=unmasked)
    store = Store(folder / "store")
    for levels in (1, 2):
        made = study(treatments=[{"name": "base"}], prune={"levels": levels, "rates": {"hidden": 0.4}})
        train_plan(make_plan(made, PlanInputs(network_facts={plan.study.network: earlier})), folder / "store")
        assert {row["status"] for row in plan_rows(plan_study(made, store), store)[0]} == {"finished"}
    results = list(verify_store(store))
    assert len(results) == 3 and {result.verdict for result in results} == {"held"}


FAILING = """
import torch
from torch import nn


class Net(nn.Linear):
    def __init__(self, image_shape, classes, fails_in_training=True):
        super().__init__(64, classes)
        self.fails_in_training = fails_in_training

    def forward(self, images):
        if self.training == self.fails_in_training and len(images) > 4:
            raise KeyError("seen in training only")
        return super().forward(images.flatten(1))
"""


@pytest.mark.parametrize("learns_mask", [False, True])
@pytest.mark.parametrize("fails_in_training", [False, True])
def test_an_error_of_the_module_in_training_names_its_line(
    folder: Path, learns_mask: bool, fails_in_training: bool
) -> None:
    (folder / "nets.py").write_text(FAILING)
    treatment: dict[str, Any] = {"supermask": {}} if learns_mask else {"name": "base"}
    network = {"make": "nets:Net", "fails_in_training": fails_in_training}
    plan = examined(network=network, treatments=[treatment])
    run = next(run for run in plan.runs.values() if (run.learning is not None) == learns_mask)
    mode = "training" if fails_in_training else "evaluation"
    expected = rf"network 'nets:Net .*: its forward pass of \d+ images of shape .* in {mode} mode failed at line 13 of "
    engine = reference_masks.train if learns_mask else reference.train
    start = plan.network.initial_state(0)
    if run.learning is not None:
        start = initial_mask_state(run.learning, plan.network.tensors, start, 0, None, None, child_streams(0))
    job = TrainingJob(plan.network, start, run.recipe, 0, learning=run.learning)
    with pytest.raises(UserError, match=expected + ".*nets.py: KeyError: 'seen in training only'"):
        engine([job], [data((1, 8, 8), 10)])
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


NORMALIZED = """
from torch import nn


class Net(nn.Module):
    def __init__(self, image_shape, classes):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, classes)

    def forward(self, images):
        if self.training and len(images) > 4:
            raise KeyError("seen in training only")
        return self.head(self.norm(self.body(images.flatten(1))))
"""


def test_an_error_while_statistics_are_estimated_names_the_mode_of_the_module(folder: Path) -> None:
    (folder / "nets.py").write_text(NORMALIZED)
    plan = examined(treatments=[{"name": "base", "trained": False, "mask1": "constant"}])
    run = next(run for run in plan.runs.values() if not run.is_trained)
    job = TrainingJob(plan.network, plan.network.initial_state(0), run.recipe, 0)
    with pytest.raises(UserError, match=r"its forward pass of \d+ images .* in training mode failed at line 12 of "):
        reference.train([job], [data((1, 8, 8), 10)])


@pytest.mark.parametrize("packages", ["site-packages", "dist-packages"])
def test_an_error_in_an_installed_package_names_the_user_s_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, packages: str
) -> None:
    (folder / packages).mkdir()
    (folder / packages / "installed_layers.py").write_text("def flatten(x):\n    raise KeyError('inside')\n")
    monkeypatch.syspath_prepend(str(folder / packages))
    (folder / "nets.py").write_text(FAILS_IN_PACKAGE)
    with pytest.raises(UserError, match=r"failed at line 8 of .*nets\.py: KeyError: 'inside'"):
        examined(network="nets:Net")
    del sys.modules["installed_layers"]


FAILS_IN_PACKAGE = """
import installed_layers
from torch import nn


class Net(nn.Linear):
    def __init__(self, image_shape, classes): super().__init__(64, classes)
    def forward(self, images): return super().forward(installed_layers.flatten(images))
"""


def test_missing_code_is_named(folder: Path) -> None:
    (folder / "nets.py").unlink()
    with pytest.raises(UserModuleNotFound, match=r"network 'nets:Net': there is no module 'nets'.*Put nets.py there"):
        make_plan(study())
    with pytest.raises(UserModuleNotFound, match="there is no module 'nets'"):
        plan_study(study(), Store(folder / "store"))


def test_run_refuses_a_bad_network_before_training(folder: Path) -> None:
    (folder / "bad.py").write_text("from torch import nn\ndef make(image_shape, classes):\n    return nn.Flatten()\n")
    plan = plan_study(study("bad:make"), Store(folder / "store"))
    assert "`supermask run` examines it first" in plan.notices[0]
    with pytest.raises(UserError, match="no parameter that can be trained"):
        run_plans([plan], RunOptions(folder / "store", 1))
    assert not (folder / "store").exists()


def test_a_module_of_an_installed_package() -> None:
    name = canonical_network({"make": "torch.nn:Sequential"})
    assert name == "torch.nn:Sequential"
    assert nn.Sequential is not None
