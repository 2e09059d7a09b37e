"""Encoders that read text and picture together (§3.4)."""
