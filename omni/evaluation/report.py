"""What was measured, for readers: RESULTS.md, and the model card in the checkpoint's folder. Both follow from what `muomni eval all` wrote.

    python -m omni.evaluation.report [results/omni-tiny.json]

What `muomni train pocket --json` wrote into results/pocket-tiny.json is told in the end of RESULTS.md.

A figure whose name ends in `_95`, or an `interval` beside a `share`, is the 95 % interval of the one without."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni.checkpoint import load_model
from omni.config import RELEASE, read_json
from omni.data.sources import SOURCES
from omni.errors import ConfigError, OmniError
from omni.evaluation.pocket import PROMISED, measured
from omni.evaluation.text import TEMPERATURE, TOP_P
from omni.evaluation.tts import REPEATED, REPLY_WORDS

RESULTS, POCKET, REPORT = Path(f"results/{RELEASE}.json"), Path("results/pocket-tiny.json"), Path("RESULTS.md")
COMMAND = "python -m omni.evaluation.report"

Row = dict[str, Any]


@dataclass(frozen=True)
class Headline:
    """A figure that counts: what it says, where it is in the results (names by dots), and the bound that it has to keep: `least` or `most`."""

    text: str
    path: str
    least: float | None = None
    most: float | None = None

    def bound(self) -> str:
        """ "≥ 0.8"."""
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}" if self.most is not None else ""

    def kept(self, value: float) -> str:
        """Whether `value` does."""
        if self.least is None and self.most is None:
            return ""
        return "yes" if (self.least is None or value >= self.least) and (self.most is None or value <= self.most) else "**no**"


HEARD_BEFORE = """The audio encoder has heard the speakers of festival's voices kal and slt early in its training, through another engine; where
they are measured they have rows of their own. None of those who ask was heard in training: festival's ked, Kokoro-82M's eric and isabella,
espeak-ng's Reed, linda and paul; to decide how to go on, development listened to ked alone, about other scenes."""
OMNI, FORGOTTEN = "suites.omni.metrics", "forgetting"
HEADLINES = (
    Headline("spoken question about an unseen scene, spoken answer: right as Whisper base hears it", f"{OMNI}.heard.share", least=0.8),
    Headline("… whole sentence right", f"{OMNI}.heard.exact"),
    Headline("… the same answers as text", f"{OMNI}.read.share", least=0.92),
    Headline("… the same questions typed", f"{OMNI}.typed.share"),
    Headline("… the worst voice that asks, points under typed", f"{OMNI}.most_points_under_typed", most=5),
    Headline("… another scene's picture, typed", "suites.omni.baselines.swapped.share"),
    Headline("… no picture (which it has learned to say)", "suites.omni.baselines.withheld.share"),
    Headline("… commonest answer of the kind of question", "suites.omni.baselines.majority.share"),
    Headline("… commonest answer to the same words about other scenes", "suites.omni.baselines.same_words.share"),
    Headline("… the right answers said, as heard (ceiling)", "suites.omni.ceilings.right_answers_heard.share"),
    Headline("captions of unseen scenes: F1 of things with all their attributes", f"{OMNI}.captions.things_f1", least=0.9),
    Headline("NLVR statements, true or false, held out", f"{OMNI}.statements.accuracy"),
    Headline("… majority", "suites.omni.baselines.statements.majority.accuracy"),
    Headline("transcription by the Thinker, real reader: WER", f"{OMNI}.transcription.wer"),
    Headline("… by CTC: WER", "suites.omni.baselines.transcription.ctc.wer"),
    Headline("text: bits per byte of held-out dialogues", "suites.text.metrics.dialogues_dev.bits_per_byte"),
    Headline("… share of a 5-gram's", "suites.text.baselines.5-gram.dialogues_dev.checkpoint_share", most=0.9),
    Headline("… share of a plain GPT's", "suites.text.baselines.plain_gpt.dialogues_dev.checkpoint_share", most=1),
    Headline("… of stories", "suites.text.metrics.stories.bits_per_byte"),
    Headline("… share of a 5-gram's", "suites.text.baselines.5-gram.stories.checkpoint_share", most=0.9),
    Headline("… share of a plain GPT's", "suites.text.baselines.plain_gpt.stories.checkpoint_share", most=1),
    Headline("hearing: WER of CTC on a real reader", "suites.asr.metrics.kathleen.greedy.wer", most=0.2),
    Headline("… with the Thinker as language model", "suites.asr.metrics.kathleen.beam.wer"),
    Headline("… unseen synthetic voices", "suites.asr.metrics.voices.greedy.wer", most=0.15),
    Headline("… an unseen real reader", "suites.asr.metrics.lj.greedy.wer"),
    Headline("… seconds of sound in a second", "suites.asr.metrics.kathleen.times_real_time", least=200),
    Headline("seeing: retrieval R@1 among unseen scenes, of the caption", "suites.vision.metrics.scenes.image_to_text_r1", least=0.8),
    Headline("… of the picture", "suites.vision.metrics.scenes.text_to_image_r1", least=0.8),
    Headline("… chance", "suites.vision.baselines.scenes.chance_r1"),
    Headline("… of the name of an unseen drawing", "suites.vision.metrics.drawings_unseen_drawings.image_to_text_r1"),
    Headline("… linear probe of colours", "suites.vision.metrics.probes.colour.chosen.accuracy", least=0.95),
    Headline("… of shapes", "suites.vision.metrics.probes.shape.chosen.accuracy", least=0.95),
    Headline("… of count", "suites.vision.metrics.probes.count.chosen.accuracy", least=0.85),
    Headline("… of position", "suites.vision.metrics.probes.position.chosen.accuracy", least=0.85),
    Headline("… NLVR statements by a head of its own", "suites.vision.metrics.nlvr.accuracy"),
    Headline("… majority", "suites.vision.baselines.nlvr.majority.accuracy"),
    Headline("speaking: WER of `heart`, up to 15 words", "suites.tts.metrics.heart.talker.short.whisper-base.wer"),
    Headline("… recordings", "suites.tts.ceilings.heart.recordings.short.whisper-base.wer"),
    Headline("… points over the recordings", "suites.tts.metrics.heart.over_recordings.short.whisper-base.points", most=5),
    Headline("… 16 to 30 words", "suites.tts.metrics.heart.over_recordings.long.whisper-base.points", most=8),
    Headline("… `kathleen`, up to 15 words", "suites.tts.metrics.kathleen.over_recordings.short.whisper-base.points", most=10),
    Headline("… 16 to 30 words: WER", "suites.tts.metrics.kathleen.talker.long.whisper-base.wer"),
    Headline("… `joe`, up to 15 words: WER", "suites.tts.metrics.joe.talker.short.whisper-base.wer"),
    Headline(
        "… `heart` without the Thinker's states, up to 15 words: points more",
        "suites.tts.metrics.heart.zeroed_over_talker.short.whisper-base.points",
    ),
    Headline("… 16 to 30 words", "suites.tts.metrics.heart.zeroed_over_talker.long.whisper-base.points"),
    Headline("… sentences of `heart` whose last words are not heard", "suites.tts.metrics.heart.early_stops"),
    Headline("… WER against another sentence's text", "suites.tts.baselines.heart.swapped_text.short.whisper-base.wer", least=0.8),
    Headline(f"… texts of {REPLY_WORDS} words that are cut off", "suites.tts.metrics.heart.replies.cut", most=0),
    Headline(
        f"… of {REPEATED} sentences drawn twice with one seed, how many are the same",
        "suites.tts.metrics.heart.repeated.same",
        least=REPEATED,
    ),
    Headline("codec: bits a second", "suites.codec.metrics.bits_per_second", most=1100),
    Headline("… STOI of a real reader", "suites.codec.metrics.kathleen.codec_neural.stoi", least=0.9),
    Headline("… by Griffin-Lim", "suites.codec.metrics.kathleen.codec_griffin_lim.stoi"),
    Headline("… PESQ", "suites.codec.metrics.kathleen.codec_neural.pesq", least=2.1),
    Headline("… by Griffin-Lim", "suites.codec.metrics.kathleen.codec_griffin_lim.pesq"),
    Headline("… points of WER over the recordings", "suites.codec.metrics.kathleen.codec_neural.over_recordings.points", most=4),
    Headline("… by Griffin-Lim", "suites.codec.metrics.kathleen.codec_griffin_lim.over_recordings.points"),
    Headline("first word of an answer to a spoken question of 3 s about a picture, ms", "speed.answer.first_token_ms", most=150),
    Headline("first sound of it, ms", "speed.answer.first_audio_ms", most=500),
    Headline("peak memory, MB", "speed.answer.peak_memory_mb", most=1000),
    Headline("speech: seconds of work for a second of sound", "speed.speech.real_time_factor", most=0.15),
    Headline("first sound of a sentence of ten words, ms", "speed.speech.first_audio_ms", most=200),
    Headline("streamed and whole speech differ by", "speed.speech.streamed_difference", most=1e-4),
    Headline("parameters of everything", "parameters.everything", most=25_650_000),
    Headline("weights, MB", "megabytes.folder", most=40),
    Headline("… of Talker, codec and vocoder", "megabytes.talker, codec and vocoder", most=20),
)


