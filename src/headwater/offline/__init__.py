"""The offline plane: jobs that take minutes to hours, over the same stages as everything else."""
