"""Field types of study files, with their error messages."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.criteria import CRITERIA
from supermask.core.errors import UserError, did_you_mean, quote
from supermask.core.initializers import INITIALIZERS, OWN
from supermask.core.recipe import CROSS_ENTROPY, MAX_COUNT, MAX_EPOCHS, MAX_NUMBER
from supermask.datasets.locators import LOCATOR_FORMS, is_locator, is_module_locator, parse_locator, suggest_locator
from supermask.datasets.specs import DATASETS, MAX_IMAGES
from supermask.networks.network import is_user_network
from supermask.networks.registry import NETWORK_FORMS, NETWORK_NAMES, canonical_name, suggest_network
from supermask.study.networks import canonical_network, network_from_callable
from supermask.study.source_files import UserModuleNotFound
from supermask.study.user_code import (
    UserFunction,
    check_function,
    import_function,
    is_import_path,
)

MAX_LABEL = 300
"""Characters. Generated labels must fit too, because a study that is written out has them as names."""

CRITERION_PARAMETERS = ("layer", "rng")
LOSS_PARAMETERS = ("logits", "labels")

PRUNE_RATE = "a prune rate: it is the share of the surviving weights removed per level, above 0 and below 1"


def validation_error(text: str) -> PydanticCustomError:
    """Return the pydantic error with this text, for a value that a rule does not allow."""
    return PydanticCustomError("rule", "{text}", {"text": text})


def with_message(expected: str) -> WrapValidator:
    """Replace any error of pydantic by the message `VALUE is not {expected}.` Lists are accepted as tuples."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(tuple(value) if isinstance(value, list) else value)
        except ValidationError:
            raise validation_error(f"{quote(value)} is not {expected}.") from None

    return WrapValidator(check)


def _choice(
    kind: str,
    allowed: Collection[str],
    allowed_suffix: str = "",
    accepts: Callable[[str], bool] = lambda name: False,
    suggest: Callable[[str], str] | None = None,
) -> PlainValidator:
    """Accept one of `allowed`, or a name for which `accepts` is true; `accepts` may raise UserError.

    `kind` and `allowed_suffix` (what is allowed besides the listed names) are parts of the error message, as is the
    result of `suggest`, by default the nearest of `allowed`.
    """

    def check(value: Any) -> str:
        if isinstance(value, str):
            try:
                if value in allowed or accepts(value):
                    return value
            except UserError as error:
                raise validation_error(str(error)) from error
        near = ""
        if isinstance(value, str):
            near = suggest(value) if suggest else did_you_mean(value, allowed)
        message = f"{quote(value)} is not {kind}{near or '.'} Allowed: {', '.join(allowed)}{allowed_suffix}."
        raise validation_error(message)

    return PlainValidator(check)


def _is_network(name: str) -> bool:
    try:
        return bool(canonical_name(name))
    except UserError:
        return False


def resolve_criterion(name: str) -> UserFunction:
    """Return the function of a criterion: a built-in one, or the user's by import path, which is imported.

    Only training needs the function of a user's criterion; planning and reading need `user_code.code_sha256`.
    Raises UserError as `user_code.import_function` does.
    """
    if name in CRITERIA:
        return UserFunction(name, CRITERIA[name])
    return import_function(name, CRITERION_PARAMETERS)


def resolve_loss(name: str) -> UserFunction:
    """Return the user's loss function at an import path, which is imported. Only training needs it.

    Raises UserError as `user_code.import_function` does.
    """
    return import_function(name, LOSS_PARAMETERS)


