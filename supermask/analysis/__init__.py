"""From rows of finished runs to numbers and verdicts: statistics, mask measures, claims. No torch."""
