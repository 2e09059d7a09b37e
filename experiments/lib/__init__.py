"""What the commands of experiments are made of."""
