"""Write down a clip with a speech LM.

python examples/audio_to_text.py runs/speech-lm speech.wav
"""

import sys

from omni import SpeechLM


def main(folder: str, file: str) -> None:
    lm = SpeechLM.from_pretrained(folder)
    audio_tokens = lm.audio_tokenizer.encode_audio(file)
    text_tokens = lm.model.generate_text(audio_tokens)
    print(lm.text_tokenizer.decode(text_tokens))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
