"""`muomni bench WHAT`: how fast, on this machine."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omni.cli.output import print_json
from omni.config import DEFAULT_CHECKPOINT

if TYPE_CHECKING:
    import torch


def register(app: typer.Typer) -> None:
    """Add `bench`."""
    bench = typer.Typer(help="Measure speed on this machine.")
    bench.command("train")(bench_train)
    bench.command("generate")(bench_generate)
    bench.command("speech")(bench_speech)
    bench.command("answer")(bench_answer)
    bench.command("serve")(bench_serve)
    app.add_typer(bench, name="bench")


def machine(on: torch.device | None = None) -> dict[str, Any]:
    """What speed depends on, of a model that is `on` a device; by default on a GPU if there is one."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.13
    cpu = capabilities.get("cpu_name") or platform.processor() or platform.machine()
    if on is None and torch.cuda.is_available():
        on = torch.device("cuda")
    device = torch.cuda.get_device_name(on) if on is not None and on.type == "cuda" else cpu
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

    omni = Omni.from_pretrained(checkpoint, device, vocoder)
    speed = measure_speech(omni, voice, rounds)
    if as_json:
        print_json({"what": "speech", "checkpoint": str(omni.folder), "machine": machine(omni.device), "metrics": vars(speed)})
        return
    parts = ", ".join(f"{stage} {ms:g}" for stage, ms in speed.stages_ms.items())
    print(f"first sound after {speed.first_audio_ms:g} ms ({parts}), {speed.words} words, {speed.vocoder} vocoder")
    print(f"first audible sample after {speed.first_audible_ms:g} ms; longest wait for a piece {speed.longest_wait_ms:g} ms")
    print(f"real-time factor {speed.real_time_factor:g}, streamed {speed.streamed_real_time_factor:g}, on {speed.audio_s:g} s of speech")
    print(f"streamed and whole differ by {speed.streamed_difference:.1e} at most; look-ahead {speed.look_ahead_ms} ms")


def bench_answer(
    image: Annotated[Path, typer.Option(help="picture that is asked about")],
    audio: Annotated[Path, typer.Option(help="spoken question, stretched with silence to three seconds")],
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", "--ckpt", help=f"model folder; default {DEFAULT_CHECKPOINT}")] = None,
    voice: Annotated[str | None, typer.Option(help="default: the model's first")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="questions, of which the median counts")] = 10,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto is a GPU if there is one")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """How soon a spoken question about a picture is answered: first word, first sound; and the most memory that it takes."""
    from omni.evaluation.speed import measure_answer
    from omni.image import load_image
    from omni.inference.omni import Omni

    omni = Omni.from_pretrained(checkpoint, device)
    speed = measure_answer(omni, load_image(image), omni.waveform(audio), voice, rounds)
    if as_json:
        print_json({"what": "answer", "machine": machine(omni.device), "metrics": vars(speed)})
        return
    print(f"{speed.reply!r}: first word after {speed.first_token_ms:g} ms, all {speed.reply_tokens} tokens after {speed.reply_ms:g} ms")
    print(f"first sound after {speed.first_audio_ms:g} ms; peak memory {speed.peak_memory_mb:g} MB")


def bench_generate(
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", "--ckpt", help=f"model folder; default {DEFAULT_CHECKPOINT}")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="how long to measure")] = 10.0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="threads of the mathematics; default: torch's; `bench serve` compares with 1")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto is a GPU if there is one")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """Tokens per second of replies one after another, and how soon the first is there."""
    import torch

    from omni.evaluation.speed import measure_generation
    from omni.inference.omni import Omni

    if threads is not None:
        torch.set_num_threads(threads)
    omni = Omni.from_pretrained(checkpoint, device)
    speed = measure_generation(omni, seconds)
    if as_json:
        print_json({"what": "generate", "checkpoint": str(omni.folder), "machine": machine(omni.device), "metrics": vars(speed)})
        return
    print(f"{speed.tokens_per_s:,.0f} tokens/s over {speed.replies} replies; first text after {speed.first_text_ms:g} ms")


def bench_serve(
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", "--ckpt", help=f"model folder; default {DEFAULT_CHECKPOINT}")] = None,
    clients: Annotated[int, typer.Option(min=1, help="clients that stream at once")] = 64,
    spoken_clients: Annotated[int, typer.Option(min=1, help="clients that are answered aloud at once")] = 8,
    seconds: Annotated[float, typer.Option(min=0.5, help="how long the many clients ask; the other measurements are shorter")] = 60.0,
    threads: Annotated[int, typer.Option(min=1, help="threads of the worker's mathematics; small models are fastest on one")] = 1,
    out: Annotated[Path | None, typer.Option(help="write the JSON into this file too")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object on standard output")] = False,
) -> None:
    """A server process on this machine under many clients: throughput beside one client's and beside none, latency, lost and wrong replies, memory."""
    from omni.inference.omni import Omni
    from omni.server.benchmark import measure_serving

    omni = Omni.from_pretrained(checkpoint, "cpu")
    speed = measure_serving(omni, clients=clients, spoken_clients=spoken_clients, seconds=seconds, threads=threads)
    result = {"what": "serve", "checkpoint": str(omni.folder), "machine": machine(omni.device), "metrics": asdict(speed)}
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if as_json:
        print_json(result)
        return
    print(
        f"in this process {speed.generate_tokens_per_s:,.0f} tokens/s, first text {speed.generate_first_text_ms:g} ms; one client {speed.alone.tokens_per_s:,.0f} ({speed.share_of_generate:.0%})"
    )
    for load in (speed.alone, speed.many):
        print(
            f"{load.clients} clients: {load.tokens_per_s:,.0f} tokens/s, first text {load.first_ms:g} ms (95 %: {load.first_ms_p95:g}), "
            f"{load.whole} of {load.asked} replies whole, {load.as_alone} as alone (largest gap {load.largest_gap:g}), memory {load.memory_mb} MB"
        )
    if speed.answer_first_audio_ms is not None:
        print(f"in this process first sound {speed.answer_first_audio_ms:g} ms")
    for load in filter(None, (speed.spoken_alone, speed.spoken)):
        print(
            f"{load.clients} spoken: {load.audio_s_per_s:g} s of sound a second, first sound {load.first_ms:g} ms, "
            f"{load.whole} of {load.asked} whole, {load.as_alone} as alone"
        )
