"""Studies that ship; experiments/study.py runs them."""
