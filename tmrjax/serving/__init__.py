"""A model as compiled programs with the preprocessing beside them, to be run without this package."""
