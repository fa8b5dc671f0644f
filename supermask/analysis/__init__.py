"""Looking at masks: arrays in, plain results out. NumPy alone, for scripts and notebooks; figures are in `figures/`.

Masks and weights are mappings from a tensor's name to an array of its shape, as `Specimen` holds them.
"""

from supermask.analysis.density import Density, densities
from supermask.analysis.distribution import Distribution, distribution_of, limits_of
from supermask.analysis.overlap import (
    ALL_LAYERS,
    Chance,
    Overlap,
    OverlapMatrix,
    chance_of,
    overlap_matrix,
    overlaps,
    pairs_of,
)
from supermask.analysis.pixels import pixel_map
from supermask.analysis.plane import Hexagons, Plane, hexagons, plane_of
from supermask.analysis.signs import SignAgreement, sign_agreement, sign_agreement_between
from supermask.analysis.specimen import Arrays, MaskArrays, Specimen, labelled, short_labels
from supermask.analysis.units import Units, connected_units

__all__ = [
    "ALL_LAYERS",
    "Arrays",
    "Chance",
    "Density",
    "Distribution",
    "Hexagons",
    "MaskArrays",
    "Overlap",
    "OverlapMatrix",
    "Plane",
    "SignAgreement",
    "Specimen",
    "Units",
    "chance_of",
    "connected_units",
    "densities",
    "distribution_of",
    "hexagons",
    "labelled",
    "limits_of",
    "overlap_matrix",
    "overlaps",
    "pairs_of",
    "pixel_map",
    "plane_of",
    "short_labels",
    "sign_agreement",
    "sign_agreement_between",
]
