"""`muomni params` counts parameters, `muomni trace` shows every tensor's shape; both from the modules themselves, without a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from omni.cli.generate import is_speech_lm
from omni.config import model_config
from omni.errors import ConfigError

Preset = Annotated[str, typer.Option(help="model size")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="a dotted model setting, such as thinker.n_experts=8")]


def register(app: typer.Typer) -> None:
    """Add `params` and `trace`."""
    app.command("params")(params)
    app.command("trace")(trace)


def params(
    preset: Preset = "tiny",
    settings: Settings = None,
    model: Annotated[str, typer.Option(help="omni, or speech-lm: the second system")] = "omni",
    as_json: Json = False,
) -> None:
    """Parameters of every component: the backbones of the documents' table, then what was added to them."""
    if is_speech_lm(model):
        _speech_lm_params(preset, settings, as_json)
        return
    import torch
    from rich.console import Console
    from rich.table import Table

    from omni.cli.output import print_json
    from omni.omni_model import OmniModel
    from omni.parameters import MEANINGS, parameter_table

    config = model_config(preset, settings)
    with torch.device("meta"):
        counts = parameter_table(OmniModel(config))
    if as_json:
        sums = {"total": counts.total, "additions": counts.additions, "grand_total": counts.grand_total}
        print_json({"preset": preset, "components": counts.components, **sums})
        return
    table = Table("component", "what", title=f"parameters of preset {preset}")
    table.add_column("parameters", justify="right")
    for rows, total, name in ((counts.components, counts.total, "backbones"), (counts.additions, counts.grand_total, "everything")):
        for component, n in rows.items():
            table.add_row(component, MEANINGS[component], f"{n:,}")
        table.add_section()
        table.add_row(name, "", f"{total:,}", style="bold")
        table.add_section()
    Console().print(table)


def _speech_lm_params(preset: str, settings: list[str] | None, as_json: bool) -> None:
    """What the embedding's rows and the blocks of a speech LM are."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from omni.cli.output import print_json
    from omni.speech_lm import MultimodalLLM

    with torch.device("meta"):
        model = MultimodalLLM(model_config(preset, settings).speech_lm)
    rows = model.parameter_table()
    if as_json:
        print_json({"preset": preset, "components": rows, "total": sum(rows.values())})
        return
    table = Table("what", title=f"parameters of the speech LM of preset {preset}")
    table.add_column("parameters", justify="right")
    for name, n in rows.items():
        table.add_row(name.replace("_", " "), f"{n:,}")
    table.add_section()
    table.add_row("everything", f"{sum(rows.values()):,}", style="bold")
    Console().print(table)


def trace(
    pipeline: Annotated[
        str | None, typer.Argument(help="text, image, audio, all (three media), speech or talker-training; without it every one")
    ] = None,
    preset: Preset = "tiny",
    settings: Settings = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option(help="print the tables of docs/shapes.md")] = False,
) -> None:
    """The shape of every tensor on its way through the model, beside the design document's (preset tiny)."""
    from rich.console import Console
    from rich.table import Table

    from omni.cli.output import print_json
    from omni.inference.trace import DOCUMENTED_PRESET, PIPELINES, as_markdown, reasons, spell, trace

    if pipeline is not None and pipeline not in PIPELINES:
        raise ConfigError(f"no pipeline {pipeline!r}; known: {', '.join(PIPELINES)}")
    config = model_config(preset, settings)
    compare = preset == DOCUMENTED_PRESET and not settings
    traces = {name: trace(config, name, documented=compare) for name in ([pipeline] if pipeline else PIPELINES)}
    if as_json:
        print_json({"preset": preset, "pipelines": {name: [vars(step) for step in steps] for name, steps in traces.items()}})
        return
    for name, steps in traces.items():
        if markdown:
            print(f"{as_markdown(name, steps)}\n")
            continue
        table = Table("stage", "shape", *(("document", "why it differs") if compare else ()), title=f"{name}, preset {preset}")
        for step, why in zip(steps, reasons(steps), strict=True):
            table.add_row(step.stage, spell(step.shape), *((spell(step.document), why) if compare else ()))
        Console().print(table)