def find(results: Mapping[str, Any], path: str) -> Any:
    """What `path` names, None where it was not measured."""
    value: Any = results
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def items_of(results: Mapping[str, Any], path: str) -> int | None:
    """How many items are behind the figure: what is told nearest to it, but not of a suite as a whole."""
    while path.count(".") > 2:
        path = path.rpartition(".")[0]
        for name in ("items", "documents"):
            if (found := find(results, f"{path}.{name}")) is not None:
                return int(found)
    return None


def shown(value: Any) -> str:
    """A figure in a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _range(interval: Any) -> str:
    return f"{shown(interval[0])} to {shown(interval[1])}" if interval is not None else ""


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def headlines(results: Mapping[str, Any]) -> str:
    """All of them; what was not measured is said."""
    rows = []
    for line in HEADLINES:
        value = find(results, line.path)
        if value is None:
            rows.append((line.text, "", "not measured", "", line.bound(), ""))
        else:
            items = items_of(results, line.path)
            told = shown(items) if items is not None else ""
            rows.append((line.text, told, shown(value), _range(find(results, f"{line.path}_95")), line.bound(), line.kept(value)))
    return table(("Measure", "Items", "Value", "95 %", "Bound", "Kept"), rows)


def figures(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, interval or None) of every figure; lists of anything else are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from figures(value, f"{prefix}{name}.")
        elif not isinstance(value, list | tuple):
            yield prefix + name, value, values.get(f"{name}_95")


def figure_table(title: str, values: Mapping[str, Any]) -> str:
    """Of every figure; nothing if there is none."""
    rows = [(name, shown(value), _range(interval)) for name, value, interval in figures(values)]
    return table((title, "Value", "95 %"), rows) if rows else ""


def report(results: Row, pocket: Row | None = None) -> str:
    """RESULTS.md. `pocket`: what `muomni train pocket` wrote."""
    parts = [
        f"# Results of `{results['checkpoint']}`",
        f"Written by `{COMMAND}` from what `muomni eval all --json` measured on {machine(results['machine'])}.",
        headlines(results),
        HEARD_BEFORE,
        "## Nothing forgotten",
        forgetting(results),
        "## Size",
        table(("Component", "Parameters"), [(name, shown(n)) for name, n in results["parameters"].items()]),
        table(("Megabytes", ""), [(name, shown(n)) for name, n in results["megabytes"].items()]),
        "## Speed",
        figure_table("Measure", results["speed"]),
    ]
    for name, suite in results["suites"].items():
        parts.append(f"## Suite `{name}`: {suite['items']:,} items, on {machine(suite['machine'])}")
        parts += [figure_table(section.capitalize(), suite[section]) for section in ("metrics", "baselines", "ceilings")]
        if name == "text" and "samples" in suite["metrics"]:
            parts.append(samples(suite["metrics"]["samples"]))
    if pocket is not None:
        parts += _pocket(pocket)
    return "\n\n".join(filter(None, parts)) + "\n"


def _pocket(made: Row) -> list[str]:
    """The recipe's time by stage, and what its model does."""
    minutes = [(row["stage"], shown(row["steps"]) if row["steps"] else "", f"{row['seconds'] / 60:.1f}") for row in made["stages"]]
    return [
        f"## `muomni train pocket --preset {made['preset']}`: from nothing in {made['minutes']:.0f} minutes, on {machine(made['machine'])}",
        "Another model than the one above: it knows the generated world alone, and its items are of that world.",
        table(("Stage", "Updates", "Minutes"), [*minutes, ("all", "", f"{made['minutes']:.1f}")]),
        table(("Measured", "Items", "Value", "95 %", "Bound", "Kept"), measured(made["measured"], PROMISED[made["preset"]])),
    ]


