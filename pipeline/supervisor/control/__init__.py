"""The ways in and out of a running instance: the control socket, `status`, signals, the service manager, /run."""
