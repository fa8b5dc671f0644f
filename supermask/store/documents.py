"""Form of every document in the store: types and ranges of the facts of runs, snapshots and checkpoints.

A seal proves that a document was not damaged. It does not prove that the document is one of ours: another program, a
future version or a person may have sealed it. Everything that reads the store relies on the form checked here. Unknown
keys are allowed, because later versions add facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from supermask.core.errors import UserError, quote
from supermask.core.initializers import INITIALIZERS, OWN
from supermask.core.recipe import MAX_COUNT, MAX_NUMBER
from supermask.datasets.locators import is_locator
from supermask.datasets.specs import DATASETS, dataset_spec
from supermask.networks.network import is_user_network
from supermask.networks.registry import named_network
from supermask.store.files.entry import CorruptEntry, Kind, RunFacts
from supermask.study.networks import NetworkFactsForm, read_network_facts
from supermask.study.run import Run

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# Strict: `true` is no integer, "3" no number. Unknown keys are kept.
_FORM = ConfigDict(strict=True, extra="allow")

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Size = Annotated[int, Field(ge=1, le=MAX_COUNT)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
"""An accuracy or a density."""
Loss = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
"""Mean cross-entropy in nats."""
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
# JSON has integers of any length, which a float field accepts and no table column holds.
NonNegative = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}\z")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
Text = Annotated[str, Field(max_length=10_000)]
Point = Count | Text


@with_config(ConfigDict(strict=True, extra="forbid"))
class AugmentForm(TypedDict, total=False):
    """`augment` of a recipe."""

    crop: Annotated[int, Field(ge=1, le=2**16)]
    flip: bool
    cutout: Annotated[int, Field(ge=1, le=2**16)]


@with_config(ConfigDict(strict=True, extra="forbid"))
class ChannelStatisticsForm(TypedDict):
    """`normalize` of a recipe with given statistics."""

    mean: Annotated[list[Number], Field(min_length=1, max_length=1000)]
    std: Annotated[list[Annotated[float, Field(gt=0, le=MAX_NUMBER)]], Field(min_length=1, max_length=1000)]


@with_config(_FORM)
class RecipeForm(TypedDict):
    """`recipe` of a run."""

    optimizer: Literal["adam", "adamw", "sgd", "none"]
    lr: NonNegative
    batch_size: Size
    iterations: Count
    evaluate_every: Size
    momentum: NonNegative
    weight_decay: NonNegative
    drops: list[Count]
    drop_factor: NonNegative
    warmup: Count
    schedule: NotRequired[Literal["step", "cosine", "linear"]]
    nesterov: NotRequired[bool]
    betas: NotRequired[Annotated[list[UnitInterval], Field(min_length=2, max_length=2)]]
    eps: NotRequired[NonNegative]
    label_smoothing: NotRequired[UnitInterval]
    loss: NotRequired[Text]
    loss_source: NotRequired[Hash | None]
    augment: NotRequired[AugmentForm]
    normalize: NotRequired[Literal["none", "per_channel"] | ChannelStatisticsForm]
    precision: NotRequired[Literal["float32", "bfloat16"]]
    channels_last: NotRequired[bool]
    compile: NotRequired[bool]


@with_config(_FORM)
class StepForm(TypedDict):
    """`step` of a run: the pruning step that leads to it."""

    criterion: Text
    mask1: Text
    mask0: Text
    scope: Literal["layer", "global", "threshold"]
    rates: dict[str, UnitInterval]
    levels: Count
    w_init: NotRequired[Point]
    w_final: NotRequired[Point]
    rewind_to: NotRequired[Point]
    rescaled: NotRequired[bool]
    criterion_source: NotRequired[Text | None]
    rescaled_before: NotRequired[bool]
    only: NotRequired[list[Text]]
    exclude: NotRequired[list[Text]]


@with_config(_FORM)
class LearningForm(TypedDict):
    """`learning` of a run that learns a mask."""

    method: Literal["bernoulli", "rounded", "edge_popup", "signed"]
    weights: Literal["init", "signed_constant", "constant"]
    multiplier: Number
    rescaled: bool
    start_logit: Number
    confidence: Number
    graded: bool
    density: UnitInterval
    threshold: Number
    samples: Size
    hardened_at: list[UnitInterval]
    others_lr: NotRequired[NonNegative]
    only: NotRequired[list[Text]]
    exclude: NotRequired[list[Text]]


@with_config(_FORM)
class MetricsForm(TypedDict, total=False):
    """`metrics` of a run; null if not measured or not finite."""

    diverged_at: Count | None
    early_stop_iteration: Count | None
    initial_validation_loss: Loss | None
    initial_validation_accuracy: UnitInterval | None
    early_stop_validation_loss: Loss | None
    early_stop_validation_accuracy: UnitInterval | None
    final_validation_loss: Loss | None
    final_validation_accuracy: UnitInterval | None
    early_stop_test_loss: Loss | None
    early_stop_test_accuracy: UnitInterval | None
    final_test_loss: Loss | None
    final_test_accuracy: UnitInterval | None
    test_accuracy_std: UnitInterval | None
    thresholded_test_accuracy: UnitInterval | None
    expected_test_accuracy: UnitInterval | None
    expected_density: UnitInterval | None


@with_config(_FORM)
class SampledForm(TypedDict):
    """Accuracy of a learned mask over its samples; null if not finite (a run whose certificate failed)."""

    accuracies: list[UnitInterval | None]
    mean: UnitInterval | None
    std: UnitInterval | None
    loss: Loss | None


@with_config(_FORM)
class EvaluationForm(TypedDict):
    """`supermask` of a run that learned a mask."""

    selected: SampledForm
    final: SampledForm
    thresholded: UnitInterval | None
    expected: UnitInterval | None
    hardened: list[Annotated[list[UnitInterval | None], Field(min_length=2, max_length=2)]]
    ones: dict[str, UnitInterval | None]
    ones_in_all: UnitInterval | None


@with_config(_FORM)
class CertificateForm(TypedDict):
    """`certificate` of a run: check -> layers that break it, and check -> observations that break nothing."""

    held: bool
    checks: dict[str, list[Text]]
    notes: NotRequired[dict[str, list[Text]]]


@with_config(_FORM)
class EnvironmentForm(TypedDict):
    """`environment` of a run. Engines add their own facts."""

    fingerprint: Text
    torch: Text
    engine: NotRequired[Text]
    device: NotRequired[Text]
    threads: NotRequired[Size]


@with_config(_FORM)
class DataForm(TypedDict):
    """`data` of a run: the data set it was trained and tested on."""

    fingerprint: Text
    note: Text


@with_config(_FORM)
class DataSpecForm(TypedDict):
    """`data_spec` of a run on a user's own data. `DatasetSpec.from_data` checks the ranges."""

    image_shape: Annotated[list[Size], Field(min_length=3, max_length=3)]
    classes: Size
    training_images: Size
    test_images: Size
    validation_images: Size
    max_pixel: Size


