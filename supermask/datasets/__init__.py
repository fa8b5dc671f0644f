"""Datasets as numpy arrays: `load("mnist")`, `split(images, seed)`, and what is known of each without reading it."""

from supermask.datasets.facts import DATASETS, DatasetFacts
from supermask.datasets.images import Images, split
from supermask.datasets.load import load

__all__ = ["DATASETS", "DatasetFacts", "Images", "load", "split"]
