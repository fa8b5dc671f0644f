"""The data set that a worker trains on, and each seed's split of it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from supermask.datasets import Images, load, split
from supermask.engines.job import Data
from supermask.errors import UserError
from supermask.runs import Run
from supermask.store import Store

SEEDS_HELD = 32
"""Seeds whose split of the data set stays in memory when nobody is at them."""


class DataHere:
    """The last data set asked for, and the last few seeds' splits: runs of one seed that are stacked share it, and so
    their batches.
    """

    def __init__(self, data_dir: Path | None) -> None:
        self._dir = data_dir
        self._images: Images | None = None
        self._splits: WeakValueDictionary[int, Data] = WeakValueDictionary()
        """By seed, of all that somebody is at: also where a stack has more seeds than are held."""
        self._held: OrderedDict[int, Data] = OrderedDict()

    def images(self, run: Run) -> Images:
        """The data set of a run."""
        if self._images is None or self._images.facts.name != run.dataset:
            self._images = load(run.dataset, self._dir)
            self._splits.clear()
            self._held.clear()
        return self._images

    def of(self, run: Run) -> Data:
        """The split of its seed."""
        images = self.images(run)
        data = self._splits.get(run.seed)
        if data is None:
            data = self._splits[run.seed] = seed_data(images, run.seed)
        self._held[run.seed] = data
        self._held.move_to_end(run.seed)
        if len(self._held) > SEEDS_HELD:
            self._held.popitem(last=False)
        return data


def seed_data(images: Images, seed: int) -> Data:
    """A seed's split of a data set, for an engine."""
    training, validation = split(images, seed)
    return Data(
        train_images=images.train_images,
        train_labels=images.train_labels,
        train_indices=training,
        validation_images=np.ascontiguousarray(images.train_images[validation]),
        validation_labels=images.train_labels[validation],
        test_images=images.test_images,
        test_labels=images.test_labels,
        pixel_maximum=images.facts.pixel_maximum,
    )


def check_same_data(store: Store, run_id: str, images: Images) -> None:
    """Raises UserError if a stored run was trained on other data than these: its study cannot go on with them."""
    trained_on = store.facts(run_id)["data"]["fingerprint"]
    if trained_on != images.fingerprint:
        raise UserError(
            f"the runs of {images.facts.name} in {store.root} were trained on other data ({trained_on[:12]}) "
            f"than is there now ({images.fingerprint[:12]}): use another --store, or the former data (SUPERMASK_DATA)."
        )
