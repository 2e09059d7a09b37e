"""The corpus of the divergence estimator (§3.4)."""
