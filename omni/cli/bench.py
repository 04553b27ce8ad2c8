"""`muomni bench WHAT`: how fast, on this machine."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from omni.cli.output import print_json
from omni.config import DEFAULT_CHECKPOINT


def register(app: typer.Typer) -> None:
    """Add `bench`."""
    bench = typer.Typer(help="Measure speed on this machine.")
    bench.command("train")(bench_train)
    bench.command("speech")(bench_speech)
    app.add_typer(bench, name="bench")


def machine() -> dict[str, Any]:
    """What speed depends on."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.13
    cpu = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}


def bench_train(
    preset: Annotated[str, typer.Option(help="model size")] = "tiny",
    updates: Annotated[int, typer.Option(min=1, help="timed updates, after two to warm up")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="contexts in an update")] = 16,
    micro_batch_size: Annotated[int, typer.Option(min=1, help="contexts in one forward pass")] = 16,
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Tokens per second of the text stage in the real Trainer, and what fraction of the machine's matrix-product peak that is."""
    from omni.stages.benchmark import measure_training

    speed = measure_training(preset, updates=updates, batch_size=batch_size, micro_batch_size=micro_batch_size, precision=precision)
    if as_json:
        print_json({"what": "train", "machine": machine(), "metrics": {"preset": preset, **vars(speed)}})
        return
    giga = 1e9
    print(f"{speed.tokens_per_s:,.0f} tokens/s in {speed.precision} (best of {updates} updates; median {speed.median_tokens_per_s:,.0f})")
    print(f"matrix products: {speed.float32_peak / giga:,.0f} GFLOP/s in float32, {speed.bfloat16_peak / giga:,.0f} in bfloat16")
    print(f"{speed.operations_per_token / 1e6:.1f} MFLOP per token: {speed.fraction_of_peak:.0%} of the {speed.precision} peak")


def bench_speech(
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", "--ckpt", help=f"model folder; default {DEFAULT_CHECKPOINT}")] = None,
    voice: Annotated[str | None, typer.Option(help="default: the model's first")] = None,
    vocoder: Annotated[str | None, typer.Option(help="neural or griffin-lim; default: neural if the checkpoint has one")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="requests for a first sound, of which the median counts")] = 10,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto is a GPU if there is one")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """How soon a ten-word sentence begins to sound, and where that time goes; how long speech takes; whether the stream is the whole."""
    from omni.evaluation.speed import measure_speech
    from omni.inference.omni import Omni

    speed = measure_speech(Omni.from_pretrained(checkpoint, device, vocoder), voice, rounds)
    if as_json:
        print_json({"what": "speech", "machine": machine(), "metrics": vars(speed)})
        return
    parts = ", ".join(f"{stage} {ms:g}" for stage, ms in speed.stages_ms.items())
    print(f"first sound after {speed.first_audio_ms:g} ms ({parts}), {speed.words} words, {speed.vocoder} vocoder")
    print(f"real-time factor {speed.real_time_factor:g}, streamed {speed.streamed_real_time_factor:g}, on {speed.audio_s:g} s of speech")
    print(f"streamed and whole differ by {speed.streamed_difference:.1e} at most; look-ahead {speed.look_ahead_ms} ms")
