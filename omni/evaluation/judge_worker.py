"""Run by the Python of another environment, which has faster-whisper: MODEL as argument, a JSON list of files on standard input, what it
hears as one JSON string a line on standard output. Imports nothing of this package."""

from __future__ import annotations

import json
import sys

from faster_whisper import WhisperModel


def main() -> None:
    model = WhisperModel(sys.argv[1], device="cpu", compute_type="int8")
    for file in json.load(sys.stdin):
        pieces, _ = model.transcribe(file, language="en", beam_size=5, temperature=0, condition_on_previous_text=False)
        print(json.dumps(" ".join(piece.text.strip() for piece in pieces)), flush=True)


if __name__ == "__main__":
    main()
