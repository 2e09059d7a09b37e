"""The training step, sharding over devices, checkpoints."""
