"""The command `data`: datasets by name, downloads, and a look into any data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from supermask.cli.app import app
from supermask.cli.output import echo
from supermask.cli.progress import show_progress

if TYPE_CHECKING:
    from supermask.api.data import KnownDataset

data = typer.Typer(
    help="List, download and inspect datasets.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")


@data.command("list")
def list_datasets() -> None:
    """Print the datasets that have a name, and where their files were found.

    Your own data need no name: `dataset: npz:FILE`, `idx:FOLDER`, `parquet:FOLDER`, `images:FOLDER`, `module:function`.

    Example: `supermask data list`
    """
    from supermask.api import data as api_data
    from supermask.core.text import format_table

    known = api_data.list_datasets()
    rows = [
        (
            dataset.spec.name,
            "x".join(map(str, dataset.spec.image_shape)),
            f"{dataset.spec.classes}",
            f"{dataset.spec.training_images:,}",
            f"{dataset.spec.test_images:,}",
            _place(dataset),
        )
        for dataset in known
    ]
    echo(format_table(("dataset", "images", "classes", "training", "test", "found"), rows))


def _place(dataset: KnownDataset) -> str:
    if not dataset.needs_files:
        return "comes with scikit-learn"
    if not dataset.files:
        return f"no: supermask data get {dataset.spec.name}"
    first = dataset.files[0]
    return str(first if len(dataset.files) == 1 else first.parent)


@data.command()
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a dataset, such as fashion-mnist.")],
    mirror: Annotated[
        str | None,
        typer.Option(
            help="Address in place of the public mirrors; files are at MIRROR/NAME/FILE [default: $SUPERMASK_MIRROR].",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to download into [default: $SUPERMASK_DATA or ./data].", show_default=False),
    ] = None,
) -> None:
    """Download a dataset from its public mirrors. Resumable; every file is checked by its SHA-256.

    Example: `supermask data get fashion-mnist`
    """
    from supermask.api import data as api_data

    with show_progress():
        files = api_data.get_dataset(name, mirror, out)
    for path in files:
        echo(f"{path}  {path.stat().st_size:,} bytes")


@data.command()
def inspect(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="Name or locator, such as mnist, npz:own.npz, images:photos."),
    ],
    out: Annotated[Path, typer.Option(help="Contact sheet (PNG): the first images of each class.")] = Path(
        "contact-sheet.png"
    ),
) -> None:
    """Print shapes, classes, counts and fingerprint of a dataset, and write a contact sheet.

    For `module:function` your code is imported and called, as `supermask run` does.

    Example: `supermask data inspect images:photos#side=32 --out photos.png`
    """
    from supermask.api import data as api_data
    from supermask.core.text import format_table

    with show_progress():
        inspection = api_data.inspect_dataset(dataset, out)
    spec = inspection.spec
    channels, height, width = spec.image_shape
    kind = "published files" if inspection.is_published else "in every run's id"
    lines = {
        "dataset": dataset,
        "images": f"{height}x{width} pixels, {channels} channel{'s' if channels > 1 else ''}, 0 to {spec.max_pixel}",
        "classes": f"{spec.classes:,}",
        "training": f"{spec.training_images:,} images, of which {spec.validation_images:,} are held out for validation",
        "test": f"{spec.test_images:,} images",
        "data": f"{inspection.fingerprint} ({kind})",
    }
    if inspection.source:
        lines["columns"] = inspection.source
    if inspection.note:
        lines["note"] = inspection.note
    echo("\n".join(f"{name:9} {text}" for name, text in lines.items()) + "\n")
    counts = list(zip(inspection.training_counts, inspection.test_counts, strict=True))
    rows = [(label, f"{train:,}", f"{test:,}") for label, (train, test) in enumerate(counts[:MAX_CLASSES_SHOWN])]
    echo(format_table(("class", "training", "test"), rows))
    if len(counts) > MAX_CLASSES_SHOWN:
        echo(f"... and {len(counts) - MAX_CLASSES_SHOWN:,} more classes")
    echo(f"\n{inspection.sheet}")


MAX_CLASSES_SHOWN = 50
"""Classes in the table of counts."""
