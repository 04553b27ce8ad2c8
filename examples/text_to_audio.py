"""Say a text with a speech LM.

python examples/text_to_audio.py runs/speech-lm "The rain has stopped." speech.wav
"""

import sys

from omni import SpeechLM
from omni.audio import save_audio


def main(folder: str, text: str, out: str) -> None:
    lm = SpeechLM.from_pretrained(folder)
    text_tokens = lm.text_tokenizer.encode(text)
    audio_tokens = lm.model.generate_audio(text_tokens, lm.audio_tokenizer)
    audio = lm.audio_tokenizer.decode_audio(audio_tokens)
    save_audio(out, audio, lm.sample_rate_hz)
    print(f"{out}: {len(audio) / lm.sample_rate_hz:.2f} s from {len(audio_tokens)} ids")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
