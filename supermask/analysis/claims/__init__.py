"""Claims about treatments, as data, and their verdicts on the rows of a study."""

from supermask.analysis.claims.evaluate import evaluate_claims
from supermask.analysis.claims.findings import ClaimFinding, ClauseFinding, Effect, LevelFinding, Verdict

__all__ = ["ClaimFinding", "ClauseFinding", "Effect", "LevelFinding", "Verdict", "evaluate_claims"]
