"""The commands: flags, workdirs and the one training loop."""
