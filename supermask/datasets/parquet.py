"""Labeled images in Parquet files, as Hugging Face stores them: a column of encoded images and one of labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from supermask.core.errors import UserError, quote
from supermask.datasets.arrays import locator_error
from supermask.datasets.decoding import (
    MAX_ENCODED_BYTES,
    ImageFacts,
    ImageRefused,
    decode_image,
    decode_published_image,
    decoder_key,
    image_facts,
    map_parallel,
)
from supermask.datasets.idx import walk_files
from supermask.datasets.images import (
    Allocate,
    ArrayShapes,
    DatasetFiles,
    LabeledImages,
    Labels,
    RawDataset,
    check_labels,
    corrupt_file_error,
)
from supermask.datasets.locators import PATH_KINDS, Locator
from supermask.datasets.specs import MAX_CLASSES, MAX_IMAGES, MAX_SIDE, DatasetSpec

IMAGE_COLUMNS = ("img", "image", "images", "picture", "png", "jpg")
LABEL_COLUMNS = ("label", "fine_label", "labels", "target", "digit", "class", "cls")
"""Usual names of columns, the first that a file has is used."""
LOCATOR_HINT = "Parquet files with a column of PNG or JPEG images and a column of integer labels"
_INDEX_PREFIX = "__index_level_"
"""Begins the names of columns in which pandas keeps its index; they are never taken for labels unasked."""
_INTEGERS = {f"{sign}{kind}" for sign in ("", "U") for kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")}
_FETCH_BYTES = 1 << 25
"""Bytes of encoded images held at once. Rows may share one value in the file, so its size bounds nothing."""
_MEMORY_LIMIT = "1GB"
"""For DuckDB, which decompresses whole pages of a file; a row group of CIFAR-10 has 5 MB."""

Shards = tuple[tuple[Path, ...], tuple[Path, ...]]
"""(training, test) files, each in the order of their names."""

Query = Callable[..., list[tuple[Any, ...]]]
"""Runs SQL on an open file and returns the rows."""


@dataclass(frozen=True)
class _Table:
    """A file whose columns, number of rows and encoded sizes were checked."""

    path: Path
    image: str
    """SQL expression of the encoded image."""
    label: str
    """SQL expression of the label."""
    columns: str
    """Names of both columns, for messages."""
    rows: int
    max_bytes: int


# ------------------------------------------------------------------------------------------------- published datasets


def read_images(files: tuple[Path, ...], spec: DatasetSpec, count: int, download_hint: str, out: LabeledImages) -> bool:
    """Decode the images and labels of all `files`, in order, into `out`; return whether any image is a JPEG (lossy).

    Number and encoded sizes of the images are checked before any of them is read.
    Raises UserError for other columns, an image that is neither PNG nor JPEG or not of the dataset's size and colors,
    a label out of range, or another number of images than `count`.
    """
    limit = max_encoded_bytes(spec)
    tables = [_check_file(path, None, limit, download_hint) for path in files]
    if (rows := sum(table.rows for table in tables)) != count:
        names = ", ".join(path.name for path in files)
        reason = f"{count:,} images expected in {names}, {rows:,} found"
        raise corrupt_file_error(files[0].parent, reason, download_hint)
    is_lossy, first = False, 0
    for table in tables:
        labels = out.labels[first : first + table.rows]
        decode = partial(_decode_row, partial(decode_published_image, shape=spec.image_shape), table, download_hint)
        numbered = enumerate(_read_rows(table, labels, download_hint))
        decoded = map_parallel(decode, numbered, table.rows, f"decoding {table.path.name}")
        for row, (pixels, is_jpeg) in enumerate(decoded):
            out.images[first + row] = pixels
            is_lossy |= is_jpeg
        check_labels(table.path, labels, spec.classes, download_hint)
        first += table.rows
    return is_lossy


def published_shards(spec: DatasetSpec, shards: Shards, download_hint: str, jpeg_note: str) -> DatasetFiles:
    """Return the Parquet files of a published dataset. `jpeg_note`: its note if any image is a JPEG."""
    decode = partial(decode_published, spec, shards, download_hint, jpeg_note)
    return DatasetFiles((*shards[0], *shards[1]), decode, decoder=f"pillow {version('pillow')}", is_original=False)


def decode_published(
    spec: DatasetSpec, shards: Shards, download_hint: str, jpeg_note: str, allocate: Allocate
) -> RawDataset:
    """Return the images of the Parquet files of a published dataset."""
    train, test = allocate(ArrayShapes.from_spec(spec))
    is_lossy = read_images(shards[0], spec, spec.training_images, download_hint, train)
    is_lossy |= read_images(shards[1], spec, spec.test_images, download_hint, test)
    return RawDataset(train, test, jpeg_note if is_lossy else "")


def max_encoded_bytes(spec: DatasetSpec) -> int:
    """Return the bytes that one encoded image may have: far more than a PNG of that size with its metadata."""
    return 16 * math.prod(spec.image_shape) + (1 << 16)


# ---------------------------------------------------------------------------------------------------- parquet:FOLDER


def find_in_folder(locator: Locator, path: Path) -> DatasetFiles:
    """Return the files of `parquet:FOLDER`. Raises UserError if there is no training or no test file."""
    if not path.is_dir():
        raise locator_error(locator.text, f"{path} is not a folder; the form is {PATH_KINDS['parquet']}")
    shards = find_shards(path, test_words=("test", "validation", "valid", "val"))
    if shards is None:
        names = ", ".join(file.name for file in walk_files(path) if file.suffix == ".parquet")
        problem = "has no test split" if "train" in names else "has no training and test split"
        raise locator_error(
            locator.text,
            f"{path} {problem}: found {names[:300] or 'no .parquet file'}; expected train-*.parquet and test-*.parquet "
            "(or validation-*.parquet)",
        )
    train, test = shards
    decoder = f"{decoder_key()} {locator.columns}"
    describe = partial(describe_columns, locator, (*train, *test))
    return DatasetFiles((*train, *test), partial(decode_shards, locator, train, test), decoder, describe=describe)


def describe_columns(locator: Locator, files: Sequence[Path]) -> str:
    """Return which columns of the files have the images and the labels. Raises UserError for other columns."""
    descriptions: dict[str, None] = {}
    for path in files:
        with _open_parquet(path, LOCATOR_HINT) as query:
            descriptions[_find_columns(path, _column_types(query), locator.columns, LOCATOR_HINT)[2]] = None
    return "; ".join(descriptions)


def decode_shards(locator: Locator, train: Sequence[Path], test: Sequence[Path], allocate: Allocate) -> RawDataset:
    """Return the images of Parquet files, which must have one size. Raises UserError that names a damaged file."""
    parts = [
        [_check_file(f, locator.columns, MAX_ENCODED_BYTES, LOCATOR_HINT) for f in files] for files in (train, test)
    ]
    counts = [sum(table.rows for table in tables) for tables in parts]
    for files, count in zip((train, test), counts, strict=True):
        if not 0 < count <= MAX_IMAGES:
            raise locator_error(locator.text, f"{', '.join(path.name for path in files)}: {count:,} images")
    arrays = allocate(ArrayShapes(_image_shape(locator, [*parts[0], *parts[1]]), *counts))
    channels = arrays[0].images.shape[1]
    for tables, images in zip(parts, arrays, strict=True):
        first = 0
        for table in tables:
            labels = images.labels[first : first + table.rows]
            decode = partial(_decode_row, partial(decode_image, channels=channels), table, LOCATOR_HINT)
            numbered = enumerate(_read_rows(table, labels, LOCATOR_HINT))
            for row, pixels in enumerate(map_parallel(decode, numbered, table.rows, f"decoding {table.path.name}")):
                images.images[first + row] = pixels
            if len(invalid := ((labels < 0) | (labels >= MAX_CLASSES)).nonzero()[0]):
                index = int(invalid[0])
                reason = f"label {int(labels[index])} at image {index}; labels are 0 to {MAX_CLASSES - 1}"
                raise _table_error(table, reason, LOCATOR_HINT)
            first += table.rows
    return RawDataset(*arrays)


def _image_shape(locator: Locator, tables: Sequence[_Table]) -> tuple[int, int, int]:
    """Return (channels, height, width) from the headers of all images: color if any image is."""
    sizes: Counter[tuple[int, int]] = Counter()
    channels = 1
    for table in tables:
        read = partial(_decode_row, _facts, table, LOCATOR_HINT)
        numbered = enumerate(_read_rows(table, None, LOCATOR_HINT))
        for facts in map_parallel(read, numbered, table.rows, f"reading headers of {table.path.name}"):
            sizes[(facts.width, facts.height)] += 1
            channels = max(channels, facts.channels)
    if len(sizes) > 1:
        listed = ", ".join(f"{w}x{h} ({count:,} images)" for (w, h), count in sizes.most_common(3))
        raise locator_error(locator.text, f"its images have {len(sizes):,} sizes: {listed}; scale them to one size")
    ((width, height),) = sizes
    if max(width, height) > MAX_SIDE:
        raise locator_error(locator.text, f"its images have {width}x{height} pixels; at most {MAX_SIDE:,} are allowed")
    return channels, height, width


def _facts(content: bytes) -> ImageFacts:
    return image_facts(content)


# --------------------------------------------------------------------------------------------------------------- files


def find_shards(top: Path, test_words: Sequence[str] = ("test",)) -> Shards | None:
    """Return the files of the folder nearest to `top` that has training and test files, by name; None without.

    A file belongs to a part by the beginning of its name (`train-00000-of-00002.parquet`, `test.parquet`), or of the
    name of its folder (`train/0000.parquet`).
    """
    by_folder: dict[Path, dict[str, list[Path]]] = {}
    words = ("train", *test_words)
    for path in walk_files(top):
        if path.suffix != ".parquet":
            continue
        named = _leading_word(path.name, words)
        part = named or _leading_word(path.parent.name, words)
        if part is not None:
            folder = path.parent if named else path.parent.parent
            by_folder.setdefault(folder, {}).setdefault(part, []).append(path)
    for parts in by_folder.values():
        test = next((parts[word] for word in test_words if word in parts), None)
        if "train" in parts and test:
            return tuple(parts["train"]), tuple(test)
    return None


def _leading_word(name: str, words: Sequence[str]) -> str | None:
    stem = name.lower()
    return next((word for word in words if stem.startswith(word) and not stem[len(word) :][:1].isalpha()), None)


def _check_file(path: Path, columns: tuple[str, str] | None, limit: int, download_hint: str) -> _Table:
    """Return a file's columns and sizes. Raises UserError for other columns, and for images above `limit` bytes."""
    with _open_parquet(path, download_hint) as query:
        types = _column_types(query)
        if (reserved := next((name for name in types if name.lower() == _ROW_NUMBER), None)) is not None:
            reason = f"it has a column {quote(reserved)}, a name that DuckDB needs itself; rename the column"
            raise _file_error(path, reason, download_hint)
        image, label, names = _find_columns(path, types, columns, download_hint)
        sizes = f"SELECT count(*), coalesce(max(octet_length({image})), 0) FROM {_SOURCE}"  # noqa: S608 - quoted names
        rows, max_bytes = query(sizes)[0]
        if max_bytes > limit:
            larger = f"SELECT min(file_row_number) FROM {_NUMBERED} WHERE octet_length({image}) > ?"  # noqa: S608
            row = query(larger, limit)[0][0]
            reason = f"the image in row {row} has more than {limit:,} bytes: {max_bytes:,} is the largest of the file"
            raise _file_error(path, f"{reason} ({names})", download_hint)
    return _Table(path, image, label, names, rows, max_bytes)


