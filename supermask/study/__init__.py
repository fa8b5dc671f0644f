"""Studies: what a study file says, validated, with every fault told where it was made."""

from supermask.study.loading import StudyLike, load_study, shipped_studies, study_from
from supermask.study.model import Study, Train, Treatment
from supermask.study.supermask import Supermask
from supermask.study.values import resolve_criterion

__all__ = [
    "Study",
    "StudyLike",
    "Supermask",
    "Train",
    "Treatment",
    "load_study",
    "resolve_criterion",
    "shipped_studies",
    "study_from",
]
