"""`muomni data …`: fetch, make and measure data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from omni.cli.output import note, print_json
from omni.config import RunConfig, apply_overrides, parse, read_json
from omni.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add `data`."""
    group = typer.Typer(help="Fetch, make and measure data sets.", no_args_is_help=True)
    group.command("get")(get)
    group.command("list")(list_sources)
    group.command("pocket")(pocket)
    group.command("voices")(voices)
    group.command("plan")(plan)
    app.add_typer(group, name="data")


def get(
    name: Annotated[str, typer.Argument(help="a data set of `muomni data list`, or all")],
    out: Annotated[Path, typer.Option(help="the data folder")] = Path("data"),
    source: Annotated[Path | None, typer.Option(help="take it from this folder of the same layout instead of its public home")] = None,
) -> None:
    """Fetch public data and verify what it holds. What is there already is verified and left alone; interrupted, it continues."""
    from omni.data import sources

    if name == "all":
        sources.get_all(out, source=source, on_progress=note)
    else:
        sources.get(name, out, source=source, on_progress=note)


def list_sources() -> None:
    """The public data sets that `muomni data get` fetches, with their licences and homes."""
    from omni.data.sources import SOURCES

    for found in SOURCES.values():
        print(f"{found.name:10} {found.size:28} {found.about}\n{'':10} {found.licence}; {' and '.join(map(str, found.homes))}")


def pocket(
    out: Annotated[Path, typer.Option(help="folder to make it in")],
    size: Annotated[str, typer.Option(help="how much of it: nano, tiny or release")] = "tiny",
    seed: Annotated[int, typer.Option(help="another seed is another world")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
) -> None:
    """Generate the pocket world: text, pictures, speech and conversations. Interrupted, the same command continues."""
    from omni.data.worlds.pocket import generate_pocket

    generate_pocket(out, size, seed=seed, workers=workers, on_progress=note)


def voices(
    data: Annotated[Path, typer.Option(help="folder of `muomni data get`: its texts are what is said")] = Path("data"),
    out: Annotated[Path, typer.Option(help="folder to make them in")] = Path("runs/release/voices"),
    engine: Annotated[list[str] | None, typer.Option(help="only these engines")] = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="the voices and sentences for measuring, not those for training")] = False,
    questions: Annotated[
        bool, typer.Option("--questions", help="questions about pictures of the generated world, into OUT/questions")
    ] = False,
) -> None:
    """Let speech synthesizers read sentences of the data, for recipe release. Interrupted, the same command continues."""
    from omni.data.worlds import voices

    if questions:
        known: Sequence[str] = tuple(voices.ASKING_VOICES) if held_out else tuple(voices.QUESTION_TAKES)
        out = out / "questions"
    else:
        known = tuple(voices.HELD_OUT_CLIPS if held_out else voices.TRAINING_CLIPS)
    for name in engine or known:
        if name not in known:
            raise ConfigError(f"no engine {name!r}; known: {', '.join(known)}")
        if questions:
            clips = voices.question_clips(_questions(held_out), name, held_out=held_out)
        else:
            clips = voices.held_out_clips(data, name) if held_out else voices.training_clips(data, name, out)
        voices.synthesize(clips, out, data, note)


def _questions(held_out: bool) -> list[str]:
    """What the suite `omni` asks, or what training pictures may be asked and is not held out."""
    if held_out:
        from omni.evaluation.scenes import asked_scenes

        return sorted({asked.first.question for asked in asked_scenes()})
    from omni.data.split import held_out as is_held_out
    from omni.data.worlds.pocket import HELD_OUT_FRACTION
    from omni.data.worlds.questions import question_texts
    from omni.data.worlds.scenes import SEEN_COMBINATIONS

    return [text for text in question_texts(SEEN_COMBINATIONS) if not is_held_out(text, HELD_OUT_FRACTION)]


def plan(
    sources: Annotated[list[str], typer.Argument(help="manifests (.jsonl, .csv, .parquet) or Hugging Face data sets")],
    config: Annotated[Path | None, typer.Option(help="run configuration (JSON) to write into; made if it does not exist")] = None,
    stage: Annotated[str | None, typer.Option(help="stage that the data is for; default: the configuration's")] = None,
    preset: Annotated[str | None, typer.Option(help="model size; default: the configuration's, or tiny")] = None,
    epochs: Annotated[float, typer.Option(min=0.0, help="passes over the data")] = 1.0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="sequences per step; default: the configuration's")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model to count in; default: one trained on a sample")] = None,
    skip_text_tokenization: Annotated[bool, typer.Option(help="do not count tokens, take --assume-text-tokens")] = False,
    assume_text_tokens: Annotated[int | None, typer.Option(min=1, help="tokens of the whole data set")] = None,
    dry_run: Annotated[bool, typer.Option(help="print only")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as one JSON object")] = False,
) -> None:
    """Measure data and write the steps, warm-up and vocabulary that fit it into a configuration. Interrupted, it continues."""
    from omni.checkpoint import write_json
    from omni.data import plan as planning

    if skip_text_tokenization != (assume_text_tokens is not None):
        raise ConfigError("--skip-text-tokenization and --assume-text-tokens N go together")
    if config is None and not dry_run:
        raise ConfigError("--config names the file to write into; without it, use --dry-run")
    raw = read_json(config) if config is not None and config.exists() else {"out_dir": f"runs/{config.stem if config else stage}"}
    if not isinstance(raw, dict):
        raise ConfigError(f"{config}: expected an object of settings")
    flags: dict[str, Any] = {"stage": stage, "preset": preset, "train.batch_size": batch_size}
    raw = apply_overrides(raw, [f"{name}={value}" for name, value in flags.items() if value is not None])
    if "stage" not in raw:
        raise ConfigError(f"which stage is the data for? Name it with --stage: {', '.join(planning.FIELDS)}")
    run = parse(RunConfig, raw, str(config or "the flags"))
    work = None if config is None or dry_run else config.with_name(f".{config.name}.plan")
    found = planning.plan(sources, run, epochs=epochs, tokenizer=tokenizer, assume_text_tokens=assume_text_tokens, work=work)
    if config is not None and not dry_run:
        raw = apply_overrides(raw, planning.settings(found, sources))
        parse(RunConfig, raw, str(config))
        config.parent.mkdir(parents=True, exist_ok=True)
        write_json(config, raw)
        note(f"wrote {config}")
    if as_json:
        print_json(vars(found))
    else:
        for name, value in vars(found).items():
            print(f"{name:14} {value}")