@with_config(_FORM)
class DataOptionsForm(TypedDict, total=False):
    """`data_options` of a run: those that are not the defaults."""

    train_images: Size
    label_noise: UnitInterval
    validation: Size


@with_config(_FORM)
class LayerForm(TypedDict, total=False):
    """Facts of one prunable tensor of a run, as counts of weights. Runs of earlier versions have none."""

    ties_drawn: Count
    sign_changed: Count
    shrunk: Count


@with_config(_FORM)
class RunForm(TypedDict):
    """Facts of a run: its identity (`Run.to_data`), its result, and its provenance."""

    id: RunId
    network: Text
    dataset: Text
    seed: Count
    level: Annotated[int, Field(ge=0, le=2**31 - 1)]
    recipe: RecipeForm
    parent: RunId | None
    step: StepForm | None
    numerics: NotRequired[Count]
    learning: NotRequired[LearningForm]
    data_fingerprint: NotRequired[Text]
    data_source: NotRequired[Hash]
    data_options: NotRequired[DataOptionsForm]
    data_spec: NotRequired[DataSpecForm]
    initializer: NotRequired[Text]
    network_source: NotRequired[Hash]
    network_facts: NotRequired[NetworkFactsForm]
    status: Literal["finished", "diverged", "certificate_failed"]
    metrics: MetricsForm
    kept: dict[str, Count]
    weights: Size
    first_iteration: Count
    start_content: Hash
    certificate: CertificateForm
    engine: Text
    engine_reason: NotRequired[Text]
    environment: EnvironmentForm
    seconds: Seconds
    data: DataForm
    attempts: NotRequired[Size]
    parent_content: NotRequired[dict[str, Hash]]
    supermask: NotRequired[EvaluationForm]
    layers: NotRequired[dict[str, LayerForm]]


