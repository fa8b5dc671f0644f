"""The network of a run or a study: by name, or a module of the user's by import path.

A user's module is imported by `supermask run` and its workers only. Everything else reads the facts that an examination
found (`NetworkFacts`), which plans and stored runs carry.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.initializers import OWN
from supermask.networks.network import Network, NetworkFacts, is_user_network, seeded_draws
from supermask.networks.registry import canonical_name, named_network
from supermask.study.run import Run
from supermask.study.source_files import UserModuleNotFound
from supermask.study.user_code import (
    UserFunction,
    check_function,
    check_planned_source,
    import_function,
    is_import_path,
    refuse_unhashed_modules,
    source_identity,
)

if TYPE_CHECKING:
    from torch import nn

ImageShape = tuple[int, int, int]

GLOROT = "glorot_normal"


def default_initializer(network: str) -> str:
    """Return the initializer of a network without the key `initializer`: `own` for import paths."""
    return OWN if is_user_network(network) else GLOROT


# --- names ---


def canonical_network(value: Any) -> str:
    """Return the canonical text of a study's `network`: a name, or an import path with sorted keyword arguments.

    `value` is a name, an import path, a map `{make: module:function, key: value ...}`, or the text that this function
    returns. The code is looked up but not imported; one that is not found is accepted, because finished studies are
    read without it. Raises UserError.
    """
    if isinstance(value, Mapping):
        arguments = {str(key): item for key, item in value.items()}
        path = arguments.pop("make", None)
        if not isinstance(path, str) or not is_import_path(path):
            problem = f"has make: {quote(path)}" if "make" in value else f"has only {', '.join(arguments) or 'no key'}"
            raise UserError(
                f"a network as a map needs make: module:function, and this one {problem}; give the function and its "
                "arguments, such as {make: mynets:net, width: 3}."
            )
        return _with_arguments(_check_path(path), arguments)
    if not isinstance(value, str):
        raise UserError(f"{quote(value)} is not a network: give a name, module:function, or {{make: ...}}.")
    path, brace, text = value.partition(" {")
    if is_import_path(path):
        return _with_arguments(_check_path(path), _parse_arguments(brace.lstrip() + text if brace else "{}"))
    return canonical_name(value)


def _check_path(path: str) -> str:
    module, _, function = path.rpartition(":" if ":" in path else ".")
    path = f"{module}:{function}"
    with suppress(UserModuleNotFound):
        check_function(path, allow_class=True)
    return path


def _with_arguments(path: str, arguments: Mapping[str, Any]) -> str:
    for key, item in arguments.items():
        if not key.isidentifier():
            raise UserError(f"network {quote(path)}: {quote(key)} is not a keyword argument.")
        if not _is_plain(item):
            kind = quote(item) if isinstance(item, float) else type(item).__name__
            raise UserError(
                f"network {quote(path)}: {key} is {kind}; allowed are finite numbers, texts, true, false, null "
                "and lists of these."
            )
    if not arguments:
        return path
    return f"{path} {json.dumps(arguments, sort_keys=True, separators=(',', ':'), allow_nan=False)}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and value - value == 0)


def _parse_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise UserError(f"network: {quote(text)} are not keyword arguments as JSON.")
    return arguments


def split_user_network(name: str) -> tuple[str, dict[str, Any]]:
    """Return the import path and the keyword arguments of a canonical name."""
    path, brace, text = name.partition(" {")
    return path, _parse_arguments("{" + text) if brace else {}


def network_source(name: str) -> str:
    """Return the identity of the code of a user's network. Raises UserModuleNotFound and UserError."""
    try:
        return source_identity(split_user_network(name)[0])
    except UserModuleNotFound as error:
        raise UserModuleNotFound(f"network {quote(name)}: {error}") from None


def network_from_callable(make: Callable[..., Any]) -> Any:
    """Return the study's `network` for a function, a class or a `functools.partial` of one.

    Workers are other processes, so the function must be found by its import path. Raises UserError if it is not.
    """
    function, arguments = make, {}
    if isinstance(make, partial):
        function, arguments = make.func, dict(make.keywords)
        if make.args:
            raise UserError("network: a functools.partial needs keyword arguments, not positional ones.")
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or not name.isidentifier():
        raise UserError(
            f"network: {quote(name or type(make).__name__)} cannot be imported by worker processes: put it at the top "
            "level of a file of its own, such as mynets.py, and import it from there."
        )
    return {"make": f"{module}:{name}", **arguments}


# --- networks of runs ---


def run_network(run: Run) -> Network:
    """Return the network of a run. Raises UserError for an unknown name."""
    image_shape, classes = run.spec.image_shape, run.spec.classes
    return resolve_network(run.network, image_shape, classes, run.initializer, run.network_facts, run.network_source)


@lru_cache(maxsize=256)
def resolve_network(
    name: str,
    image_shape: ImageShape,
    classes: int,
    initializer: str | None,
    facts: NetworkFacts | None,
    source: str | None,
) -> Network:
    """Return a network from its canonical name. Raises UserError for an unknown name.

    `initializer`: None for the network's default. `facts` and `source`: those of a user's network, whose code is not
    imported before the module is built.
    """
    initializer = initializer or default_initializer(name)
    if not is_user_network(name):
        return named_network(name, image_shape, classes, initializer)
    make = partial(make_user_module, name, image_shape, classes, source)
    return Network(name, facts, None, initializer, make)


