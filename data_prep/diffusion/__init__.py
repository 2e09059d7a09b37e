"""Stable Diffusion in Flax (§3.3)."""
