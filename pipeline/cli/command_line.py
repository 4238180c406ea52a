"""The types of what the commands add to the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
"""Adds a command: its name, its function, a sentence about it."""

AddOptions = Callable[[argparse.ArgumentParser], None]
"""Adds options that several commands have. With those of an instance, `arguments.instance(arguments)` is it."""
