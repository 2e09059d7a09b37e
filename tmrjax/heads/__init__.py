"""Heads: what reads the scores of a method (§3.5). Each has its loss, its decoding and its probabilities."""