@with_config(_FORM)
class SnapshotForm(TypedDict):
    """Facts of a snapshot. `run_content`: the tensor hashes of the result that it belongs to; not of first versions."""

    run: RunId
    run_content: NotRequired[dict[str, Hash]]


@with_config(_FORM)
class TrainingKeyForm(TypedDict):
    """The training that a checkpoint belongs to: bits depend on both."""

    environment: Text
    start: Hash


@with_config(_FORM)
class ProgressForm(TypedDict):
    """`engine` of a checkpoint: how far its training is."""

    layout: int
    iteration: Count
    best: Count | None


@with_config(_FORM)
class CheckpointForm(TypedDict):
    """Facts of a checkpoint."""

    of: TrainingKeyForm
    engine: ProgressForm


_FORMS: Mapping[Kind, TypeAdapter[Any]] = {
    "run": TypeAdapter(RunForm),
    "point": TypeAdapter(SnapshotForm),
    "checkpoint": TypeAdapter(CheckpointForm),
}


def check_facts(kind: Kind, key: str, facts: RunFacts) -> None:
    """Check the facts of an entry against the form of its kind. Raises CorruptEntry that names the first fault.

    For a run also: its id is the hash of its facts, and its network and data set are known.
    """
    try:
        _FORMS[kind].validate_python(facts)
    except ValidationError as error:
        noun = "snapshot" if kind == "point" else kind
        raise CorruptEntry(key, f"its facts are not those of a {noun}: {_describe(error.errors()[0])}") from error
    if kind == "run":
        _check_identity(key, facts)
    elif kind == "point" and facts["run"] != key.partition("-")[0]:
        raise CorruptEntry(key, f"its facts are those of a snapshot of run {facts['run']}")


def _check_identity(key: str, facts: RunFacts) -> None:
    try:
        run = Run.from_data(facts)
    except (TypeError, ValueError, KeyError) as error:
        # A field that this version does not know, for example one that a later version added.
        raise CorruptEntry(key, f"its facts are not those of a run that this version knows: {error}") from error
    if run.id != key or facts["id"] != key:
        raise CorruptEntry(key, f"its facts are those of run {run.id}")
    if reason := _unknown_data(run) or _unusable_network(run):
        raise CorruptEntry(key, reason)
    # Tables divide by the first and show both.
    if sum(facts["kept"].values()) > facts["weights"]:
        raise CorruptEntry(key, "it keeps more weights than it has")


def _unusable_network(run: Run) -> str:
    """Return why this version cannot read a run's network; empty if it can."""
    if run.initializer is not None and run.initializer not in (*INITIALIZERS, OWN):
        return f"this version knows no initializer {quote(run.initializer)}"
    if not is_user_network(run.network):
        return _unknown_network(run.network, run.dataset, run.spec.image_shape, run.spec.classes)
    if run.network_facts is None or read_network_facts(run.network_facts.to_data()) is None:
        return f"the facts of network {quote(run.network)} are missing or contradict themselves"
    # Facts may claim any size; beyond this no machine could have trained it.
    size = sum(tensor.size for tensor in run.network_facts.tensors)
    return f"network {quote(run.network)} is too large" if size > MAX_WEIGHTS else ""


def _unknown_data(run: Run) -> str:
    """Return why the shapes and counts of a run's data are not known; empty if they are."""
    if run.dataset not in DATASETS and (run.data_spec is None or not is_locator(run.dataset)):
        return f"this version knows no data set {quote(run.dataset)}"
    try:
        run.data_options.resolve(dataset_spec(run.dataset, run.data_spec))
    except UserError as error:
        return str(error)
    return ""


@lru_cache(maxsize=256)
def _unknown_network(network: str, dataset: str, image_shape: tuple[int, int, int], classes: int) -> str:
    """Return why this version cannot build a network for images of this shape; empty if it can."""
    try:
        size = named_network(network, image_shape, classes).size
    except (UserError, ValueError, KeyError, IndexError) as error:
        return f"this version knows no network {quote(network)} for {dataset} ({error})"
    # A name may ask for any size; beyond this no machine could have trained it.
    return f"network {quote(network)} is too large" if size > MAX_WEIGHTS else ""


MAX_WEIGHTS = 10**10
"""Weights of a network in the store."""


def _describe(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the whole"
    return f"{where[:120]}: {error['msg'][:200]}"
