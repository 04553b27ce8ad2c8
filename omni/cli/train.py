"""`muomni train STAGE --config FILE` runs one stage; `muomni train RECIPE --preset NAME` goes from nothing to a model that answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omni.config import STAGES as STAGE_NAMES
from omni.config import load_run
from omni.errors import ConfigError

RECIPES = ("pocket",)


def register(app: typer.Typer) -> None:
    """Add `train`."""
    app.command("train")(train)


def train(
    target: Annotated[str, typer.Argument(help=f"a stage ({', '.join(STAGE_NAMES)}) or a recipe ({', '.join(RECIPES)})")],
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted settings of a stage, such as train.steps=100")] = None,
    config: Annotated[Path | None, typer.Option(help="run configuration of a stage (JSON)")] = None,
    preset: Annotated[str, typer.Option(help="model size of a recipe")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="folder of a recipe's data, runs and model; default runs/RECIPE-PRESET")] = None,
    seed: Annotated[int, typer.Option(help="seed of a recipe")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the result as one JSON object")] = False,
) -> None:
    """Train a stage or a recipe. Interrupted, the same command continues from the last checkpoint."""
    if target in RECIPES:
        if config is not None or overrides:
            raise ConfigError(f"recipe {target} takes --preset, --out and --seed; --config and dotted settings belong to a stage")
        train_recipe(preset, out or Path("runs") / f"{target}-{preset}", seed, as_json)
    elif target in STAGE_NAMES:
        if config is None:
            raise ConfigError(f"stage {target} needs --config FILE, for example one from configs/")
        train_stage(target, config, overrides or [], as_json)
    else:
        raise ConfigError(f"no stage or recipe {target!r}; stages: {', '.join(STAGE_NAMES)}; recipes: {', '.join(RECIPES)}")


def train_stage(stage: str, config: Path, overrides: list[str], as_json: bool = False) -> None:
    """Run the stage that `config` describes; it must be `stage`."""
    from omni.cli.output import print_json
    from omni.stages import STAGES
    from omni.training.trainer import train as run_training

    run = load_run(config, overrides)
    if run.stage != stage:
        raise ConfigError(f"{config}: its stage is {run.stage!r}, but {stage!r} was asked for")
    result = run_training(STAGES[stage](run))
    if as_json:
        print_json({"stage": stage, "folder": run.out_dir, "steps": result.steps, "seconds": result.seconds, "metrics": result.metrics})


def train_recipe(preset: str, out: Path, seed: int, as_json: bool = False) -> None:
    """Run the pocket recipe and print its table."""
    from rich.console import Console
    from rich.table import Table

    from omni.cli.output import print_json
    from omni.stages.recipes import run_pocket

    console = Console(stderr=True)
    rows = run_pocket(preset, out, seed=seed, on_event=lambda text: console.print(text, highlight=False))
    if as_json:
        print_json({"recipe": "pocket", "preset": preset, "folder": str(out), "stages": [vars(row) for row in rows]})
        return
    table = Table("stage", "steps", "seconds", "held out", title=f"pocket, preset {preset}: {out}")
    for row in rows:
        table.add_row(row.stage, str(row.steps), f"{row.seconds:.0f}", "  ".join(f"{k} {v:.3f}" for k, v in row.metrics.items()))
    Console().print(table)
