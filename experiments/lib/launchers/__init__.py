"""Where the trainings of a study run: processes of this machine, or jobs of SLURM."""
