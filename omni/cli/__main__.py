"""`python -m omni.cli` is `muomni`."""

from omni.cli.app import entry_point

entry_point()
