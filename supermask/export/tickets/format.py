"""What a ticket's header says beside the list of tensors: one JSON document under a seal. Pure: text in, text out.

One maskable tensor as what a ticket file holds of it, and back: its mask, and how its weights are had.

Kept weights: `from_seed` (nothing is stored), `constant` (a sign bit each and one magnitude) or `values` (float32).
Pruned ones: `zero` or `from_seed` (nothing is stored), or `values`. Values are kept bit for bit, NaNs too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from supermask.core.errors import quote
from supermask.core.masks import pack, unpack
from supermask.core.types import Weights
from supermask.export.tickets.container import (
    InvalidTicket,
    TensorSpec,
    TensorSpecs,
    canonical_json,
    is_shape,
    parse_canonical_json,
)
from supermask.store.files.entry import Tensors

if TYPE_CHECKING:
    from torch import Tensor

Kept = Literal["from_seed", "constant", "values"]
Frozen = Literal["zero", "from_seed", "values"]

FrozenWeights = Mapping[str, "Tensor | None"]
"""Tensor name -> values at pruned weights; None: the initial ones of the seed."""

SIGN = np.uint32(1 << 31)


def choose_weight_encoding(name: str, mask: Tensor, weights: Weights) -> Kept:
    """How a tensor's kept weights are best stored; those that are not in `weights` are the seed's."""
    if name not in weights:
        return "from_seed"
    magnitudes = weights[name][mask].numpy().view(np.uint32) & ~SIGN
    return "constant" if magnitudes.size and bool((magnitudes == magnitudes[0]).all()) else "values"


def choose_frozen_encoding(name: str, mask: Tensor, frozen: FrozenWeights) -> Frozen:
    """How a tensor's pruned weights are best stored; those that are not in `frozen` are 0, and None is the seed's.

    Where all of them are 0, their signs are not kept: w * mask makes -0 of a negative weight, and means 0.
    """
    if name not in frozen:
        return "zero"
    values = frozen[name]
    if values is None:
        return "from_seed"
    return "values" if bool((values[~mask] != 0).any()) else "zero"


def encode_layer(name: str, mask: Tensor, weights: Weights, frozen: FrozenWeights) -> Tensors:
    """What the file holds of one tensor: `mask/`, and as needed `constant/` and `signs/`, `kept/`, `frozen/`.

    `signs/` is packed as masks are, one bit a kept weight in C order: 1 = negative.
    """
    tensors: Tensors = {f"mask/{name}": pack(mask)}
    if name in weights:
        kept = weights[name][mask].numpy()
        if choose_weight_encoding(name, mask, weights) == "constant":
            tensors[f"constant/{name}"] = np.abs(kept[:1])
            tensors[f"signs/{name}"] = np.packbits(np.signbit(kept))
        else:
            tensors[f"kept/{name}"] = kept
    pruned = frozen.get(name)
    if pruned is not None and choose_frozen_encoding(name, mask, frozen) == "values":
        tensors[f"frozen/{name}"] = pruned[~mask].numpy()
    return tensors


def layer_tensor_specs(name: str, shape: tuple[int, ...], kept: int, weights: Kept, frozen: Frozen) -> TensorSpecs:
    """Which arrays, of which sizes, `stored` gives for such a tensor: known before any of them is read."""
    size = prod(shape)
    found = {f"mask/{name}": TensorSpec("U8", (_bytes(size),))}
    if weights == "constant":
        found[f"constant/{name}"] = TensorSpec("F32", (1,))
        found[f"signs/{name}"] = TensorSpec("U8", (_bytes(kept),))
    elif weights == "values":
        found[f"kept/{name}"] = TensorSpec("F32", (kept,))
    if frozen == "values":
        found[f"frozen/{name}"] = TensorSpec("F32", (size - kept,))
    return found


def decode_mask(name: str, shape: tuple[int, ...], kept: int, tensors: Tensors) -> Tensor:
    """The mask. Raises Refused if it does not keep as many weights as promised, or has bits beyond its size."""
    import torch

    packed = tensors[f"mask/{name}"]
    if int(np.bitwise_count(packed).sum()) != kept:
        raise InvalidTicket("a mask does not keep as many weights as its header says.")
    return torch.from_numpy(_unpacked(packed, shape))


def decode_weights(name: str, mask: Tensor, tensors: Tensors) -> Tensor:
    """The kept weights in their places, 0 elsewhere, from `constant/` and `signs/` or `kept/`. Raises Refused."""
    if f"kept/{name}" in tensors:
        return _scattered(mask, tensors[f"kept/{name}"])
    constant = tensors[f"constant/{name}"]
    if np.signbit(constant).any():
        raise InvalidTicket("the constant of a layer is negative.")
    negative = _unpacked(tensors[f"signs/{name}"], (int(mask.sum()),))
    return _scattered(mask, np.where(negative, -constant, constant))


def decode_frozen(name: str, mask: Tensor, tensors: Tensors) -> Tensor:
    """The pruned weights in their places, 0 elsewhere, from `frozen/`."""
    return _scattered(~mask, tensors[f"frozen/{name}"])


def _scattered(places: Tensor, values: NDArray[np.float32]) -> Tensor:
    import torch

    tensor = torch.zeros(places.shape)
    tensor[places] = torch.from_numpy(values.copy())
    return tensor


def _unpacked(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    bits = unpack(packed, shape)
    if not np.array_equal(np.packbits(bits), packed):
        raise InvalidTicket("packed bits go on beyond the number of weights.")
    return bits


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


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
    weights: Kept
    frozen: Frozen

    @property
    def slots(self) -> TensorSpecs:
        """The arrays that it needs in the file."""
        return layer_tensor_specs(self.name, tuple(self.shape), self.kept, self.weights, self.frozen)


@dataclass(frozen=True)
class TicketHeader:
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
        if json.loads(canonical_json(document)) != document:
            raise ValueError("its facts are not plain JSON (a tuple, or a key that is not text?)")
        return canonical_json({**document, "seal": _checksum(document)})


def parse_header(text: str) -> TicketHeader:
    """The document of which `text` is the text, its seal checked, every field of its kind. Raises Refused."""
    document = parse_canonical_json(text)
    if not isinstance(document, dict):
        raise InvalidTicket("its facts are not an object.")
    if document.get("format") != FORMAT:
        raise InvalidTicket(
            f"it is of ticket format {quote(document.get('format'))}, and this supermask reads format {FORMAT}. "
            "Use the release of supermask that wrote it."
        )
    if document.pop("seal", None) != _checksum(document):
        raise InvalidTicket("its facts are not those that were written: it is damaged. Get it again.")
    if document.keys() != _KEYS.keys() or not all(isinstance(document[key], kind) for key, kind in _KEYS.items()):
        raise InvalidTicket("its facts lack something, or are of another kind than this format's.")
    if document["initialiser"] not in (None, INITIALISER):
        raise InvalidTicket(f"its initialiser {quote(document['initialiser'])} is not known; {INITIALISER} is.")
    if len({document[key] is None for key in ("seed", "initialiser", "initial_content")}) > 1:
        raise InvalidTicket("a seed, its initialiser and the hash of its network come together.")
    if document["others"] not in ("values", "from_seed"):
        raise InvalidTicket("it does not say where its other tensors are.")
    layers = [_layer(entry) for entry in document["layers"]]
    if len({layer.name for layer in layers}) != len(layers):
        raise InvalidTicket("two of its layers have one name.")
    fields = {key: document[key] for key in ("network", "dataset", "seed", "initial_content", "facts", "content")}
    return TicketHeader(layers=layers, others_given=document["others"] == "values", **fields)


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


def unmasked_names(document: TicketHeader, slots: TensorSpecs) -> list[str]:
    """Names of the tensors in the file that are no layer's.

    Raises Refused if one is missing, of another size or of no use.
    """
    expected: TensorSpecs = {}
    for layer in document.layers:
        expected |= layer.slots
    if any(slots.get(name) != slot for name, slot in expected.items()):
        raise InvalidTicket("its tensors are not of the sizes that its layers need.")
    left = [name for name in slots if name not in expected]
    for name in left:
        if not (document.others_given and name.startswith("other/") and slots[name].dtype != "U8"):
            raise InvalidTicket(f"it holds a tensor that is of no use: {quote(name)}.")
    return left


def _layer(entry: object) -> LayerEntry:
    if not isinstance(entry, dict) or entry.keys() != LayerEntry.__annotations__.keys():
        raise InvalidTicket("one of its layers lacks something.")
    layer = LayerEntry(**entry)
    possible = (
        isinstance(layer.name, str)
        and is_shape(layer.shape)
        and type(layer.kept) is int
        and 0 <= layer.kept <= prod(layer.shape)
        and prod(layer.shape) > 0
        and layer.weights in get_args(Kept)
        and layer.frozen in get_args(Frozen)
    )
    if not possible:
        raise InvalidTicket("one of its layers cannot be as it says.")
    return layer


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document).encode("ascii")).hexdigest()
