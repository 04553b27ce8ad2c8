"""The `muomni` command line. Modules import torch inside their commands, so that `--help` is quick."""