def examine_network(
    network: Network, image_shape: ImageShape, classes: int, batch_size: int | None = None
) -> NetworkFacts:
    """Import a user's network and return its facts. `batch_size`: the smallest one that it is trained with.

    Raises UserError for a network that cannot be used.
    """
    from supermask.networks.examination import examine_module

    assert network.make is not None
    return examine_module(network.make, image_shape, classes, network.name, batch_size)


def make_user_module(name: str, image_shape: ImageShape, classes: int, source: str | None) -> nn.Module:
    """Import the function or class of a user's network and call it.

    `image_shape` and `classes` are passed if it has parameters of these names, or takes exactly two positional
    arguments without a default. Raises UserError if the code is not the one that the plan was made for.
    """
    path, arguments = split_user_network(name)
    user = _import_network(path, source)
    function = user.function
    signature = inspect.signature(function)
    parameters = signature.parameters
    given = {"image_shape": image_shape, "classes": classes}
    for key, value in given.items():
        if key in parameters:
            arguments.setdefault(key, value)
    required = [
        key
        for key, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and key not in arguments
    ]
    positional = [image_shape, classes] if len(required) == 2 and not given.keys() & parameters.keys() else []
    _check_arguments(name, signature, positional, arguments)
    with refuse_unhashed_modules(path, user.sources):
        module: nn.Module = function(*positional, **arguments)
    return module


def _check_arguments(
    name: str, signature: inspect.Signature, positional: list[Any], arguments: Mapping[str, Any]
) -> None:
    """Raise UserError, with the parameters of a user's network, if it cannot be called with these arguments."""
    try:
        signature.bind(*positional, **arguments)
    except TypeError as error:
        unknown = next((key for key in arguments if key not in signature.parameters), None)
        hint = (did_you_mean(unknown, signature.parameters) if unknown else "") or "."
        raise UserError(
            f"network {quote(name)} cannot be called: {error}{hint} Its parameters: "
            f"{', '.join(signature.parameters) or 'none'}. Passed are image_shape and classes, by name or as the only "
            "two positional arguments, and the keys beside make."
        ) from error


@lru_cache
def _import_network(path: str, source: str | None) -> UserFunction:
    # Before the import, as in the plan: code that runs may change what is found.
    identity = source_identity(path)
    # Modules may draw numbers or seed generators when they are imported: neither changes the draws of a constructor,
    # and such modules get the same numbers in every process.
    with seeded_draws(0):
        user = import_function(path, allow_class=True)
    if source is not None:
        check_planned_source("network", path, identity, source)
    return user


# --- facts that were stored ---

_FORM = ConfigDict(strict=True, extra="forbid")
_Name = Annotated[str, Field(min_length=1, max_length=1000)]
_Shape = Annotated[list[Annotated[int, Field(ge=0, le=2**40)]], Field(max_length=8)]


@with_config(_FORM)
class PrunableForm(TypedDict):
    """A prunable tensor."""

    name: _Name
    shape: Annotated[list[Annotated[int, Field(ge=1, le=2**40)]], Field(min_length=2, max_length=8)]
    kind: Literal["conv", "hidden", "output"]
    fans: Annotated[list[Annotated[int, Field(ge=1, le=2**40)]], Field(min_length=2, max_length=2)]
    own_std: Annotated[float, Field(ge=0, le=1e30)]


@with_config(_FORM)
class UnmaskedForm(TypedDict):
    """An unmasked tensor."""

    name: _Name
    shape: _Shape
    dtype: Literal["float32", "int64"]
    trained: bool
    is_buffer: bool
    is_frozen: NotRequired[bool]


@with_config(_FORM)
class NetworkFactsForm(TypedDict):
    """`network_facts` of a run: the facts of a user's network."""

    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=3, max_length=3)]
    classes: Annotated[int, Field(ge=1, le=2**31)]
    tensors: Annotated[list[PrunableForm], Field(min_length=1, max_length=100_000)]
    unmasked: Annotated[list[UnmaskedForm], Field(max_length=1_000_000)]
    aliases: Annotated[list[Annotated[list[_Name], Field(min_length=2, max_length=2)]], Field(max_length=100_000)]
    multiplications: Annotated[int, Field(ge=0, le=2**60)]


_ADAPTER = TypeAdapter(NetworkFactsForm)


def read_network_facts(data: object) -> NetworkFacts | None:
    """Return the facts of `NetworkFacts.to_data`; None for anything else, as a store is not trusted."""
    try:
        facts = NetworkFacts.from_data(_ADAPTER.validate_python(data))
    except (ValidationError, ValueError, TypeError):
        return None
    names = [t.name for t in facts.tensors] + [t.name for t in facts.unmasked] + [alias for alias, _ in facts.aliases]
    return facts if len(set(names)) == len(names) else None
