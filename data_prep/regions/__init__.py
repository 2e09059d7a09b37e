"""Regions of pictures (§3.2)."""
