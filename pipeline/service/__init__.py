"""The program as a service of systemd: its unit, its system user, and what happens to instances as it is upgraded.

Not here: the messages to a running service manager; they are in supervisor/control.
Used by the command `install-service`, and by the scripts of the Debian package.
"""
