"""`python infer_chat.py --ckpt_dir DIR [--image F] [--audio_in F] [--video F] [--text …] [--audio_out F]`; without a question, a chat."""

import sys

from omni.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["infer-chat", *sys.argv[1:]]))
