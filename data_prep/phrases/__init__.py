"""Noun phrases of posts (§3.2)."""
