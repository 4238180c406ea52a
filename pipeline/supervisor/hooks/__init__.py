"""Hooks: commands of the operator that run when something happens to the instance, beside everything else."""
