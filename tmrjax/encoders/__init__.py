"""The encoders: BERT for text and ResNet for pictures (§3.2), ViLT for both (§3.4). They need jax and flax alone."""
