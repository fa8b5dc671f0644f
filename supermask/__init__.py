"""Lottery tickets and supermasks: the experimental system of Zhou et al. 2019.

In a notebook: `sm.run("mask-criteria", scale="digits")`, then `sm.table` and `sm.figure` with the same arguments.
`supermask.api` has one function per command of the command line.

The names below are listed in `__init__.pyi` and imported on first use, so `import supermask` loads neither torch nor
numpy.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
