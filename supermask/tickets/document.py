"""What a ticket's header says beside the list of tensors: one JSON document under a seal. Pure: text in, text out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, get_args

from supermask.study.yaml_tree import shown
from supermask.tickets import encoding
from supermask.tickets.container import Refused, Slots, canonical, is_shape, parsed

FORMAT = 1
"""Raised when files begin to be written that this release could not read right."""

INITIALISER = "truncated_normal"
"""What draws the initial weights of a seed: `supermask.initialisers.truncated_normal`."""


@dataclass(frozen=True)
class LayerEntry:
    """One maskable tensor."""

    name: str
    shape: list[int]
    kept: int
    weights: encoding.Kept
    frozen: encoding.Frozen

    @property
    def slots(self) -> Slots:
        """The arrays that it needs in the file."""
        return encoding.slots(self.name, tuple(self.shape), self.kept, self.weights, self.frozen)


@dataclass(frozen=True)
class Document:
    """All that the header says of a ticket. The fields are those of `Ticket`, where they have one name."""

    network: str | None
    dataset: str | None
    seed: int | None
    initial_content: str | None
    layers: list[LayerEntry]
    others_given: bool
    """False: they are the seed's."""
    facts: dict[str, Any]
    content: str
    """`store.entry.content_hash` of all tensors."""

    def text(self) -> str:
        """Canonical JSON, sealed. Raises ValueError or TypeError for facts that JSON does not give back as they are."""
        document = {
            "format": FORMAT,
            "network": self.network,
            "dataset": self.dataset,
            "seed": self.seed,
            "initialiser": None if self.seed is None else INITIALISER,
            "initial_content": self.initial_content,
            "layers": [asdict(layer) for layer in self.layers],
            "others": "values" if self.others_given else "from_seed",
            "facts": self.facts,
            "content": self.content,
        }
        if json.loads(canonical(document)) != document:
            raise ValueError("its facts are not plain JSON (a tuple, or a key that is not text?)")
        return canonical({**document, "seal": _seal(document)})


def opened(text: str) -> Document:
    """The document of which `text` is the text, its seal checked, every field of its kind. Raises Refused."""
    document = parsed(text)
    if not isinstance(document, dict):
        raise Refused("its facts are not an object.")
    if document.get("format") != FORMAT:
        raise Refused(
            f"it is of ticket format {shown(document.get('format'))}, and this supermask reads format {FORMAT}. "
            "Use the release of supermask that wrote it."
        )
    if document.pop("seal", None) != _seal(document):
        raise Refused("its facts are not those that were written: it is damaged. Get it again.")
    if document.keys() != _KEYS.keys() or not all(isinstance(document[key], kind) for key, kind in _KEYS.items()):
        raise Refused("its facts lack something, or are of another kind than this format's.")
    if document["initialiser"] not in (None, INITIALISER):
        raise Refused(f"its initialiser {shown(document['initialiser'])} is not known; {INITIALISER} is.")
    if len({document[key] is None for key in ("seed", "initialiser", "initial_content")}) > 1:
        raise Refused("a seed, its initialiser and the hash of its network come together.")
    if document["others"] not in ("values", "from_seed"):
        raise Refused("it does not say where its other tensors are.")
    layers = [_layer(entry) for entry in document["layers"]]
    if len({layer.name for layer in layers}) != len(layers):
        raise Refused("two of its layers have one name.")
    fields = {key: document[key] for key in ("network", "dataset", "seed", "initial_content", "facts", "content")}
    return Document(layers=layers, others_given=document["others"] == "values", **fields)


_KEYS: dict[str, Any] = {
    "format": int,
    "network": str | None,
    "dataset": str | None,
    "seed": int | None,
    "initialiser": str | None,
    "initial_content": str | None,
    "layers": list,
    "others": str,
    "facts": dict,
    "content": str,
}


def other_names(document: Document, slots: Slots) -> list[str]:
    """Names of the tensors in the file that are no layer's.

    Raises Refused if one is missing, of another size or of no use.
    """
    expected: Slots = {}
    for layer in document.layers:
        expected |= layer.slots
    if any(slots.get(name) != slot for name, slot in expected.items()):
        raise Refused("its tensors are not of the sizes that its layers need.")
    left = [name for name in slots if name not in expected]
    for name in left:
        if not (document.others_given and name.startswith("other/") and slots[name].dtype != "U8"):
            raise Refused(f"it holds a tensor that is of no use: {shown(name)}.")
    return left


def _layer(entry: object) -> LayerEntry:
    if not isinstance(entry, dict) or entry.keys() != LayerEntry.__annotations__.keys():
        raise Refused("one of its layers lacks something.")
    layer = LayerEntry(**entry)
    possible = (
        isinstance(layer.name, str)
        and is_shape(layer.shape)
        and type(layer.kept) is int
        and 0 <= layer.kept <= prod(layer.shape)
        and prod(layer.shape) > 0
        and layer.weights in get_args(encoding.Kept)
        and layer.frozen in get_args(encoding.Frozen)
    )
    if not possible:
        raise Refused("one of its layers cannot be as it says.")
    return layer


def _seal(document: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(document).encode("ascii")).hexdigest()