def samples(said: Sequence[Mapping[str, Any]]) -> str:
    """What the model said to the prompts of the suite `text`, whole and unedited."""
    lines = [f"Unedited replies and continuations; number n is drawn with seed n (temperature {TEMPERATURE}, top-p {TOP_P})."]
    for number, sample in enumerate(said):
        prompt = [sample["prompt"]] if isinstance(sample["prompt"], str) else sample["prompt"]
        turns = [*prompt, f"**{sample['text'].strip()}**"]
        lines.append(f"{number}. {sample['kind'].capitalize()}\n\n" + "\n   >\n".join(f"   > {' '.join(turn.split())}" for turn in turns))
    return "\n\n".join(lines)


def machine(m: Mapping[str, Any]) -> str:
    """What it was measured with."""
    return f"{m['device']}, {m['threads']} {'thread' if m['threads'] == 1 else 'threads'}, torch {m['torch']}"


def flat(values: Mapping[str, Any]) -> Row:
    """Nested figures by dotted names."""
    return {name: value for name, value, _ in figures(values)}


# Of each suite: the figures that tuning must not worsen, and by which factor or by how much it may.
KEPT = {
    "text": ((".bits_per_byte",), 1.05, 0.0, "5 %"),
    "asr": ((".greedy.wer",), 1.0, 0.02, "2 points"),
    "tts": ((".talker.short.whisper-base.wer", ".talker.long.whisper-base.wer"), 1.0, 0.02, "2 points"),
}


