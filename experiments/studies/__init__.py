"""Studies that ship; experiments/study.py --study=experiments/studies/NAME.py runs one."""
