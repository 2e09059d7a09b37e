"""Objects of pictures: what detectors found, and how words and objects take like places in text and picture."""
