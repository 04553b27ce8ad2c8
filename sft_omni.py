"""`python sft_omni.py --config FILE [section.name=value …]`: stage `sft` of training, as `muomni train sft`."""

import sys

from omni.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["train", "sft", *sys.argv[1:]]))