def _is_user_function(parameters: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a check of the function at an import path, without import. It raises UserError for an unusable one.

    A module that is not found is accepted, because finished studies are read without their code; a plan that needs its
    identity refuses it.
    """

    def check(name: str) -> bool:
        if not is_import_path(name):
            return False
        with suppress(UserModuleNotFound):
            check_function(name, parameters)
        return True

    return check


def _is_user_data(name: str) -> bool:
    """Check the form of a locator; the function that it names is checked without importing it. Raises UserError."""
    if not is_locator(name):
        return False
    parse_locator(name)
    if is_module_locator(name):
        with suppress(UserModuleNotFound):
            check_function(name, ())
    return True


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(b <= a for a, b in pairwise(values)):
        raise ValueError
    return values


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError
    return values


def check_one_line(text: str) -> str:
    """Return the text. Raises ValueError if it has line breaks or control characters."""
    if not text.isprintable():
        raise ValueError
    return text


def check_pattern(pattern: str) -> str:
    """Return a name or pattern of layers. Raises the pydantic error for one with brackets, which are not wildcards."""
    if "[" in pattern or "]" in pattern:
        raise validation_error(
            f"{quote(pattern)} has '[' or ']': in a name or pattern of layers only * (any characters) and ? (any one "
            "character) have a meaning. Give one pattern per layer, or write ? in the place of a bracket."
        )
    return pattern


def _check_no_map(value: Any) -> Any:
    """Return the value of a key that is a name; a map comes from a name that was split at its dots.

    Raises the pydantic error `split_name`, with the rest of the name and the value.
    """
    path = []
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
        path.append(str(key))
    if path:
        raise PydanticCustomError("split_name", "{rest}: {value}", {"rest": ".".join(path), "value": quote(value)})
    return value


def _check_pattern_list(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check_pattern, patterns))


def _check_reserved_label(text: str) -> str:
    if text in ("dense", "chance", "(chain)") or " | " in text or text != text.strip():
        raise ValueError
    return text


Finite = Field(allow_inf_nan=False)
# Bounds are those of the store: a value that no finished run can have is refused before anything is trained.
Count = Annotated[
    int, Field(ge=1, le=MAX_COUNT), with_message(f"a whole number of at least 1 and at most {MAX_COUNT:,}")
]
Level = Annotated[int, Field(ge=1, le=1000), with_message("a number of pruning levels: a whole number from 1 to 1000")]
Levels = Annotated[int, Field(ge=0, le=1000), with_message("a number of levels: a whole number from 0 to 1000")]
Positive = Annotated[float, Field(gt=0, le=MAX_NUMBER), with_message(f"a number above 0 and at most {MAX_NUMBER:g}")]
NotNegative = Annotated[
    float, Field(ge=0, le=MAX_NUMBER), with_message(f"a number of at least 0 and at most {MAX_NUMBER:g}")
]
EpochCount = Annotated[
    float, Field(gt=0, le=MAX_EPOCHS), with_message(f"a number of epochs: above 0 and at most {MAX_EPOCHS:,.0f}")
]
WarmupEpochs = Annotated[
    float, Field(ge=0, le=MAX_EPOCHS), with_message(f"a number of epochs: at least 0 and at most {MAX_EPOCHS:,.0f}")
]
Fraction = Annotated[float, Field(ge=0, lt=1), with_message("a number of at least 0 and below 1")]
Factor = Annotated[float, Field(gt=0, lt=1), with_message("a factor above 0 and below 1")]
Rate = Annotated[float, Field(gt=0, lt=1), with_message(PRUNE_RATE)]
ZeroRate = Annotated[
    float,
    Field(ge=0, lt=1),
    with_message(f"{PRUNE_RATE.removesuffix('above 0 and below 1')}at least 0 (never pruned) and below 1"),
]
NamedRate = Annotated[ZeroRate, BeforeValidator(_check_no_map)]
Patterns = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200)], ...],
    Field(max_length=1000),
    with_message("a list of names or patterns of layers, such as [fc, stage1.*]"),
    # After `with_message`, which would replace its message.
    AfterValidator(_check_pattern_list),
]
Bool = Annotated[bool, with_message("true or false")]
Epochs = Annotated[
    tuple[Annotated[float, Field(gt=0, le=MAX_EPOCHS)], ...],
    AfterValidator(_ascending),
    with_message(f"a list of epochs: numbers above 0 and at most {MAX_EPOCHS:,.0f}, ascending"),
]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, le=MAX_COUNT)], ...],
    Field(min_length=1, max_length=10_000),
    AfterValidator(_distinct),
    with_message(
        "a number of seeds (1 to 10,000: 5 means 0 to 4) or a list of distinct whole numbers of at least 0 and at most "
        f"{MAX_COUNT:,}"
    ),
]
Title = Annotated[
    str, Field(max_length=200), AfterValidator(check_one_line), with_message("one line of text (200 characters)")
]
Label = Annotated[
    str,
    Field(min_length=1, max_length=MAX_LABEL),
    AfterValidator(check_one_line),
    AfterValidator(_check_reserved_label),
    with_message(
        f"a name for a treatment: one line of text ({MAX_LABEL} characters); 'dense', 'chance', '(chain)' and "
        "' | ' have a meaning of their own"
    ),
]
_USER_FUNCTION = ", or module:function of your own"
_named_network = _choice(
    "a network", NETWORK_NAMES, f", {NETWORK_FORMS}, or module:function of your own", _is_network, suggest_network
)


def _check_network(value: Any) -> str:
    """Return a network's name as it was given, or the canonical text of an import path and its arguments."""
    is_user_code = isinstance(value, Mapping) or callable(value) or (isinstance(value, str) and is_user_network(value))
    if is_user_code:
        try:
            return canonical_network(network_from_callable(value) if callable(value) else value)
        except UserError as error:
            raise validation_error(str(error)) from error
    return _named_network.func(value)  # type: ignore[call-arg,no-any-return]


def _suggest_dataset(name: str) -> str:
    return suggest_locator(name) or did_you_mean(name, DATASETS)


NetworkName = Annotated[str, PlainValidator(_check_network)]
Initializer = Annotated[str, _choice("an initializer", (*INITIALIZERS, OWN))]
Dataset = Annotated[
    str,
    _choice("a dataset", DATASETS, f"; or your own data: {LOCATOR_FORMS}", _is_user_data, _suggest_dataset),
]
ImageCount = Annotated[int, Field(ge=1, le=MAX_IMAGES), with_message("a number of images: a whole number from 1 on")]
NoiseShare = Annotated[
    float, Field(ge=0, lt=1), with_message("a share of the training labels: a number of at least 0 and below 1")
]
CriterionName = Annotated[
    str,
    _choice("a criterion", CRITERIA, _USER_FUNCTION, _is_user_function(CRITERION_PARAMETERS)),
]
Mask1 = Annotated[str, _choice("a mask-1 action", MASK1_ACTIONS)]
Mask0 = Annotated[str, _choice("a mask-0 action", MASK0_ACTIONS)]
Schedule = Annotated[Literal["iterative", "one_shot"], with_message("a schedule. Allowed: iterative, one_shot")]
Scope = Annotated[Literal["layer", "global"], with_message("a scope. Allowed: layer, global")]
Iteration = Annotated[int, Field(ge=0, le=MAX_COUNT)]
ReadPoint = Annotated[
    Iteration | Literal["start", "end", "lowest_validation_loss"],
    with_message(
        "a point of the training. Allowed: start, end, lowest_validation_loss, or an iteration (0, 1, 2, ...)"
    ),
]
RewindPoint = Annotated[
    Iteration | Literal["start", "end"],
    with_message("a point to rewind to. Allowed: start, end, or an iteration (0, 1, 2, ...)"),
]
OptimizerName = Annotated[Literal["adam", "adamw", "sgd"], with_message("an optimizer. Allowed: adam, adamw, sgd")]
MaskOptimizerName = Annotated[
    Literal["adam", "sgd"], with_message("an optimizer for the logits of a mask. Allowed: adam, sgd")
]
LearningRateSchedule = Annotated[
    Literal["constant", "step", "cosine", "linear"],
    with_message("a schedule of the learning rate. Allowed: constant, step, cosine, linear"),
]
Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
    with_message("a pair of decay rates, such as [0.9, 0.999]: two numbers of at least 0 and below 1"),
]
Smoothing = Annotated[
    float, Field(ge=0, lt=1), with_message("a share of the target distribution: a number of at least 0 and below 1")
]
Loss = Annotated[str, _choice("a loss", (CROSS_ENTROPY,), _USER_FUNCTION, _is_user_function(LOSS_PARAMETERS))]
PixelCount = Annotated[int, Field(ge=0, le=4096), with_message("a number of pixels: a whole number of at least 0")]
NumberFormat = Annotated[
    Literal["float32", "bfloat16"], with_message("a number format of training. Allowed: float32, bfloat16")
]
Density = Annotated[
    float, Field(gt=0, lt=1), with_message("a density: a share of a layer's weights, above 0 and below 1")
]
Densities = Annotated[
    tuple[Annotated[float, Field(gt=0, lt=1)], ...], with_message("a list of densities: numbers above 0 and below 1")
]
Logit = Annotated[float, Field(ge=-80, le=80), with_message("a logit: a number from -80 to 80")]
Confidence = Annotated[float, Field(gt=0, le=80), with_message("a confidence: a number above 0, at most 80")]
PositiveFloat = Annotated[float, Field(gt=0, le=1e6), with_message("a number above 0, at most a million")]


class StrictModel(BaseModel):
    """Base of the models: no type conversion, no unknown keys, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
