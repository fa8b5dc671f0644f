"""Measures of masks: density, overlap, sign agreement, dead units, weight distributions. NumPy arrays in, data out.

Masks and weights are mappings from a tensor's name to an array of its shape, as in `MaskInfo`. The figures are in
`reporting/figures`.
"""

from supermask.analysis.masks.layers import (
    Density,
    SignAgreement,
    UnitConnectivity,
    layer_densities,
    sign_agreement,
    sign_agreement_between,
    unit_connectivity,
)
from supermask.analysis.masks.overlap import (
    ALL_LAYERS,
    ChanceOverlap,
    Overlap,
    OverlapMatrix,
    chance_overlap,
    layer_overlaps,
    overlap_matrix,
    pairwise_overlaps,
)
from supermask.analysis.masks.sample import MaskArrays, MaskInfo, WeightArrays, common_and_short_labels, with_labels
from supermask.analysis.masks.weights import (
    Distribution,
    HexbinCounts,
    WeightPlane,
    hexbin,
    pixel_map,
    symmetric_limit,
    weight_distribution,
    weight_plane,
)

__all__ = [
    "ALL_LAYERS",
    "ChanceOverlap",
    "Density",
    "Distribution",
    "HexbinCounts",
    "MaskArrays",
    "MaskInfo",
    "Overlap",
    "OverlapMatrix",
    "SignAgreement",
    "UnitConnectivity",
    "WeightArrays",
    "WeightPlane",
    "chance_overlap",
    "common_and_short_labels",
    "hexbin",
    "layer_densities",
    "layer_overlaps",
    "overlap_matrix",
    "pairwise_overlaps",
    "pixel_map",
    "sign_agreement",
    "sign_agreement_between",
    "symmetric_limit",
    "unit_connectivity",
    "weight_distribution",
    "weight_plane",
    "with_labels",
]
