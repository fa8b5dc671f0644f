"""As `preload`, where the stacked engine trains."""

from supermask.engines import stacked

__all__ = ["stacked"]
