"""Both systems in one table: writes the part of docs/speech-lm.md between its marks from the results of `muomni eval speech-lm`, `tts` and `asr`,
from what both checkpoints tell of their training, and from the short runs that differ in the optimizer (benchmarks/curves.py).

    python benchmarks/speech_lm_report.py results/speech-lm.json --tts results/tts.json --asr results/asr.json \\
        --optimizers docs/speech-lm-optimizers.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from speech_report import percent, table

from omni.checkpoint import CONFIG
from omni.config import DEFAULT_CHECKPOINT, DEFAULT_SPEECH_LM, preset
from omni.evaluation.judge import WHISPER_BASE
from omni.evaluation.sentences import LENGTHS
from omni.omni_model import OmniModel
from omni.parameters import count

PAGE = Path("docs/speech-lm.md")
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
MOST_WER, LEAST_WER_OF_ANOTHER = 0.5, 0.9  # with its own text or clip, and with another's

Result = dict[str, Any]


def speaking(lm: Result, tts: Result | None) -> Iterator[str]:
    """Every voice: what Whisper base hears of both systems, and of the speech LM against another text."""
    yield "Held-out sentences, said aloud: errors in % with 95 % intervals, heard by Whisper base\n"
    rows = []
    for voice, metrics in lm["metrics"]["speaking"].items():
        systems = {"speech LM": metrics, "speech LM, another text": lm["baselines"]["speaking"][voice]["swapped_text"]}
        if tts is not None and voice in tts["metrics"]:
            same_items(voice, metrics, tts["metrics"][voice])
            systems["μOmni"] = tts["metrics"][voice]["talker"]
            systems |= {name.replace("_", " "): row for name, row in tts["ceilings"][voice].items() if name == "recordings"}
        for name, row in systems.items():
            cells = [voice, name]
            for length in LENGTHS:
                found = row.get(length)
                heard = found and found[WHISPER_BASE]
                cells += [str(found["items"]) if found else "", percent(heard, "wer"), percent(heard, "cer")]
            rows.append(cells)
    yield from table(["voice", "", "short", "WER", "CER", "long", "WER", "CER"], rows)
    cut = ", ".join(f"{metrics['cut']} as {voice}" for voice, metrics in lm["metrics"]["speaking"].items())
    yield f"Clauses of the speech LM that were not over at the most frames that their text may take: {cut}.\n"


def same_items(who: str, lm: Result, omni: Result) -> None:
    """Figures stand beside each other only if they are of the same items."""
    if lm["items"] != omni["items"]:
        raise SystemExit(f"{who}: the speech LM was measured on {lm['items']} items, μOmni on {omni['items']}; measure both on all")


def hearing(lm: Result, asr: Result | None) -> Iterator[str]:
    """Every reader: what both systems write of the same clips."""
    yield "Held-out clips, written down: errors in % with 95 % intervals\n"
    rows = []
    for reader, metrics in lm["metrics"]["hearing"].items():
        systems = {"speech LM": metrics, "speech LM, another clip": lm["baselines"]["hearing"][reader]["shuffled_audio"]}
        if asr is not None and reader in asr["metrics"]:
            same_items(reader, metrics, asr["metrics"][reader])
            systems |= {
                f"μOmni, {how}": asr["metrics"][reader][how] for how in ("greedy", "beam_unread") if asr["metrics"][reader].get(how)
            }
        systems |= {f"Whisper base on {name}": row for name, row in lm["ceilings"]["hearing"][reader].items()}
        rows += [[reader, name, str(metrics["items"]), percent(row, "wer"), percent(row, "cer")] for name, row in systems.items()]
    yield from table(["reader", "", "clips", "WER", "CER"], rows)


def amounts(lm: Result, checkpoints: Iterable[Path]) -> Iterator[str]:
    """Of every part of both systems its parameters, and the speech and time that trained it."""
    trained, unrecorded = {}, set()
    for folder in checkpoints:
        about = json.loads((folder / CONFIG).read_text())["extra"]
        trained |= {record["step"]: record for record in about["training"]}
        unrecorded |= set(about.get("unrecorded", ()))
    with torch.device("meta"):
        model = OmniModel(preset("release"))
    parts = {
        "speech LM: says and hears": (lm["metrics"]["parameters"], ("speech-lm",)),
        "μOmni's audio encoder: hears": (
            count(model.audio_encoder),
            ("audio", "audio-natural", "audio-more", "audio-spliced", "audio-told"),
        ),
        "μOmni's Talker: says": (count(model.talker), ("talker", "talker-tuned")),
        "μOmni's Thinker: its states are the Talker's": (
            count(model.thinker),
            ("text", "chat", "sft", "sft-seeing", "sft-hearing", "sft-remembering"),
        ),
        "codec and vocoder, of both": (count(model.codec) + count(model.vocoder), ("codec", "vocoder")),
    }
    rows = []
    for name, (parameters, steps) in parts.items():
        found = [trained[step] for step in steps if step in trained]
        row = ["", "", ""]
        if found:
            if lost := [step for step in steps if step in unrecorded]:
                name += f" (without {', '.join(lost)}, whose record is lost)"
            hours = max(step["data"].get("hours", 0) for step in found)
            row = [f"{hours:.1f}" if hours else "", f"{sum(s['steps'] for s in found):,}", f"{sum(s['seconds'] for s in found) / 3600:.1f}"]
        rows.append([name, f"{parameters:,}", *row])
    yield from table(["part", "parameters", "hours of speech in an epoch, with repetitions", "updates", "hours of training"], rows)
    paces = [row["real_time_factor"] for row in lm["metrics"]["speaking"].values()]
    yield f"The speech LM takes {max(paces):.2f} s for a second of speech, many sentences at once.\n"


def bounds(lm: Result) -> Iterator[str]:
    """Every voice, length and reader: whether errors are few with its own text or clip, and many with another's."""
    yield "What it has to keep: WER in %\n"
    rows = []

    def add(what: str, own: Result, other: Result) -> None:
        for name, wer, kept in (
            (f"at most {100 * MOST_WER:.0f}", own["wer"], own["wer"] <= MOST_WER),
            (f"over {100 * LEAST_WER_OF_ANOTHER:.0f} with another's", other["wer"], other["wer"] > LEAST_WER_OF_ANOTHER),
        ):
            rows.append([what, name, f"{100 * wer:.1f}", "yes" if kept else "**no**"])

    for voice, metrics in lm["metrics"]["speaking"].items():
        another = lm["baselines"]["speaking"][voice]["swapped_text"]
        for length in LENGTHS:
            if length in metrics:
                add(f"says as {voice}, {length}", metrics[length][WHISPER_BASE], another[length][WHISPER_BASE])
    for reader, metrics in lm["metrics"]["hearing"].items():
        add(f"hears {reader}", metrics, lm["baselines"]["hearing"][reader]["shuffled_audio"])
    yield from table(["", "bound", "WER", "kept"], rows)


