"""Claims about treatments as data, and what the runs say of them."""

from supermask.claims.evaluate import evaluate
from supermask.claims.findings import ClaimFinding, ClauseFinding, LevelFinding, Verdict

__all__ = ["ClaimFinding", "ClauseFinding", "LevelFinding", "Verdict", "evaluate"]
