"""Python API: one function per command of the command line. It returns data and prints nothing.

`supermask.run`, `supermask.table` and `supermask.figure` (module `notebook`) are for notebooks and take settings as
keywords. The functions here take overrides as on the command line, such as `["scale=digits", "seeds=[0]"]`. Names are
listed in `__init__.pyi` and imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
