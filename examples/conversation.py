"""A conversation about a picture: typed and spoken questions in one history, and the last answer aloud.

python examples/conversation.py runs/demo/scene.png runs/demo/question.wav answer.wav
"""

import sys
from typing import Any

from omni import Omni
from omni.audio import save_audio


def main(picture: str, question: str, out: str) -> None:
    omni = Omni.from_pretrained()
    turns: list[list[dict[str, Any]]] = [
        [{"type": "image", "image": picture}, {"type": "text", "text": "What is in the picture?"}],
        [{"type": "audio", "audio": question}],
    ]
    messages: list[dict[str, Any]] = []
    for content in turns:
        messages.append({"role": "user", "content": content})
        reply = omni.chat(messages)
        messages.append({"role": "assistant", "content": reply.text})
        print(reply.text)
    speech = omni.say(messages[-1]["content"], "kathleen")
    save_audio(out, speech.waveform, speech.sample_rate_hz)
    print(f"{out}: {speech.duration_s:.2f} s")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
