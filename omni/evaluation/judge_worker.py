"""Run by a Python that has faster-whisper: MODEL FOLDER COUNT as arguments, FOLDER/0.npy and so on the waveforms (n,) at 16 kHz; what is heard
in each is one JSON string a line on standard output. Imports nothing of this package."""

from __future__ import annotations

import json
import sys

import numpy as np
from faster_whisper import WhisperModel


def main() -> None:
    model_folder, sounds, count = sys.argv[1:]
    model = WhisperModel(model_folder, device="cpu", compute_type="int8", cpu_threads=2)
    for i in range(int(count)):
        wave = np.load(f"{sounds}/{i}.npy")
        pieces, _ = model.transcribe(wave, language="en", beam_size=5, temperature=0, condition_on_previous_text=False)
        print(json.dumps(" ".join(piece.text.strip() for piece in pieces)), flush=True)


if __name__ == "__main__":
    main()
