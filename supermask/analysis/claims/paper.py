"""The claims about a study: the paper's, which ship as data, and those of the study's own file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from string import ascii_lowercase

from supermask.datasets.specs import is_demonstration
from supermask.study import Study, builtin_studies, load_study
from supermask.study.claims import Claim
from supermask.study.loading import MAX_FILE_BYTES, load_claim
from supermask.study.yaml import Node, parse_yaml, to_python

FC = "fc-300-100"

PAPER_DATA = {
    FC: "mnist",
    "conv2": "cifar10",
    "conv4": "cifar10",
    "conv6": "cifar10",
    "resnet20": "cifar10",
    "resnet20-8": "cifar10",
}
"""Network of the paper -> its data. Source: Zhou et al. 2019, Table S1."""

_TITLES = {
    FC: "FC",
    "conv2": "Conv2",
    "conv4": "Conv4",
    "conv6": "Conv6",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "resnet20": "ResNet-20",
    "resnet20-8": "ResNet-20 of width 8",
}


@dataclass(frozen=True)
class ClaimTask:
    """A claim to be evaluated, on one network or on several alike ones."""

    number: int | None
    """Number of the paper's claim, 1 to 15; None for a user's own."""
    id: str
    statement: str
    source: str
    studies: tuple[str, ...]
    """Names of the studies that can decide it, the one to run first; empty if none is shipped."""
    figure: str
    claim: Claim | None
    """None if it cannot be evaluated."""
    reason_not_evaluable: str = ""
    """Reason if `claim` is None, with the command that would give the runs."""
    part: str = ""
    """Letter of this part of the number: `a`, `b`; empty if the number has one part."""
    networks: tuple[str, ...] = ()
    """Networks of the paper that the claim is about; empty for a user's own."""
    max_prune_rate: float = 1.0
    """Largest share of a hidden layer pruned per level at which the claim can be tested."""
    node: Node | None = field(default=None, repr=False, compare=False)
    """The claim in the file."""

    @property
    def study(self) -> str:
        """Name of the study to run; empty if none is shipped."""
        return next(iter(self.studies), "")

    def is_about(self, network: str, study: Study) -> bool:
        """True if the claim is about this network and data at these prune rates. A demonstration stands for FC."""
        if is_demonstration(study.dataset):
            return FC in self.networks
        if study.prune.rates.hidden > self.max_prune_rate:
            return False
        return network in self.networks and PAPER_DATA[network] == study.dataset

    def with_claim_for(self, study: Study) -> ClaimTask:
        """The task with its clauses for the treatments of a study, or with the reason why it cannot be evaluated."""
        assert self.node is not None and isinstance(self.node.value, dict)
        keys = {key: value for key, value in self.node.value.items() if key not in _TASK_KEYS}
        faults: list[str] = []
        # A user's study may have the name of a shipped one and lack treatments that the claim names.
        claim = load_claim(Node(keys, self.node.location), study.treatments, self.id, faults)
        reason = "" if claim else "this study lacks treatments of the claim: " + " ".join(faults[:1])
        return replace(self, claim=claim, reason_not_evaluable=reason)


_TASK_KEYS = ("number", "study", "on", "max_prune_rate")
"""Keys of a claim in paper.yaml that a claim of a study file does not have."""


def study_tasks(study: Study) -> list[ClaimTask]:
    """The claims of a study's own file."""
    return [ClaimTask(None, c.id, c.statement, c.source, (study.name,), c.figure, c) for c in study.claims]


@cache
def paper_tasks() -> tuple[ClaimTask, ...]:
    """The paper's claims by number: one task per claim and group of networks, without clauses (`with_claim_for`)."""
    tasks = [task for node in _paper() for task in _tasks(node)]
    parts = Counter(task.number for task in tasks)
    used: Counter[int | None] = Counter()
    lettered = []
    for task in tasks:
        letter = ascii_lowercase[used[task.number]] if parts[task.number] > 1 else ""
        used[task.number] += 1
        lettered.append(replace(task, part=letter))
    return tuple(lettered)


def studies_with_claims() -> list[str]:
    """Names of the studies that the paper's claims refer to."""
    return list(dict.fromkeys(study for task in paper_tasks() for study in task.studies))


def _tasks(node: Node) -> Iterator[ClaimTask]:
    data = to_python(node)
    number, name, statement, source = int(data["number"]), str(data["id"]), str(data["statement"]), str(data["source"])
    if "needs" in data:
        yield ClaimTask(number, name, statement, source, (), "", None, f"It needs {data['needs']}.")
        return
    named, max_rate = data["study"], float(data.get("max_prune_rate", 1.0))
    studies = (named,) if isinstance(named, str) else tuple(named)
    for networks in data["on"]:
        subject = _describe_networks(networks)
        reason = f"No run on {subject}"
        if max_rate < 1.0:
            reason += f" with at most {100 * max_rate:g}% of a hidden layer pruned per level"
        yield ClaimTask(
            number,
            # One id per group of networks: ids tell findings apart.
            name if len(data["on"]) == 1 else f"{name}-{'fc' if FC in networks else 'conv'}",
            f"{subject}: {statement}",
            source,
            studies,
            str(data["figure"]),
            None,
            f"{reason}. {_describe_command(studies[0], tuple(networks), max_rate)}",
            networks=tuple(networks),
            max_prune_rate=max_rate,
            node=node,
        )


def _describe_networks(networks: list[str]) -> str:
    """`Conv2, Conv4, Conv6 on CIFAR-10`."""
    return f"{', '.join(_TITLES[name] for name in networks)} on {_TITLES[PAPER_DATA[networks[0]]]}"


@cache
def _describe_command(study: str, networks: tuple[str, ...], max_prune_rate: float) -> str:
    """Sentence with the command that trains the runs of a study on the first of these networks that a scale has."""
    scales = next(known.scales for known in builtin_studies() if known.name == study)
    for network in networks:
        for scale in scales:
            loaded = load_study(study, [f"scale={scale}"])
            is_network = (loaded.network, loaded.dataset) == (network, PAPER_DATA[network])
            if is_network and loaded.prune.rates.hidden <= max_prune_rate:
                return (
                    f"`supermask run {study} scale={scale}`, then `supermask claims {study} scale={scale}`, decides it."
                )
    return f"No scale of {study} trains it."


@cache
def _paper() -> tuple[Node, ...]:
    path = Path(str(resources.files("supermask").joinpath("analysis", "claims", "paper.yaml")))
    text = path.read_text(encoding="utf-8")
    assert len(text) < MAX_FILE_BYTES
    claims = parse_yaml(text, path.name).value
    assert isinstance(claims, tuple)
    return claims
