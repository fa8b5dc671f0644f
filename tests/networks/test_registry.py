"""Networks by name: parameter counts against the published ones, names, shapes and initial states."""

from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest
import torch

from supermask.core.errors import UserError
from supermask.core.initializers import INITIALIZERS
from supermask.networks.examination import shipped_module_facts
from supermask.networks.network import Network, NetworkFacts, state_tensors
from supermask.networks.registry import NETWORK_NAMES, canonical_name, is_layer_chain, named_network

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)

PARAMETERS = {
    # He et al. 2015, Table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 million; exact counts of identity shortcuts.
    "resnet20": (CIFAR, 10, 269_722),
    "resnet32": (CIFAR, 10, 464_154),
    "resnet44": (CIFAR, 10, 658_586),
    "resnet56": (CIFAR, 10, 853_018),
    "resnet110": (CIFAR, 10, 1_727_962),
    # Zagoruyko & Komodakis 2016, Table 4: 36.5, 11.0 and 8.9 million.
    "wrn-28-10": (CIFAR, 10, 36_479_194),
    "wrn-16-8": (CIFAR, 10, 10_961_370),
    "wrn-40-4": (CIFAR, 10, 8_949_210),
    # The usual CIFAR form (9.2, 9.4, 14.7 and 20.0 million), without the biases of the convolutions.
    "vgg11": (CIFAR, 10, 9_231_114 - 2_752),
    "vgg13": (CIFAR, 10, 9_416_010 - 2_944),
    "vgg16": (CIFAR, 10, 14_728_266 - 4_224),
    "vgg19": (CIFAR, 10, 20_040_522 - 5_504),
    # He et al. 2015, Table 1, and PyTorch's model zoo.
    "resnet18": (IMAGENET, 1000, 11_689_512),
    "resnet50": (IMAGENET, 1000, 25_557_032),
    # Ramanujan et al. 2020: eight convolutions, then 256-256-10 fully connected.
    "conv8": (CIFAR, 10, 5_278_282),
}


def trained_parameters(network: Network) -> int:
    assert network.facts is not None
    return network.size + sum(prod(t.shape) for t in network.facts.unmasked if t.trained)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    shape, classes, count = PARAMETERS[name]
    assert trained_parameters(named_network(name, shape, classes)) == count


