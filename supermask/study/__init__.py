"""Studies: validated configurations from study files, with the place of every error, and their plans of runs."""

from supermask.study.fields import resolve_criterion
from supermask.study.loading import StudyLike, builtin_studies, load_study, study_from_dict
from supermask.study.mask_settings import Supermask
from supermask.study.schema import Study, Treatment
from supermask.study.train_settings import Train

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
