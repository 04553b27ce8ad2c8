"""Model folders and training states on disk: safetensors and JSON, never pickle.

A model folder holds `config.json`, the weights in parts of at most `part_bytes`, and the tokenizer, if the model has one:

    config.json                        {"format", "components", "model", "extra", "weights": [files],
                                       "tied": {name: the name it repeats}, "tokenizer": file or null}
    model.safetensors                  or model-00001-of-0000N.safetensors with model.safetensors.index.json
    tokenizer.model

Nothing half written is ever picked up. A folder is written under a temporary name, forced to disk and renamed. Where the folder exists
already, the new one is renamed to `.incoming` inside it, which commits it, and its files are moved up; whoever reads the folder first
finishes a move that was interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omni.config import RELEASE_ALIASES, ModelConfig, parse
from omni.errors import CheckpointError

FORMAT = 1
REPOSITORY = Path(__file__).parents[1]
PART_BYTES = 16 * 2**20 - 2**16  # a part with its header stays under 16 MiB
CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer.model", "model.safetensors.index.json"
STATE_TENSORS, STATE_VALUES = "training_state.safetensors", "training_state.json"
INCOMING = ".incoming"
_TEMPORARY = re.compile(r"^\..+\.tmp-\d+$")
_STEP = re.compile(r"^step-(\d{8,})$")


@dataclass(frozen=True)
class SavedModel:
    """What a model folder holds. `tensors` are on the CPU, in the precision they were saved in; `tokenizer` is a file."""

    folder: Path
    config: ModelConfig
    components: tuple[str, ...]
    tensors: dict[str, Tensor]
    tokenizer: Path | None
    extra: dict[str, Any] = field(default_factory=dict)


# --- writing


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write into; what is in it when the block ends appears in `folder`, all of it or nothing."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file, and a folder is to be written there")
    home = folder if folder.exists() else folder.parent
    home.mkdir(parents=True, exist_ok=True)
    temporary = home / f".{folder.name}.tmp-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if home == folder:
            _complete(folder)
            os.rename(temporary, folder / INCOMING)
            _sync(folder)
            _complete(folder)
        else:
            os.rename(temporary, folder)
            _sync(home)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _complete(folder: Path) -> None:
    """Move the files of a committed `.incoming` up, then drop the weights of the model that they replace."""
    incoming = folder / INCOMING
    if not incoming.exists():
        return
    with suppress(FileNotFoundError):  # another process may be completing the same move
        for file in sorted(incoming.iterdir()):
            os.replace(file, folder / file.name)
        incoming.rmdir()
    weights = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["weights"]
    for file in folder.glob("model*.safetensors"):
        if file.name not in weights:
            file.unlink(missing_ok=True)
    if len(weights) == 1:
        (folder / INDEX).unlink(missing_ok=True)
    _sync(folder)


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON in `path`, all of it or nothing."""
    temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)


