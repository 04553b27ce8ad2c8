"""`python train_text.py --config FILE [section.name=value …]`: stage `text` of training, as `muomni train text`."""

import sys

from omni.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["train", "text", *sys.argv[1:]]))