def forgotten(before: Mapping[str, Row], after: Mapping[str, Row]) -> Row:
    """Results of suites by name, before tuning and after: name of a figure → {"before", "after", "allowed", "kept"}, and the intervals."""
    found: Row = {}
    for suite, (endings, factor, more, allowed) in KEPT.items():
        if suite in before and suite in after:
            old, new = flat(before[suite]["metrics"]), flat(after[suite]["metrics"])
            for name in old:
                if name.endswith(endings):
                    after_it = new.get(name)
                    kept = after_it is not None and after_it <= factor * old[name] + more
                    row = {"before": old[name], "after": after_it, "allowed": allowed, "kept": kept}
                    sides = (("before", before), ("after", after))
                    found[f"{suite}: {name}"] = row | {f"{side}_95": find(of[suite]["metrics"], f"{name}_95") for side, of in sides}
    return found


def forgetting(results: Row) -> str:
    """What was measured before tuning, and after."""
    rows = [
        (
            *(name, shown(row["before"]), _range(row["before_95"]), shown(row["after"]), _range(row["after_95"])),
            *(row["allowed"], "yes" if row["kept"] else "**no**"),
        )
        for name, row in results[FORGOTTEN].items()
    ]
    return (
        table(("Measure", "Before", "95 %", "After", "95 %", "Allowed", "Kept"), rows)
        if rows
        else "Nothing was given to compare with (`--before`)."
    )


