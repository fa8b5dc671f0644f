"""Image datasets as numpy arrays, by name: `load("mnist")`; their specifications without any file: `DATASETS`."""

from supermask.datasets.images import ImageDataset, train_validation_split
from supermask.datasets.loading import load
from supermask.datasets.specs import DATASETS, DatasetSpec

__all__ = ["DATASETS", "DatasetSpec", "ImageDataset", "load", "train_validation_split"]
