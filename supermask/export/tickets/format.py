"""Ticket format: the JSON header with its checksum, and the encoding of one prunable tensor. Pure functions.

Kept weights are encoded as `from_seed` (not stored), `constant` (one sign bit per weight, one magnitude) or `values`
(float32). Pruned weights are encoded as `zero` or `from_seed` (not stored), or `values`. Values, including NaN, are
bit-identical after reading.
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

KeptEncoding = Literal["from_seed", "constant", "values"]
FrozenEncoding = Literal["zero", "from_seed", "values"]

FrozenWeights = Mapping[str, "Tensor | None"]
"""Tensor name -> values of the pruned weights; None means the initial values of the seed."""

FORMAT = 1
"""Format version. It is raised when this release could no longer read new files correctly."""

INITIALIZER = "truncated_normal"
"""Value of the header's `initialiser` in every ticket with a seed. The initializer that is used is the run's fact
`initializer`, by default that of the network."""

SIGN_BIT = np.uint32(1 << 31)


def choose_weight_encoding(name: str, mask: Tensor, weights: Weights) -> KeptEncoding:
    """Return the smallest encoding of a tensor's kept weights; a tensor missing in `weights` comes from the seed."""
    if name not in weights:
        return "from_seed"
    magnitudes = weights[name][mask].numpy().view(np.uint32) & ~SIGN_BIT
    return "constant" if magnitudes.size and bool((magnitudes == magnitudes[0]).all()) else "values"


def choose_frozen_encoding(name: str, mask: Tensor, frozen: FrozenWeights) -> FrozenEncoding:
    """Return the smallest encoding of a tensor's pruned weights; missing in `frozen` means 0, None means the seed.

    If all are 0, their signs are dropped: w * mask turns a negative weight into -0.0, and 0 is meant.
    """
    if name not in frozen:
        return "zero"
    values = frozen[name]
    if values is None:
        return "from_seed"
    return "values" if bool((values[~mask] != 0).any()) else "zero"


def encode_layer(name: str, mask: Tensor, weights: Weights, frozen: FrozenWeights) -> Tensors:
    """Encode one tensor: `mask/`, and as needed `constant/` and `signs/`, `kept/`, `frozen/`.

    `signs/` is packed like a mask, with one bit per kept weight in C order: 1 = negative.
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


def layer_tensor_specs(
    name: str, shape: tuple[int, ...], kept: int, weights: KeptEncoding, frozen: FrozenEncoding
) -> TensorSpecs:
    """Return types and shapes of the arrays that `encode_layer` writes, computed before any of them is read."""
    size = prod(shape)
    specs = {f"mask/{name}": TensorSpec("U8", (_num_bytes(size),))}
    if weights == "constant":
        specs[f"constant/{name}"] = TensorSpec("F32", (1,))
        specs[f"signs/{name}"] = TensorSpec("U8", (_num_bytes(kept),))
    elif weights == "values":
        specs[f"kept/{name}"] = TensorSpec("F32", (kept,))
    if frozen == "values":
        specs[f"frozen/{name}"] = TensorSpec("F32", (size - kept,))
    return specs


def decode_mask(name: str, shape: tuple[int, ...], kept: int, tensors: Tensors) -> Tensor:
    """Decode a mask. Raises InvalidTicket if it does not keep `kept` weights, or has bits beyond its size."""
    import torch

    packed = tensors[f"mask/{name}"]
    if int(np.bitwise_count(packed).sum()) != kept:
        raise InvalidTicket("a mask does not keep as many weights as its header says.")
    return torch.from_numpy(_unpack_exactly(packed, shape))


def decode_weights(name: str, mask: Tensor, tensors: Tensors) -> Tensor:
    """Decode kept weights from `constant/` and `signs/` or from `kept/`; 0 elsewhere. Raises InvalidTicket."""
    if f"kept/{name}" in tensors:
        return _scatter(mask, tensors[f"kept/{name}"])
    constant = tensors[f"constant/{name}"]
    if np.signbit(constant).any():
        raise InvalidTicket("the constant of a layer is negative.")
    negative = _unpack_exactly(tensors[f"signs/{name}"], (int(mask.sum()),))
    return _scatter(mask, np.where(negative, -constant, constant))


def decode_frozen(name: str, mask: Tensor, tensors: Tensors) -> Tensor:
    """Decode pruned weights from `frozen/`; 0 elsewhere."""
    return _scatter(~mask, tensors[f"frozen/{name}"])


def _scatter(selected: Tensor, values: NDArray[np.float32]) -> Tensor:
    import torch

    tensor = torch.zeros(selected.shape)
    tensor[selected] = torch.from_numpy(values.copy())
    return tensor


def _unpack_exactly(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    bits = unpack(packed, shape)
    # Set padding bits would make two files with one meaning.
    if not np.array_equal(np.packbits(bits), packed):
        raise InvalidTicket("a packed mask has bits beyond its number of weights.")
    return bits


def _num_bytes(bits: int) -> int:
    return (bits + 7) // 8


@dataclass(frozen=True)
class LayerEntry:
    """Header entry of one prunable tensor."""

    name: str
    shape: list[int]
    kept: int
    weights: KeptEncoding
    frozen: FrozenEncoding

    @property
    def specs(self) -> TensorSpecs:
        """Types and shapes of its arrays in the file."""
        return layer_tensor_specs(self.name, tuple(self.shape), self.kept, self.weights, self.frozen)


@dataclass(frozen=True)
class TicketHeader:
    """Content of a ticket's header. Fields that `Ticket` has too mean the same."""

    network: str | None
    dataset: str | None
    seed: int | None
    initial_content: str | None
    layers: list[LayerEntry]
    others_given: bool
    """True if the unmasked tensors are stored; otherwise they come from the seed."""
    facts: dict[str, Any]
    content: str
    """`content_hash` of all tensors in the file."""

    def text(self) -> str:
        """Format canonical JSON with its checksum.

        Raises ValueError or TypeError for facts that do not survive a round trip through JSON.
        """
        document = {
            "format": FORMAT,
            "network": self.network,
            "dataset": self.dataset,
            "seed": self.seed,
            "initialiser": None if self.seed is None else INITIALIZER,
            "initial_content": self.initial_content,
            "layers": [asdict(layer) for layer in self.layers],
            "others": "values" if self.others_given else "from_seed",
            "facts": self.facts,
            "content": self.content,
        }
        if json.loads(canonical_json(document)) != document:
            raise ValueError("its facts are not plain JSON (tuples and keys that are not strings are not)")
        return canonical_json({**document, "seal": _checksum(document)})


