"""The page and the JSON interface to try a model on."""