def write_model(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    components: Sequence[str],
    tokenizer: bytes | None,
    *,
    dtype: torch.dtype | None = None,
    extra: dict[str, Any] | None = None,
    part_bytes: int = PART_BYTES,
) -> None:
    """Write the files of a model into `folder`, which the caller makes atomic; see `save_model`."""
    distinct, tied = _untie(tensors)
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in distinct.items():
        tensor = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        if filled and filled + tensor.nbytes > part_bytes:
            parts.append({})
            filled = 0
        parts[-1][name] = tensor
        filled += tensor.nbytes
    files = (
        ["model.safetensors"] if len(parts) == 1 else [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    )
    for file, part in zip(files, parts, strict=True):
        _save_tensors(part, folder / file)
    if len(parts) > 1:
        where = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        size = sum(tensor.nbytes for part in parts for tensor in part.values())
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": where})
    if tokenizer is not None:
        (folder / TOKENIZER).write_bytes(tokenizer)
    model = config.model_dump(mode="json")
    about = {"format": FORMAT, "components": list(components), "model": model, "extra": extra or {}}
    write_json(folder / CONFIG, about | {"weights": files, "tied": tied, "tokenizer": TOKENIZER if tokenizer is not None else None})


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes files that their owner alone may read


def save_model(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    components: Sequence[str],
    tokenizer: bytes | None,
    *,
    dtype: torch.dtype | None = None,
    extra: dict[str, Any] | None = None,
    part_bytes: int = PART_BYTES,
) -> None:
    """Write a model folder, all of it or nothing, over the one that may be there. Floating-point tensors are saved as `dtype` (default:
    as they are); `tokenizer` is the serialized SentencePiece model; `extra` is any JSON. A tensor above `part_bytes` has a part to
    itself."""
    with atomic_folder(Path(folder)) as temporary:
        write_model(temporary, tensors, config, components, tokenizer, dtype=dtype, extra=extra, part_bytes=part_bytes)


def _untie(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors without repetitions, and which name repeats which (tied embeddings are saved once)."""
    distinct: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if tensor.numel() and identity in first:
            tied[name] = first[identity]
        else:
            first[identity] = name
            distinct[name] = tensor
    return distinct, tied


# --- reading


def load_model(folder: str | Path) -> SavedModel:
    """The model in `folder`. Raises CheckpointError for a missing, truncated or foreign file, naming it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    _complete(folder)
    about = _read_json(folder / CONFIG)
    missing = [key for key in ("format", "components", "model", "weights") if key not in about]
    if missing:
        raise CheckpointError(f"{folder / CONFIG}: no {missing[0]!r}; it is not the config.json of a μOmni checkpoint")
    if about["format"] != FORMAT:
        raise CheckpointError(f"{folder / CONFIG}: format {about['format']!r}, and this version reads format {FORMAT}")
    config = parse(ModelConfig, about["model"], str(folder / CONFIG))
    tensors: dict[str, Tensor] = {}
    for file in about["weights"]:
        tensors |= _read_tensors(folder / file)
    for name, same in about.get("tied", {}).items():
        if same not in tensors:
            raise CheckpointError(f"{folder}: tensor {same} is missing (tied to {name})")
        tensors[name] = tensors[same]
    tokenizer = folder / about["tokenizer"] if about.get("tokenizer") else None
    if tokenizer is not None and not tokenizer.exists():
        raise CheckpointError(f"{tokenizer}: no such file; the checkpoint is incomplete")
    return SavedModel(folder, config, tuple(about["components"]), tensors, tokenizer, about.get("extra", {}))


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy `tensors` into `module`, in its own precision. Raises CheckpointError unless names and shapes are exactly the module's;
    then the module is unchanged."""
    own = module.state_dict()
    missing, unexpected = [key for key in own if key not in tensors], [key for key in tensors if key not in own]
    if missing:
        raise CheckpointError(f"{source}: tensor {missing[0]} {tuple(own[missing[0]].shape)} is missing{_and_more(missing)}")
    if unexpected:
        found = tuple(tensors[unexpected[0]].shape)
        raise CheckpointError(f"{source}: tensor {unexpected[0]} {found} is not one of this model's{_and_more(unexpected)}")
    for key, value in own.items():
        if value.shape != tensors[key].shape:
            raise CheckpointError(f"{source}: tensor {key} has shape {tuple(tensors[key].shape)}, and the model needs {tuple(value.shape)}")
    module.load_state_dict(dict(tensors))


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def shipped(name: str) -> Path:
    """The folder `name` that comes with the repository: below the working directory, or else, if it is only there, in the repository."""
    return REPOSITORY / name if not Path(name).is_dir() and (REPOSITORY / name).is_dir() else Path(name)


def default_checkpoint(name: str, advice: str) -> Path:
    """The `shipped` folder `name` of weights for whoever names none. Raises CheckpointError with `advice` how to get one."""
    folder = shipped(name)
    if not folder.is_dir():
        raise CheckpointError(f"{name}: no such checkpoint; {advice}, and name its folder with --ckpt")
    return folder


def find_checkpoint(folder: str | Path) -> Path:
    """The model folder that `folder` stands for: itself, or the best of a training run, or else its latest. Raises CheckpointError."""
    folder = Path(folder)
    for candidate in (folder, folder / "best", latest(folder)):
        if candidate is not None and candidate.is_dir():
            _complete(candidate)
            if (candidate / CONFIG).exists():
                return candidate
    found = "no such folder" if not folder.exists() else f"neither {CONFIG} nor a training run's checkpoints are there"
    make = f"train stage {RELEASE_ALIASES[folder.name]}, which makes it, or " if folder.name in RELEASE_ALIASES else ""
    raise CheckpointError(f"{folder}: {found}; {make}name the folder of a model or of a training run")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object")
    return value


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; the checkpoint is incomplete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or not safetensors ({error})") from None


# --- training states


def save_training_state(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write what a run needs to continue, beside its model, into `folder`, which the caller makes atomic."""
    _save_tensors({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, folder / STATE_TENSORS)
    write_json(folder / STATE_VALUES, dict(values))


def update_training_state(folder: Path, values: Mapping[str, Any]) -> None:
    """Replace some of the values of a saved training state, atomically."""
    write_json(folder / STATE_VALUES, _read_json(folder / STATE_VALUES) | dict(values))


def load_training_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and values of `save_training_state`. Raises CheckpointError."""
    return _read_tensors(folder / STATE_TENSORS), _read_json(folder / STATE_VALUES)


def step_folder(run_dir: Path, step: int) -> Path:
    """Where a run keeps its checkpoint of `step`."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def _steps(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    folder = run_dir / "checkpoints"
    return sorted((p for p in folder.iterdir() if _STEP.match(p.name)), key=lambda p: int(p.name[5:])) if folder.is_dir() else []


def latest(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run, from which it can resume."""
    return next(iter(reversed(_steps(run_dir))), None)


def prune(run_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints of a run."""
    for folder in _steps(run_dir)[:-keep]:
        doomed = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")  # a kill while deleting leaves nothing that looks like a checkpoint
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def clean(run_dir: Path) -> None:
    """Finish or remove what a killed run left half done. Only for a run that no other process is writing."""
    for folder in (run_dir, run_dir / "checkpoints", run_dir / "best", *_steps(run_dir)):
        if folder.is_dir():
            for path in folder.iterdir():
                if _TEMPORARY.match(path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            _complete(folder)
