"""`cifar10`: finds the original binary version (unpacked, or its archive) or Hugging Face's Parquet files.

The *python* version is refused: its files are pickles, and loading a pickle can run any code.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from pathlib import Path

from supermask.datasets import cifar10_binary, parquet
from supermask.datasets.facts import DatasetFacts
from supermask.datasets.images import Decoded
from supermask.datasets.source import DataFolder, Source, missing
from supermask.errors import UserError

GET_IT = (
    "the *binary* version from https://www.cs.toronto.edu/~kriz/cifar.html, "
    "or the Parquet files of the Hugging Face dataset uoft-cs/cifar10"
)
NEEDED = (
    "cifar-10-binary.tar.gz, or cifar-10-batches-bin/ with data_batch_1.bin to data_batch_5.bin and test_batch.bin, "
    "or train-*.parquet and test-*.parquet in one folder anywhere below 'cifar10'"
)
ARCHIVE = "cifar-10-binary.tar.gz"
PICKLES = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")
LOSSY = "CIFAR-10 decoded from JPEG (lossy): accuracies may differ slightly from those on the original images"


def find(facts: DatasetFacts, folder: DataFolder) -> Source:
    """The first complete form found, the exact ones first. Raises UserError where there is none."""
    tops = [folder.path / "cifar10", folder.path]
    places = [top / inner for top in tops for inner in ("cifar-10-batches-bin", "")]
    for place in places:
        if not _lacking(place):
            files = tuple(place / name for name in cifar10_binary.NAMES)
            return Source(files, partial(cifar10_binary.decode_files, facts, files, GET_IT))
    for top in tops:
        if (archive := top / ARCHIVE).is_file():
            return Source((archive,), partial(cifar10_binary.decode_archive, facts, archive, GET_IT))
    if shards := _shards(tops[0]):
        train, test = shards
        decode = partial(decode_parquet, facts, train, test)
        return Source((*train, *test), decode, decoder=f"pillow {version('pillow')}")
    raise _not_found(facts, folder, tops, places)


def decode_parquet(facts: DatasetFacts, train: tuple[Path, ...], test: tuple[Path, ...]) -> Decoded:
    """The images of the Parquet files; `note` says so if any of them is a JPEG."""
    train_set, train_lossy = parquet.read_images(train, facts, facts.training_images, GET_IT)
    test_set, test_lossy = parquet.read_images(test, facts, facts.test_images, GET_IT)
    return Decoded(train_set, test_set, LOSSY if train_lossy or test_lossy else "")


def _lacking(place: Path) -> list[str]:
    return [name for name in cifar10_binary.NAMES if not (place / name).is_file()]


def _shards(top: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]] | None:
    """(train, test) files of the folder nearest to `top` that has both; by name, which is the order of the shards."""
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(top.rglob("*.parquet")):
        by_folder.setdefault(path.parent, []).append(path)
    for place in sorted(by_folder, key=lambda path: (len(path.parts), path)):
        train, test = (
            tuple(path for path in by_folder[place] if path.name.startswith(start)) for start in ("train-", "test-")
        )
        if train and test:
            return train, test
    return None


def _not_found(facts: DatasetFacts, folder: DataFolder, tops: list[Path], places: list[Path]) -> UserError:
    for place in places:
        lacking = _lacking(place)
        if len(lacking) < len(cifar10_binary.NAMES):
            return UserError(f"{place}: {', '.join(lacking)} not there.\nGet all six files: {GET_IT}.")
    for path in (top / name for top in tops for name in PICKLES):
        if path.exists():
            return UserError(
                f"{path}: this is the *python* version of CIFAR-10. Its files are pickles, and loading a pickle can "
                f"run any code, so it is not read.\nGet one of the other two: {GET_IT}."
            )
    looked_in = [*places, *(top / ARCHIVE for top in tops), tops[0] / "**" / "{train,test}-*.parquet"]
    return missing(facts.name, NEEDED, looked_in, folder, GET_IT)
