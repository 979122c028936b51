"""From pairs of masks to scores: contingency table, matching, metrics, intervals, comparison, submission."""