def _column_types(query: Query) -> dict[str, str]:
    return {str(row[0]): str(row[1]) for row in query(_DESCRIBE)}


def _find_columns(
    path: Path, types: dict[str, str], columns: tuple[str, str] | None, download_hint: str
) -> tuple[str, str, str]:
    """Return the SQL of image and label, and the names of their columns for messages.

    They are the named columns, or those with usual names. In a user's own files also the only column of images, and an
    integer column if it is the only one beside the images: among several, an integer may be a number of the row.
    """
    images = {name: sql for name, kind in types.items() if (sql := _image_sql(name, kind)) is not None}
    labels = [name for name, kind in types.items() if kind in _INTEGERS]
    image: str | None
    label: str | None
    if columns is not None:
        image, label = columns
    else:
        image = next((name for name in IMAGE_COLUMNS if name in images), None)
        label = next((name for name in LABEL_COLUMNS if name in types), None)
        if download_hint == LOCATOR_HINT:
            image = next(iter(images)) if image is None and len(images) == 1 else image
            others = [name for name in types if name != image and not name.startswith(_INDEX_PREFIX)]
            label = others[0] if label is None and len(others) == 1 else label
    if image not in images or label not in labels:
        names = ", ".join(f"{name} {kind}" for name, kind in types.items())[:1000]
        wanted = (
            f"{quote(columns[0])} (images) and {quote(columns[1])} (an integer) expected"
            if columns
            else "'img' or 'image' (a struct with 'bytes', or bytes) and 'label' (an integer) expected"
        )
        if download_hint == LOCATOR_HINT and columns is None:
            wanted += "; name them: parquet:FOLDER#IMAGE_COLUMN,LABEL_COLUMN"
        raise _file_error(path, f"its columns are {names}; {wanted}", download_hint)
    assert image is not None
    assert label is not None
    return images[image], f"{_quote_name(label)}::BIGINT", f"images from {quote(image)}, labels from {quote(label)}"