def card(results: Row, about: Row) -> str:
    """The model card. `about`: what the checkpoint says of its training."""
    training, lost = about["training"], about["unrecorded"]
    hours = sum(row["seconds"] for row in training) / 3600
    wrong = find(results, "suites.asr.metrics.kathleen.greedy.wer")
    hears = f" (of a reader whom it knows it gets {wrong:.0%} of the words wrong)" if wrong is not None else ""
    steps = [(row["step"], shown(row["steps"]), f"{row['seconds'] / 3600:.1f}", _data(row["data"])) for row in training]
    sources = [(s.name, s.about, s.licence, " and ".join(map(str, s.homes))) for s in SOURCES.values()]
    return f"""# {RELEASE}

A small omni-modal model: text, pictures and speech in; text and speech out. Every weight in it was trained by this project, from random numbers:
{shown(results["parameters"]["everything"])} parameters in all, in bfloat16. Licence of the weights: Apache-2.0; the data have their own, below.

## Intended use

For learning how such models work, and as a baseline that can be trained, changed and measured on a laptop. It answers questions about
simple drawn scenes, writes down clear English speech{hears}, says English sentences in the voices {", ".join(results["voices"])}, and makes small talk about
the topics of its data.

Not for: photographs, faces, facts, advice, languages other than English, or any decision about a person. It knows a few thousand words, invents
what it does not know, and does not notice when it is wrong. What it says is synthetic: tell those who hear it.

## Measured

{headlines(results)}

Everything, with baselines, ceilings and controls, is in RESULTS.md of the project. Measured on {machine(results["machine"])}.

## Training

`muomni train release`, step by step, each on one core of a CPU or two: {hours:.1f} hours of updates
{f"without {', '.join(lost)}, of which no record is left" if lost else "in all"}. Stage E
went in several legs, told in docs/release.md of the project.

{table(("Step", "Updates", "Hours", "Data"), steps)}

## Data

{table(("Name", "What", "Licence", "Home"), sources)}

Beside these: scenes, sentences and questions that the project generates, and speech of the synthesizers espeak-ng (GPL-3.0-or-later), flite (a
licence like BSD's), piper (GPL-3.0-or-later) with the voice joe (MIT), and Kokoro-82M (Apache-2.0). About an hour of its speech is from a human
reader; the rest is synthetic, so accents, ages and noisy rooms are heard less well than the figures say. {HEARD_BEFORE}
What is measured was trained on nowhere: sentences, stories, scenes, drawings and the voices that ask are held out by one rule (docs/data.md).
"""


def _data(data: Row) -> str:
    return ", ".join(f"{shown(value)} {name}" for name, value in data.items() if not isinstance(value, dict))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    results = read_json(parser.parse_args().results)
    missing = [
        name
        for name in ("checkpoint", "fast", "limit", "machine", "voices", "parameters", "megabytes", "speed", FORGOTTEN, "suites")
        if name not in results
    ]
    if missing:
        raise ConfigError(f"the results have no {missing[0]!r}; write them with: muomni eval all --out {RESULTS}")
    if results["fast"] or results["limit"] is not None:
        raise ConfigError("the results are a quick look at some items (--fast, --limit); measure all of them: muomni eval all")
    pocket = read_json(POCKET) if POCKET.exists() else None
    REPORT.write_text(report(results, pocket), encoding="utf-8")
    folder = Path(results["checkpoint"])
    if folder.name == RELEASE and folder.is_dir():
        (folder / "README.md").write_text(card(results, load_model(folder).extra), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except OmniError as error:
        sys.exit(f"error: {error}")
