"""`muomni train STAGE --config FILE` runs one stage; `muomni train RECIPE --preset NAME` goes from nothing to a model that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omni.cli.generate import is_speech_lm
from omni.config import STAGES as STAGE_NAMES
from omni.config import load_run
from omni.errors import ConfigError

if TYPE_CHECKING:
    from omni.evaluation.pocket import WorldResults

FLAGS = {"pocket": ("preset", "out", "seed", "judge"), "release": ("stage", "data", "out", "seed", "publish", "model")}
RECIPES = tuple(FLAGS)
SETTINGS = "its settings are in the file of --config, or dotted (out_dir=…, train.seed=…)"


def register(app: typer.Typer) -> None:
    """Add `train` and `assemble`."""
    app.command("train")(train)
    app.command("assemble")(assemble)


def train(
    target: Annotated[str, typer.Argument(help=f"a stage ({', '.join(STAGE_NAMES)}) or a recipe ({', '.join(RECIPES)})")],
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted settings of a stage, such as train.steps=100")] = None,
    config: Annotated[Path | None, typer.Option(help="run configuration of a stage (JSON)")] = None,
    preset: Annotated[str | None, typer.Option(help="model size of recipe pocket; default tiny")] = None,
    stage: Annotated[str | None, typer.Option(help="one stage of recipe release")] = None,
    data: Annotated[Path | None, typer.Option(help="folder of `muomni data get`, for recipe release; default data")] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of a recipe's data, runs and model; default runs/pocket-PRESET, runs/release")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of a recipe; default 0")] = None,
    judge: Annotated[
        Path | None, typer.Option(help="recipe pocket: another environment than this one that has the speech recognizer")
    ] = None,
    publish: Annotated[Path | None, typer.Option(help="write what recipe release has trained into this folder, in bfloat16")] = None,
    model: Annotated[str | None, typer.Option(help="with --publish: omni, or speech-lm: the second system; default omni")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as one JSON object")] = False,
) -> None:
    """Train a stage or a recipe. Interrupted, the same command continues from the last checkpoint."""
    flags = {"preset": preset, "stage": stage, "data": data, "out": out, "seed": seed, "judge": judge, "publish": publish, "model": model}
    if (config is not None or overrides) and target in RECIPES:
        raise ConfigError(f"recipe {target} takes no --config and no dotted settings; these belong to a stage")
    if target in (*RECIPES, *STAGE_NAMES):
        useless = [f"--{name}" for name, value in flags.items() if value is not None and name not in FLAGS.get(target, ())]
        if useless:
            raise ConfigError(f"train {target} takes no {', '.join(useless)}; {SETTINGS if target in STAGE_NAMES else 'see --help'}")
    if target == "release":
        train_release(stage, data or Path("data"), out or Path("runs/release"), seed or 0, publish, model or "omni", as_json)
    elif target == "pocket":
        preset = preset or "tiny"
        train_pocket(preset, out or Path("runs") / f"pocket-{preset}", seed or 0, judge, as_json)
    elif target in STAGE_NAMES:
        if config is None:
            raise ConfigError(f"stage {target} needs --config FILE, for example one from configs/")
        train_stage(target, config, overrides or [], as_json)
    else:
        raise ConfigError(f"no stage or recipe {target!r}; stages: {', '.join(STAGE_NAMES)}; recipes: {', '.join(RECIPES)}")


def assemble(
    folders: Annotated[
        list[Path], typer.Argument(help="folders of stages, in their order: of a part that several have, the last one's counts")
    ],
    out: Annotated[Path, typer.Option(help="folder of the model")],
) -> None:
    """Put the parts that stages have trained together: one folder that every command takes as its --ckpt."""
    from omni.cli.output import note
    from omni.stages import recipes

    model = recipes.assemble(folders, out)
    note(f"wrote {out}: {', '.join(model.components)}")


def train_stage(stage: str, config: Path, overrides: list[str], as_json: bool = False) -> None:
    """Run the stage that `config` describes; it must be `stage`."""
    from omni.cli.output import print_json
    from omni.stages import STAGES
    from omni.training.trainer import train as run_training

    run = load_run(config, overrides)
    if run.stage != stage:
        raise ConfigError(f"{config}: its stage is {run.stage!r}, but {stage!r} was asked for")
    result = run_training(STAGES[run.stage](run))
    if as_json:
        print_json({"stage": stage, "folder": run.out_dir, "steps": result.steps, "seconds": result.seconds, "metrics": result.metrics})


def train_release(stage: str | None, data: Path, out: Path, seed: int, published: Path | None, model: str, as_json: bool = False) -> None:
    """Run one stage of recipe release, or publish what is trained."""
    from omni.cli.output import note, print_json
    from omni.stages.release import STAGES, publish, publish_speech_lm, train_step

    if (stage is None) == (published is None):
        raise ConfigError(f"recipe release takes either --stage ({', '.join(STAGES)}), one at a time, or --publish FOLDER")
    if stage is not None:
        row = train_step(stage, data, out, seed)
        if as_json:
            print_json(row)
    elif published is not None:
        (publish_speech_lm if is_speech_lm(model) else publish)(out, published)
        note(f"wrote {published}")


def train_pocket(preset: str, out: Path, seed: int, judge: Path | None = None, as_json: bool = False) -> None:
    """Run the pocket recipe, measure what it made, and print its tables."""
    import time
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from omni.cli.bench import machine
    from omni.cli.output import make_folder, note, print_json
    from omni.errors import DataError
    from omni.evaluation.judge import WHISPER_BASE, find_judge
    from omni.evaluation.pocket import PROMISED, evaluate_world
    from omni.inference.omni import Omni
    from omni.stages.recipes import StageSummary, run_pocket

    console = Console(stderr=True)
    make_folder(out)
    listener, unjudged = None, ""
    try:
        listener = find_judge(WHISPER_BASE, judge)
    except DataError as error:
        unjudged = str(error)
        note(f"notice: its speech will go unjudged: {unjudged}")
    stages = run_pocket(preset, out, seed=seed, on_event=lambda text: console.print(text, highlight=False))
    start = time.monotonic()
    found = evaluate_world(Omni.from_pretrained(out), out / "data", listener)
    stages = [*stages, StageSummary("measuring", time.monotonic() - start, 0, {})]
    minutes = sum(row.seconds for row in stages) / 60
    if as_json:
        about = {"recipe": "pocket", "preset": preset, "folder": str(out), "machine": machine(), "minutes": round(minutes, 1)}
        print_json(about | {"stages": [vars(row) for row in stages], "measured": asdict(found)})
    else:
        table = Table("stage", "steps", "minutes", "held out", title=f"pocket, preset {preset}: {out}")
        for row in stages:
            scores = "  ".join(f"{k} {v:.3f}" for k, v in row.metrics.items())
            table.add_row(row.stage, str(row.steps or ""), f"{row.seconds / 60:.1f}", scores)
        table.add_row("all", "", f"{minutes:.1f}", "")
        Console().print(table)
        show_world(found, PROMISED.get(preset, {}))
    if unjudged:
        note(f"notice: its speech went unjudged: {unjudged}; after that, the same command only measures")


def show_world(found: WorldResults, promised: dict[str, tuple[str, float]]) -> None:
    """Print what was measured of a pocket model beside what its preset has `promised`, and the answers by kind of question."""
    from rich.console import Console
    from rich.table import Table

    from omni.evaluation.pocket import measured

    table = Table("measured", "items", "", "95 %", *(("bound", "kept") if promised else ()))
    for row in measured(vars(found), promised):
        table.add_row(*(row if promised else row[:4]))
    Console().print(table)
    table = Table("kind of question", "items", "typed", "95 %", "spoken", "95 %", title="unseen scenes: right")
    typed, spoken = (found.scenes[name]["by_kind"] for name in ("typed", "spoken"))
    for kind, row in typed.items():
        cells = [cell for side in (row, spoken[kind]) for cell in (f"{side['share']:.0%}", _range(side["share_95"]))]
        table.add_row(kind, str(row["items"]), *cells)
    Console().print(table)


def _range(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:.0%} to {high:.0%}"
