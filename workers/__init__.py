"""The worker processes, one folder for each kind. They import the pipeline and never each other.

python -I -m workers NAME --plan-fd N --ready-fd N --parent PID [--tun-fd N] [--listen-fd N] [--supervisor-fd N]
"""