def parse_header(text: str) -> TicketHeader:
    """Parse a header and verify its checksum and the type of every field. Raises InvalidTicket."""
    document = parse_canonical_json(text)
    if not isinstance(document, dict):
        raise InvalidTicket("its document is not a JSON object.")
    if document.get("format") != FORMAT:
        raise InvalidTicket(
            f"it has ticket format {quote(document.get('format'))}, and this release reads format {FORMAT}. "
            "Use the release of supermask that wrote it."
        )
    if document.pop("seal", None) != _checksum(document):
        raise InvalidTicket("its document does not match its checksum: it is damaged. Get the file again.")
    if document.keys() != _KEY_TYPES.keys() or not all(
        isinstance(document[key], kind) for key, kind in _KEY_TYPES.items()
    ):
        raise InvalidTicket("its document has missing or unknown keys, or values of another type.")
    if document["initialiser"] not in (None, INITIALIZER):
        raise InvalidTicket(f"its initializer {quote(document['initialiser'])} is unknown; {INITIALIZER} is known.")
    if len({document[key] is None for key in ("seed", "initialiser", "initial_content")}) > 1:
        raise InvalidTicket("a seed, its initializer and the hash of its network are stored together or not at all.")
    if document["others"] not in ("values", "from_seed"):
        raise InvalidTicket("it does not say where its unmasked tensors come from.")
    layers = [_parse_layer(entry) for entry in document["layers"]]
    if len({layer.name for layer in layers}) != len(layers):
        raise InvalidTicket("two of its layers have the same name.")
    fields = {key: document[key] for key in ("network", "dataset", "seed", "initial_content", "facts", "content")}
    return TicketHeader(layers=layers, others_given=document["others"] == "values", **fields)


_KEY_TYPES: dict[str, Any] = {
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


def unmasked_names(header: TicketHeader, specs: TensorSpecs) -> list[str]:
    """Return the names of the tensors in the file that belong to no layer.

    Raises InvalidTicket if a tensor is missing, has another size or is not used.
    """
    expected: TensorSpecs = {}
    for layer in header.layers:
        expected |= layer.specs
    if any(specs.get(name) != spec for name, spec in expected.items()):
        raise InvalidTicket("its tensors do not have the sizes that its layers need.")
    unmasked = [name for name in specs if name not in expected]
    for name in unmasked:
        if not (header.others_given and name.startswith("other/") and specs[name].dtype != "U8"):
            raise InvalidTicket(f"it holds a tensor that is not used: {quote(name)}.")
    return unmasked


def _parse_layer(entry: object) -> LayerEntry:
    if not isinstance(entry, dict) or entry.keys() != LayerEntry.__annotations__.keys():
        raise InvalidTicket("one of its layers has missing or unknown keys.")
    layer = LayerEntry(**entry)
    is_valid = (
        isinstance(layer.name, str)
        and is_shape(layer.shape)
        and type(layer.kept) is int
        and 0 <= layer.kept <= prod(layer.shape)
        and prod(layer.shape) > 0
        and layer.weights in get_args(KeptEncoding)
        and layer.frozen in get_args(FrozenEncoding)
    )
    if not is_valid:
        raise InvalidTicket("one of its layers has an impossible name, shape, count or encoding.")
    return layer


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document).encode("ascii")).hexdigest()
