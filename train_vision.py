"""`python train_vision.py --config FILE [section.name=value …]`: stage `vision` of training, as `muomni train vision`."""

import sys

from omni.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["train", "vision", *sys.argv[1:]]))
