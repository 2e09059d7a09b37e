"""The two encoders of §3.1: BERT for text, ResNet for pictures. They depend on jax and flax alone."""
