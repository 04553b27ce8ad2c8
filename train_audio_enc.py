"""`python train_audio_enc.py --config FILE [section.name=value …]`: stage `audio` of training, as `muomni train audio`."""

import sys

from omni.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["train", "audio", *sys.argv[1:]]))
