"""Whether tests run at full size, as `make harness` asks, or a share of it."""

from __future__ import annotations

import os

IS_FULL = os.environ.get("SUPERMASK_FULL_HARNESS") == "1"
