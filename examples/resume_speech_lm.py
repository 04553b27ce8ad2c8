"""Continue a run of examples/train_speech_lm.py: the same data, tokenizers and folder, and more steps.

    python examples/resume_speech_lm.py MANIFEST --codec checkpoints/codec_tiny --out runs/speech-lm --max-steps 2000

Weights, optimizers, schedule, random numbers and the place in the data are those of the run's newest checkpoint, so that a run that was killed
ends with the same bits as one that was not.
"""

from train_speech_lm import arguments, main

from omni.checkpoint import latest

if __name__ == "__main__":
    folder = arguments().out
    if latest(folder) is None:
        raise SystemExit(f"{folder}: no checkpoint there; start with examples/train_speech_lm.py")
    main()
