"""Datasets as numpy arrays: `load("mnist")`, `split(images, seed)`, and what is known of each without reading it."""

from supermask.datasets.images import ImageDataset, train_validation_split
from supermask.datasets.loading import load
from supermask.datasets.specs import DATASETS, DatasetSpec

__all__ = ["DATASETS", "DatasetSpec", "ImageDataset", "load", "train_validation_split"]
