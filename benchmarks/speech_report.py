"""A page about speech from the results of `muomni eval tts` and `codec`: their tables, and spectrograms of recording, codec and Talker side by side.

    python benchmarks/speech_report.py results/tts.json results/codec.json results/codec-175.json --ckpt checkpoints/… --data data --out docs/speech

writes docs/speech.md and docs/speech.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from omni.audio import SILENCE, load_audio
from omni.evaluation.codec import codes_of, through_codec
from omni.evaluation.sentences import load_sentences
from omni.inference.omni import Omni

ROWS = 2  # sentences of each voice in the picture
LOUD = 3.0  # scaled log-mel that is drawn white
MARGIN, GAP, LABEL = 10, 12, 16  # pixels
SYSTEMS = ("recording", "codec", "Talker")
INTRODUCTION = """What speech recognizers hear in held-out sentences, up to 15 words (short) and of 16 to 30 (long): of the Talker, of the recordings
of the reader whose voice it is, and of what log-mel and codec leave of these through each vocoder; and two controls, the Talker without the
Thinker's states, and its speech against the next sentence's text. Some 32 of the sentences were listened to while the Talker was made
(docs/log.md, 2026-11-21). Words are unseen that the training text nowhere has. Below, what the codec does to real readers."""

Result = dict[str, Any]


# --- tables


def percent(row: Result | None, rate: str) -> str:
    """A rate with its interval."""
    if row is None:
        return ""
    low, high = row[f"{rate}_95"]
    return f"{100 * row[rate]:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def points(row: Result) -> str:
    """How much more, with its interval."""
    low, high = row["points_95"]
    return f"{row['points']:.1f} ({low:.1f}–{high:.1f})"


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Markdown."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def tts_tables(result: Result) -> Iterator[str]:
    """Every voice and judge: what is heard of the Talker, of its ceilings and of its controls; WER apart on the sentences that hold a word that the
    training text nowhere has, and the share of these words that was heard."""
    for voice, metrics in result["metrics"].items():
        systems = (
            {name: row for name, row in metrics.items() if name.startswith("talker")}
            | result["ceilings"][voice]
            | result["baselines"][voice]
        )
        if metrics.get("over_recordings") and metrics["talker_where_recorded"] == metrics["talker"]:
            del systems["talker_where_recorded"]
        yield f"## Voice `{voice}`\n"
        for judge in (name for name in metrics["talker"]["unseen_words"] if name != "words"):
            yield f"Errors in % with 95 % intervals, heard by {judge}\n"
            rows = []
            for name, row in systems.items():
                if not any(judge in row.get(length, {}) for length in ("short", "long")):  # not every judge hears everything
                    continue
                cells = [name.replace("_", " ")]
                for length in ("short", "long"):
                    found = row.get(length)
                    heard = found and found.get(judge)
                    cells += [str(found["items"]) if found else "", percent(heard, "wer"), percent(heard, "cer")]
                rows.append([*cells, *unseen_words(row, judge)])
            head = ["", "short", "WER", "CER", "long", "WER", "CER", "with unseen words", "WER", "unseen words", "heard"]
            yield from table(head, rows)
            for name, row in systems.items():
                for group in ("short", "long", "with_unseen_words"):
                    yield from circles(f"{name}, {group}".replace("_", " "), judge, row.get(group, {}).get(judge, {}))
        for name, compared in (
            ("over_recordings", "that its reader has recorded, points of WER over the recordings"),
            ("zeroed_over_talker", "said without the Thinker's states, points of WER over the Talker with them"),
        ):
            for length, found in metrics.get(name, {}).items():
                over = ", ".join(f"{points(found[judge])} ({judge})" for judge in found if judge != "items")
                yield f"On {found['items']} {length} sentences {compared}: {over}.\n"
        replies = metrics["replies"]
        if replies["items"]:
            ((judge, heard),) = ((name, found) for name, found in replies.items() if isinstance(found, dict))
            yield f"{replies['items']} texts of 60 words and more: of {replies['cut']} the end was not heard, WER {percent(heard, 'wer')} %.\n"
            yield from circles("Of these", judge, heard)
        twice = metrics["repeated"]
        yield (
            f"Of {metrics['items']} sentences {metrics['runaways']} ran away and of {metrics['early_stops']} the end was not heard; {twice['same']} of {twice['items']} "
            f"were the same when said twice; real-time factor {metrics['real_time_factor']}, many sentences at once.\n"
        )


def circles(what: str, judge: str, heard: Result) -> Iterator[str]:
    """A line, if the judge heard some of it in circles."""
    if heard.get("loops"):
        yield f"{what}: {judge} heard {heard['loops']} in circles; WER of the others {100 * heard['wer_without_loops']:.1f} %.\n"


def unseen_words(row: Result, judge: str) -> list[str]:
    """How many sentences (and all their words) hold words that the training text nowhere has, WER of these sentences; how many such words there
    are, and the share heard. Nothing where there are none."""
    found, words = row.get("with_unseen_words"), row["unseen_words"]
    if not found:
        return ["", "", "", ""]
    sentences = f"{found['items']} ({found['words']} words)"
    return [sentences, percent(found.get(judge), "wer"), str(words["words"]), percent(words.get(judge), "heard")]


def codec_tables(result: Result) -> Iterator[str]:
    """Every reader: what vocoders and codec leave of the recordings, and what fewer codebooks do."""
    for reader, ceilings in result["ceilings"].items():
        metrics = result["metrics"][reader]
        judges = list(ceilings["recordings"])
        yield f"## Codec of {result['metrics']['bits_per_second']:g} bit/s on reader `{reader}`\n"
        yield f"{metrics['items']} clips, what fewer codebooks do on {metrics['codebooks']['items']} of them.\n"
        systems = ceilings | {name: row for name, row in metrics.items() if name.startswith("codec_")}
        rows = [
            [
                name.replace("_", " "),
                *(f"{row[m]:.3f}" if m in row else "" for m in ("stoi", "pesq")),
                *(percent(row.get(j), "wer") for j in judges),
            ]
            for name, row in systems.items()
        ]
        yield from table(["", "STOI", "PESQ", *(f"WER %, {judge}" for judge in judges)], rows)
        for name, row in systems.items():
            if "over_recordings" in row:
                yield f"{name.replace('_', ' ')}: {points(row['over_recordings'])} points of WER over the recordings ({judges[0]}).\n"
        degraded = {k: row for k, row in metrics["codebooks"].items() if k != "items"}
        yield from table(
            ["codebooks", *degraded],
            [[name, *(f"{row[key]:.3f}" for row in degraded.values())] for name, key in (("STOI", "stoi"), ("mel L1", "mel_l1"))]
            + [[name, *(f"{value:g}" for value in metrics["usage"][name])] for name in ("used", "perplexity")],
        )


# --- picture


def spectrogram(mel: np.ndarray) -> Image.Image:
    """Scaled log-mel (T,mels) as grey picture, low frequencies below, 10 ms a pixel."""
    shade = np.clip((mel - SILENCE) / (LOUD - SILENCE), 0.0, 1.0) * 255
    return Image.fromarray(shade.T[::-1].astype(np.uint8))


def picture(omni: Omni, data: Path) -> Image.Image:
    """A row a sentence, of the first short ones that each voice's reader has read: recording, codec, Talker."""
    rows = []
    for voice in omni.voices:
        read = [(s, path) for s in load_sentences() if s.length == "short" and (path := s.recording(voice, data)) is not None]
        for sentence, path in read[:ROWS]:
            wave = load_audio(path, omni.model.config.audio.sample_rate_hz)
            coded = through_codec(omni, codes_of(omni, wave), len(wave), omni.model.vocoder)
            sounds = (wave, coded, omni.say(sentence.text, voice).waveform)
            rows.append((f"{voice}: {sentence.text}", [spectrogram(omni.log_mel(sound).numpy()) for sound in sounds]))
    widths = [max(images[column].width for _, images in rows) for column in range(len(SYSTEMS))]
    height = max(images[0].height for _, images in rows) + 2 * LABEL
    page = Image.new("L", (sum(widths) + GAP * (len(SYSTEMS) - 1) + 2 * MARGIN, len(rows) * (height + GAP) + MARGIN), 255)
    draw = ImageDraw.Draw(page)
    for number, (text, images) in enumerate(rows):
        left, top = MARGIN, MARGIN + number * (height + GAP)
        draw.text((left, top), text, fill=0)
        for name, image, width in zip(SYSTEMS, images, widths, strict=True):
            draw.text((left, top + LABEL), name, fill=90)
            page.paste(image, (left, top + 2 * LABEL))
            left += width + GAP
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tts", type=Path)
    parser.add_argument("codec", type=Path, nargs="+", help="one of every codec")
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    arguments = parser.parse_args()
    image = arguments.out.with_suffix(".png")
    picture(Omni.from_pretrained(arguments.ckpt, "cpu"), arguments.data).save(image, optimize=True)
    tts, *codecs = (json.loads(path.read_text()) for path in (arguments.tts, *arguments.codec))
    lines = [f"# Speech of `{tts['checkpoint']}`, measured\n", f"{INTRODUCTION}\n", f"![Spectrograms]({image.name})\n", *tts_tables(tts)]
    for codec in codecs:
        lines += codec_tables(codec)
    arguments.out.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