def test_the_multiplications_of_published_networks() -> None:
    # He et al. 2015: 3.8e9 for ResNet-50 (4.09e9 with the stride in the 3x3 convolution), 40.6e6 for ResNet-20.
    assert named_network("resnet50", IMAGENET, 1000).multiplications == 4_089_184_256
    assert named_network("resnet20", CIFAR, 10).multiplications == 40_551_040
    assert named_network("wrn-28-10", CIFAR, 10).multiplications == 5_243_328_768


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20-4", "resnet32-2", "vgg11", "wrn-10-1", "resnet18"])
def test_the_module_gives_logits_and_has_the_tensors_of_its_facts(name: str) -> None:
    network = named_network(name, (1, 8, 8), 7)
    module = network.build()
    assert module(torch.rand(3, 1, 8, 8)).shape == (3, 7)
    assert network.facts is not None
    expected = {n: t.shape for n, t in network.tensors.items()} | {t.name: t.shape for t in network.facts.unmasked}
    assert {n: tuple(t.shape) for n, t in module.state_dict().items()} == expected
    assert [t.name for t in network.tensors.values() if t.kind == "output"] == ["fc.weight"]
    assert [n for n, t in network.tensors.items() if t.kind == "hidden"] == []
    convolutions = {n for n, m in module.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert set(network.tensors) == {f"{n}.weight" for n in convolutions} | {"fc.weight"}


def test_the_first_stage_may_have_another_width() -> None:
    assert named_network("resnet20-16", CIFAR, 10).name == "resnet20"
    widths = [named_network(f"resnet20-{w}", CIFAR, 10).tensors["conv.weight"].shape[0] for w in (4, 8, 64)]
    assert widths == [4, 8, 64]


def test_every_listed_name_is_a_network() -> None:
    assert {name for name in NETWORK_NAMES if canonical_name(name) != name} == {"fc"}


@pytest.mark.parametrize(
    "name", ["resnet21", "resnet20-0", "resnet18-8", "vgg12", "wrn-28", "wrn-27-10", "wrn-4-2", ""]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"resnet|wide residual"):
        canonical_name(name)


def test_the_initial_state_of_a_residual_network() -> None:
    network = named_network("resnet20-4", (1, 8, 8), 10)
    first, again, other = (network.initial_state(seed) for seed in (0, 0, 1))
    module = network.build()
    assert {**first.weights, **first.unmasked}.keys() == module.state_dict().keys()
    assert first.weights.keys() == first.masks.keys() == network.tensors.keys()
    for name, weight in first.weights.items():
        assert torch.equal(weight, again.weights[name])
        assert not torch.equal(weight, other.weights[name])
    for name, tensor in first.unmasked.items():
        expected = 1 if name.endswith(("running_var", "bn.weight", "bn1.weight", "bn2.weight")) else 0
        assert (tensor == expected).all(), name
        assert torch.equal(tensor, other.unmasked[name])
    largest = first.weights["stage3.2.conv2.weight"]
    assert abs(largest.std() / network.tensors["stage3.2.conv2.weight"].std - 1) < 0.05


def test_building_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state()
    named_network("resnet20-4", (1, 8, 8), 10).initial_state(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("initializer", [*INITIALIZERS, "own"])
def test_every_initializer_has_the_deviation_that_it_states(initializer: str) -> None:
    network = named_network("resnet20-8", (3, 8, 8), 10, initializer)
    weights = network.initial_state(0).weights
    for name, tensor in network.tensors.items():
        assert tuple(weights[name].shape) == tensor.shape
        if tensor.size > 4000:
            rms = float(weights[name].double().square().mean().sqrt())
            assert abs(rms / tensor.std - 1) < 0.05, name


def test_own_gives_the_values_of_the_constructors() -> None:
    network = named_network("resnet20-2", (1, 8, 8), 10, "own")
    start = network.initial_state(3)
    bound = (1 / network.tensors["stage1.0.conv1.weight"].fans[0]) ** 0.5
    assert float(start.weights["stage1.0.conv1.weight"].abs().max()) <= bound
    assert start.weights.keys() | start.unmasked.keys() == state_tensors(network.build()).keys()


def test_facts_survive_json() -> None:
    facts = named_network("resnet20-2", (1, 8, 8), 10).facts
    assert facts is not None
    again = NetworkFacts.from_data(facts.to_data())
    assert again.to_data() == facts.to_data()
    assert [(t.name, t.shape, t.kind, t.fans) for t in again.tensors] == [
        (t.name, t.shape, t.kind, t.fans) for t in facts.tensors
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet20-4", "resnet32-3"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 31, 17)])
def test_facts_without_torch_are_those_of_the_module(name: str, shape: tuple[int, int, int]) -> None:
    network = named_network(name, shape, 7)
    assert network.make is not None
    assert network.facts == shipped_module_facts(network.make, shape, 7, name)


def test_planning_a_residual_network_needs_no_torch() -> None:
    code = "import sys; from supermask.networks.registry import named_network as n; "
    code += "print(n('resnet20-4', (1, 8, 8), 10).size, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["16900", "False"]


@pytest.mark.parametrize("name", [*NETWORK_NAMES, "resnet20-4", "wrn-10-1", "fc-8-4", "conv2"])
def test_residual_networks_are_no_chains_of_layers(name: str) -> None:
    assert is_layer_chain(name) == (not name.startswith(("resnet", "wrn")))


@pytest.mark.parametrize("name", [None, "", "module:network", "module:network(width=8)", "my-net", "resnet21"])
def test_unknown_networks_are_no_chains_of_layers(name: str | None) -> None:
    assert not is_layer_chain(name)
