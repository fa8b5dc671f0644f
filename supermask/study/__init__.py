"""Studies: validated configurations from study files, with the place of every error, and their plans of runs."""

from supermask.study.fields import resolve_criterion
from supermask.study.loading import StudyLike, builtin_studies, load_study, study_from_dict
from supermask.study.schema import Study, Supermask, Train, Treatment

__all__ = [
    "Study",
    "StudyLike",
    "Supermask",
    "Train",
    "Treatment",
    "builtin_studies",
    "load_study",
    "resolve_criterion",
    "study_from_dict",
]
