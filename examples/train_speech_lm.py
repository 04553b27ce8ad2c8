"""Train a speech LM on pairs of sound and text.

    python examples/train_speech_lm.py MANIFEST --codec checkpoints/codec_tiny --out runs/speech-lm
    python examples/train_speech_lm.py MANIFEST --snac hubertsiuzdak/snac_24khz --out runs/speech-lm

MANIFEST has rows {"audio", "text"}. The codec is our own, or SNAC by its hub name or from a local folder. The text tokenizer is trained on the
manifest's texts, unless --tokenizer names one. One text in twenty is kept for validation, whoever reads it.
"""

import argparse
from pathlib import Path

from torch.utils.data import DataLoader

from omni import MultimodalPretrainingConfig, MultimodalPretrainingTrainer
from omni.audio_tokenizers import CodecTokenizer, SNACTokenizer
from omni.data.manifests import open_rows
from omni.data.split import held_out
from omni.speech_lm import MultimodalDataset
from omni.tokenizer import BPETokenizer, train_tokenizer

VALIDATION = 0.05


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    sounds = parser.add_mutually_exclusive_group(required=True)
    sounds.add_argument("--codec", help="folder of a model that has a codec")
    sounds.add_argument("--snac", help="hub name or local folder")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.model")
    parser.add_argument("--out", type=Path, default=Path("runs/speech-lm"))
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    audio_tokenizer = CodecTokenizer.from_pretrained(chosen.codec) if chosen.codec else SNACTokenizer(chosen.snac)
    manifest = open_rows(chosen.manifest, ("audio", "text"))
    rows = [row | {"audio": str(manifest.path(row["audio"]))} for row in manifest]
    sides: tuple[list, list] = [], []
    for row in rows:
        sides[held_out(row["text"], VALIDATION)].append(row)
    path = chosen.tokenizer or chosen.out / "text.model"
    if chosen.tokenizer is None and not path.exists():
        train_tokenizer((row["text"] for row in sides[0]), vocab_size=512, path=path)
    text_tokenizer = BPETokenizer(path)

    config = MultimodalPretrainingConfig(batch_size=chosen.batch_size, max_steps=chosen.max_steps, output_dir=str(chosen.out))
    config.audio_sample_rate = audio_tokenizer.sample_rate_hz
    config.audio_weight = 2.0  # a target of speaking counts twice, one of hearing a tenth
    train_data, val_data = (
        MultimodalDataset(side, text_tokenizer, audio_tokenizer, max_audio_duration=config.max_audio_duration) for side in sides
    )
    train_loader = DataLoader(train_data, batch_size=chosen.batch_size, shuffle=True, collate_fn=train_data.collate)
    val_loader = DataLoader(val_data, batch_size=chosen.batch_size, collate_fn=val_data.collate)
    model, metrics = MultimodalPretrainingTrainer(config).train(train_loader, val_loader)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {chosen.out}: {metrics}")


if __name__ == "__main__":
    main()
