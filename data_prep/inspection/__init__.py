"""Looking at data sets."""
