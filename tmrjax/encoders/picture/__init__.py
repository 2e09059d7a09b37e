"""Picture encoders (§3.2)."""
