"""`python train_talker.py --config FILE [section.name=value …]`: stage `talker` of training, as `muomni train talker`."""

import sys

from omni.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["train", "talker", *sys.argv[1:]]))