def _image_sql(name: str, kind: str) -> str | None:
    """Return the SQL of the encoded bytes in a column of this type; None if it holds none."""
    plain = kind.lower().replace('"', "")
    if plain == "blob":
        return _quote_name(name)
    return f"{_quote_name(name)}.bytes" if plain.startswith("struct(") and "bytes blob" in plain else None


def _quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _read_rows(table: _Table, labels: Labels | None, download_hint: str) -> Iterator[bytes]:
    """Yield the encoded images in the order of the file, in slices of at most `_FETCH_BYTES`; write `labels`."""
    # DuckDB's result of a query is held as a whole, however few rows are fetched from it: hence one query per slice.
    size = max(1, _FETCH_BYTES // max(1, table.max_bytes))
    label = table.label if labels is not None else "0"
    slice_query = (
        f"SELECT {table.image}, {label} FROM {_NUMBERED} "  # noqa: S608 - quoted names of columns
        "WHERE file_row_number BETWEEN ? AND ? ORDER BY file_row_number"
    )
    with _open_parquet(table.path, download_hint) as query:
        for start in range(0, table.rows, size):
            for row, (content, value) in enumerate(query(slice_query, start, start + size - 1), start):
                if content is None:
                    raise _table_error(
                        table, f"row {row} has no image: NULL is not a readable PNG or JPEG", download_hint
                    )
                if value is None:
                    raise _table_error(table, f"row {row} has no label", download_hint)
                if labels is not None:
                    labels[row] = value
                yield content


def _decode_row(decode: Callable[[bytes], Any], table: _Table, download_hint: str, numbered: tuple[int, bytes]) -> Any:
    row, content = numbered
    try:
        return decode(content)
    except ImageRefused as refused:
        raise _table_error(table, f"the image in row {row} {refused}", download_hint) from refused


def _table_error(table: _Table, reason: str, download_hint: str) -> UserError:
    return _file_error(table.path, f"{reason} ({table.columns})", download_hint)


def _file_error(path: Path, reason: str, download_hint: str) -> UserError:
    """Return the error for a file that cannot be used; a user's own file cannot be got again."""
    if download_hint == LOCATOR_HINT:
        return UserError(f"{path}: {reason}. Expected: {LOCATOR_HINT}.")
    return corrupt_file_error(path, reason, download_hint)


_ROW_NUMBER = "file_row_number"
_SOURCE = "read_parquet(?, hive_partitioning = false)"
_DESCRIBE = "DESCRIBE SELECT * FROM read_parquet(?, hive_partitioning = false)"
_NUMBERED = "read_parquet(?, hive_partitioning = false, file_row_number = true)"


@contextmanager
def _open_parquet(path: Path, download_hint: str) -> Iterator[Query]:
    """Provide a function that runs a query on the file, the path being its first parameter.

    Errors of DuckDB become UserError.
    """
    import duckdb

    # DuckDB reads a path as a glob pattern; a character in brackets stands for itself.
    literal = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "threads": 1,
        "memory_limit": _MEMORY_LIMIT,
        "temp_directory": "",  # Otherwise DuckDB spills to .tmp in the current folder.
    }
    try:
        with duckdb.connect(":memory:", config=settings) as connection:
            yield lambda sql, *parameters: connection.execute(sql, [literal, *parameters]).fetchall()
    except duckdb.ConversionException as error:
        reason = f"a label is out of range ({str(error).strip().splitlines()[0]})"
        raise _file_error(path, reason, download_hint) from error
    except duckdb.Error as error:
        first_line = str(error).strip().splitlines()[0]
        raise _file_error(path, f"not a readable Parquet file ({first_line})", download_hint) from error
