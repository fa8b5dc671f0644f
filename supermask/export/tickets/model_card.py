"""Model card and configuration of a ticket, in the Hub's conventions. Pure functions of the ticket.

Facts of a ticket may come from anyone. In the card's front matter they are JSON strings, in its text they are code
spans without backticks, so they can add neither keys nor markup.
"""

from __future__ import annotations

import json
from typing import Any

from supermask.core.errors import sanitize
from supermask.core.masks import count_kept, density
from supermask.export.tickets.checks import Check, stored_accuracy
from supermask.export.tickets.model import Ticket, get_fact

TAGS = ("supermask", "lottery-ticket", "pruning", "sparse")

HUB_DATASETS = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
"""Data set here -> its repository on the Hub. Digits come with scikit-learn and have none."""

TREATMENT_KEYS = ("criterion", "mask1", "mask0", "schedule")


def ticket_config(ticket: Ticket, sha256: str) -> dict[str, Any]:
    """Return `config.json`: plain data for programs that list repositories. Nothing is loaded from it.

    `sha256`: hash of the ticket file, in hexadecimal.
    """
    accuracy = stored_accuracy(ticket)
    return {
        "library_name": "supermask",
        "model_type": "supermask-ticket",
        "network": ticket.network,
        "dataset": ticket.dataset,
        "seed": ticket.seed,
        "weights": sum(mask.numel() for mask in ticket.masks.values()),
        "kept": sum(count_kept(ticket.masks).values()),
        "density": density(ticket.masks),
        "layers": {name: {"shape": list(mask.shape), "kept": int(mask.sum())} for name, mask in ticket.masks.items()},
        **{key: get_fact(ticket, str, "run", key) for key in TREATMENT_KEYS},
        "level": get_fact(ticket, int, "run", "level"),
        "snapshot": get_fact(ticket, str, "weights"),
        "test_accuracy": None if accuracy is None else accuracy[0],
        "certificate_held": get_fact(ticket, bool, "run", "certificate", "held"),
        "run_id": get_fact(ticket, str, "run", "id"),
        "ticket_sha256": sha256,
    }


def model_card(ticket: Ticket, ticket_checks: list[Check], config: dict[str, Any]) -> str:
    """Return `README.md`: front matter with tags and metrics, then facts, checks, and how to load the ticket."""
    return f"---\n{_front_matter(ticket)}---\n\n{_text(ticket, ticket_checks, config)}"


def card_title(ticket: Ticket) -> str:
    """Return a title such as `fc-300-100 on mnist, 3.24% of weights`."""
    subject = f"{ticket.network} on {ticket.dataset}" if ticket.network else "PyTorch module"
    plain = "".join("?" if c in "`<>[]|*#" else c for c in sanitize(subject))
    return f"{plain}, {density(ticket.masks):.2%} of weights"


def _front_matter(ticket: Ticket) -> str:
    """Return YAML lines; every value is JSON, which is valid YAML."""
    metadata: dict[str, Any] = {"library_name": "supermask", "tags": list(TAGS)}
    if ticket.network is not None:
        metadata["pipeline_tag"] = "image-classification"
    if ticket.dataset in HUB_DATASETS:
        metadata["datasets"] = [HUB_DATASETS[ticket.dataset]]
    accuracy = stored_accuracy(ticket)
    if accuracy is not None and ticket.dataset is not None:
        metadata["metrics"] = ["accuracy"]
        metadata["model-index"] = [
            {
                "name": card_title(ticket),
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {
                            "type": HUB_DATASETS.get(ticket.dataset, ticket.dataset),
                            "name": ticket.dataset,
                            "split": "test",
                        },
                        "metrics": [
                            {"type": "accuracy", "value": accuracy[0], "name": f"test accuracy, {accuracy[1][:80]}"}
                        ],
                    }
                ],
            }
        ]
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in metadata.items())


def _text(ticket: Ticket, ticket_checks: list[Check], config: dict[str, Any]) -> str:
    kept, size = config["kept"], config["weights"]
    rows = [
        ("network", config["network"] or "not one of supermask's: see its layers below"),
        ("data", config["dataset"]),
        ("kept weights", f"{kept:,} of {size:,} ({config['density']:.2%})"),
        ("seed of the initial weights", config["seed"]),
        ("test accuracy", config["test_accuracy"]),
        ("values of the kept weights", {"start": "start of training"}.get(config["snapshot"], config["snapshot"])),
    ]
    treatment = [
        *((name, config[key]) for name, key in zip(("mask criterion", "mask-1 action"), TREATMENT_KEYS, strict=False)),
        ("mask-0 action", config["mask0"]),
        ("schedule", config["schedule"]),
        ("level", config["level"]),
        ("prune rates", _format_rates(ticket)),
        ("run", config["run_id"]),
        ("made by", f"supermask {version}" if (version := get_fact(ticket, str, "supermask")) else None),
    ]
    layers = [
        (_code(name), f"{'x'.join(map(str, layer['shape']))}, {layer['kept']:,} kept")
        for name, layer in config["layers"].items()
    ]
    lines = [f"{c.status}: {c.name}{f' ({sanitize(c.why)})' if c.why else ''}" for c in ticket_checks]
    made = _table(treatment)
    sections = [
        f"# {card_title(ticket)}",
        "A lottery ticket: binary masks and the weights that they keep, in one safetensors file without executable "
        "code, written by `supermask`.",
        _table(rows),
        f"## How it was made\n\n{made}" if made else "",
        f"## Layers\n\n{_table(layers)}",
        "## Checks\n\nFrom the file alone, when this card was written. They detect damage, not forgery.\n\n"
        + "\n".join(f"* {_code(line)}" for line in lines),
        _loading(ticket),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _loading(ticket: Ticket) -> str:
    match = 'match="order"' if ticket.network is None else ""
    evaluate = (
        ""
        if ticket.network is None
        else "\n`supermask eval .` measures its test accuracy again, `supermask inspect .` repeats the checks.\n"
    )
    return (
        "## How to load it\n\n"
        "```python\n"
        "from supermask import hold, load_ticket\n\n"
        'ticket = load_ticket("OWNER/NAME")  # this repository, or the folder with these files\n'
        f"network = ticket.apply_to(network{', ' if match else ''}{match})  # any module with layers of these shapes\n"
        "with hold(network, ticket.masks):  # pruned weights stay as they are under any optimizer\n"
        "    ...  # train\n"
        "```\n\n"
        "`load_ticket` takes a repository with `pip install 'supermask[hub]'`; a folder needs no extra. "
        "`names={ticket's: module's}` and `match=\"order\"` say which tensor goes where if the names differ.\n"
        f"{evaluate}"
    ).rstrip()


def _format_rates(ticket: Ticket) -> str | None:
    rates = get_fact(ticket, dict, "run", "prune_rates")
    return ", ".join(f"{kind} {rate}" for kind, rate in rates.items()) if rates else None


def _table(rows: list[tuple[str, Any]]) -> str:
    """Return a Markdown table without the rows that have no value; empty if none is left. Names are Markdown."""
    known = [(name, value) for name, value in rows if value is not None]
    lines = [f"| {name} | {_code(value)} |" for name, value in known]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def _code(value: object) -> str:
    """Return text as a code span of at most 300 printable characters, which no content can leave."""
    text = "".join(c if c.isprintable() and c not in "`|" else "?" for c in str(value)[:300])
    return f"`{text or ' '}`"
