"""The worker processes. They import the pipeline and never each other.

    python -P -m workers KIND --name NAME --plan-fd N --ready-fd N --parent PID [--tun-fd N] [--listen-fd N]
"""
