"""The encoders of text and of pictures (§3.2), and ViLT for both (§3.4). They need jax and flax alone."""
