"""Tuning of the host beside the tunnel: what else to set for it, and setting it so that it can be taken back.

Here: pure advice about settings of the kernel, and the record of what was set. The plan of cores is
`pipeline.policy.core_plan`; reading the machine is `pipeline.system.machine_reader`. Used by the command `tune` alone.
"""