def optimizers(curves: Result) -> Iterator[str]:
    """When the run with Muon reaches the loss at which the best one with AdamW alone ends."""
    losses = {name: step["curves"]["validation/loss"] for name, step in curves["steps"].items()}
    muon = losses.pop("speech-lm-muon")
    best = min(losses, key=lambda name: losses[name][-1][1])
    last, goal = losses[best][-1]
    reached = next((step for step, loss in muon if loss <= goal), None)
    when = f"has after {reached:,}" if reached is not None else f"does not reach in {muon[-1][0]:,}"
    rates = ", ".join(name.rpartition("-")[2] for name in losses)
    yield (
        f"AdamW alone, at the best of {len(losses)} learning rates ({rates}: {best.rpartition('-')[2]}), ends its {last:,} updates at a validation loss of "
        f"{goal:.3f}, which Muon {when} ([curves](speech-lm-optimizers.svg)).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech_lm", type=Path)
    for name in ("tts", "asr", "optimizers"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--checkpoints", type=Path, nargs="+", default=[Path(DEFAULT_CHECKPOINT), Path(DEFAULT_SPEECH_LM)])
    parser.add_argument("--page", type=Path, default=PAGE)
    chosen = parser.parse_args()
    lm, tts, asr, curves = (
        json.loads(path.read_text()) if path is not None else None for path in (chosen.speech_lm, chosen.tts, chosen.asr, chosen.optimizers)
    )
    lines = [
        *amounts(lm, chosen.checkpoints),
        *speaking(lm, tts),
        *hearing(lm, asr),
        *bounds(lm),
        *(optimizers(curves) if curves is not None else ()),
    ]
    before, mark, rest = chosen.page.read_text(encoding="utf-8").partition(BEGIN)
    if not mark:
        raise SystemExit(f"{chosen.page}: has no line {BEGIN.strip()!r} to write behind")
    chosen.page.write_text(before + BEGIN + "\n".join(lines) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
