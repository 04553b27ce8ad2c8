"""`muomni data …`: make and measure data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omni.cli.output import note


def register(app: typer.Typer) -> None:
    """Add `data`."""
    group = typer.Typer(help="Make and measure data sets.", no_args_is_help=True)
    group.command("pocket")(pocket)
    app.add_typer(group, name="data")


def pocket(
    out: Annotated[Path, typer.Option(help="folder to make it in")],
    size: Annotated[str, typer.Option(help="how much of it: nano or tiny")] = "tiny",
    seed: Annotated[int, typer.Option(help="another seed is another world")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
) -> None:
    """Generate the pocket world: text, pictures, speech and conversations. Interrupted, the same command continues."""
    from omni.data.worlds.pocket import generate_pocket

    generate_pocket(out, size, seed=seed, workers=workers, on_progress=note)
