"""What the steps of a recipe took and how they went, from what they left in their run folders.

    python benchmarks/curves.py runs/release --steps text chat audio vision --hardware "one core of …" --out docs/training

writes docs/training.md (a table, and the picture), docs/training.svg (the curves) and docs/training.json: of every step its data, updates, seconds
and final scores, the training loss (a mean over each of 100 stretches) and every validation score. What is no longer in a run folder is told by
the checkpoint that `--ckpt` names, or stays as the JSON had it; a step of which none tells the result has a row that says so.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from omni.checkpoint import load_model

POINTS = 100
WIDTH, HEIGHT, MARGIN = 420, 240, 46
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")

Curve = list[tuple[int, float]]


def read(folder: Path) -> dict[str, Curve]:
    """Name → points (step, value) of the training loss and of every validation score."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for name in events.Tags()["scalars"]:
        if name == "train/loss" or (name.startswith("validation/") and "perplexity" not in name):
            points = [(e.step, e.value) for e in events.Scalars(name)]
            size = max(1, len(points) // POINTS)
            stretches = [points[i : i + size] for i in range(0, len(points), size)]
            curves[name] = [(s[-1][0], round(mean(v for _, v in s), 4)) for s in stretches]
    return curves


def step_of(folder: Path, known: dict[str, Any], shipped: dict[str, Any]) -> dict[str, Any]:
    """What a run folder tells of its step, or else the checkpoint that ships; the rest is `known`, unless that is of another run."""
    result = folder / "result.json"
    told = json.loads(result.read_text()) if result.exists() else shipped
    if told and any(told[name] != known.get(name) for name in ("steps", "seconds")):
        known = {}
    return known | told | ({"curves": read(folder)} if (folder / "tensorboard").exists() else {})


def panel(title: str, curves: dict[str, Curve], left: int, top: int) -> list[str]:
    """SVG of one step: every curve with at least two points (nothing if none has), from 0 to the largest value after the first tenth."""
    shown = {name: points for name, points in curves.items() if len(points) > 1}
    if not shown:
        return []
    last = max(step for points in shown.values() for step, _ in points)
    high = max(value for points in shown.values() for step, value in points if step > last / 10)
    lines = [
        f'<g transform="translate({left},{top})" font-family="sans-serif" font-size="11">',
        f'<text x="{MARGIN}" y="14">{title}</text>',
    ]
    lines.append(f'<rect x="{MARGIN}" y="24" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 64}" fill="none" stroke="#ccc"/>')
    for label, x, y, anchor in (
        (f"{high:.3g}", MARGIN - 4, 32, "end"),
        ("0", MARGIN - 4, HEIGHT - 40, "end"),
        (f"{last} updates", WIDTH - MARGIN, HEIGHT - 26, "end"),
    ):
        lines.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{label}</text>')
    for i, (name, points) in enumerate(shown.items()):
        at = [
            f"{MARGIN + step / last * (WIDTH - 2 * MARGIN):.1f},{24 + (1 - min(value / high, 1)) * (HEIGHT - 64):.1f}"
            for step, value in points
        ]
        colour = COLOURS[i % len(COLOURS)]
        lines.append(f'<polyline points="{" ".join(at)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        lines.append(f'<text x="{MARGIN + 6 + 120 * (i % 3)}" y="{HEIGHT - 12 + 12 * (i // 3)}" fill="{colour}">{name}</text>')
    return [*lines, "</g>"]


def draw(runs: dict[str, dict[str, Curve]]) -> str:
    """Two panels a row."""
    rows = -(-len(runs) // 2)
    body = [
        line for i, (name, curves) in enumerate(runs.items()) for line in panel(name, curves, WIDTH * (i % 2), (HEIGHT + 16) * (i // 2))
    ]
    size = f'width="{2 * WIDTH}" height="{rows * (HEIGHT + 16)}"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>", ""]
    )


def amount(data: dict[str, Any]) -> str:
    """What a step trained on, in words."""
    if "hours" not in data:
        return f"{data['rows']:,} rows"
    return f"{data['clips']:,} clips, {data['hours']:.1f} h with repetitions"


def page(steps: dict[str, Any], hardware: str, picture: str) -> str:
    """Markdown."""
    lines = [f"# Training log in figures\n\nEvery step ran on {hardware}. What was tried and did not help is in [log.md](log.md).\n"]
    lines += ["| Step | Data of an epoch | Updates | Hours | Validation at the end |", "|---|---|---|---|---|"]
    for name, step in steps.items():
        if "metrics" not in step:
            lines.append(f"| `{name}` | record lost | | | |")
            continue
        scores = ", ".join(f"{score} {value:.3g}" for score, value in step["metrics"].items())
        lines.append(f"| `{name}` | {amount(step['data'])} | {step['steps']:,} | {step['seconds'] / 3600:.1f} | {scores} |")
    lost = [f"`{name}`" for name, step in steps.items() if "curves" not in step]
    if lost:
        lines.append(f"\nThe curves of {', '.join(lost)} went with their run folders before they were drawn.")
    return "\n".join([*lines, "", f"![Training loss and validation scores of the steps]({picture})", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", nargs="+", required=True)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--ckpt", type=Path, help="a checkpoint that tells of steps whose run folders are gone")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out = arguments.out.with_suffix(".json")
    known: dict[str, Any] = json.loads(out.read_text())["steps"] if out.exists() else {}
    records = load_model(arguments.ckpt).extra["training"] if arguments.ckpt is not None else []
    shipped = {record["step"]: record for record in records}
    steps = {name: step_of(arguments.work / name, known.get(name, {}), shipped.get(name, {})) for name in arguments.steps}
    out.write_text(json.dumps({"hardware": arguments.hardware, "steps": steps}) + "\n")
    arguments.out.with_suffix(".svg").write_text(draw({name: step["curves"] for name, step in steps.items() if "curves" in step}))
    arguments.out.with_suffix(".md").write_text(page(steps, arguments.hardware, arguments.out.with_suffix(".svg").name))


if __name__ == "__main__":
    main()
