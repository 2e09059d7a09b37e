"""Text encoders (§3.2)."""
