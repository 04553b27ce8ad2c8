"""How well a model sees: retrieval among unseen scenes and drawings, linear probes of what the encoder knows, and NLVR.

N pictures  d encoder width  P patches  E embedding size"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from omni.data.collate import lengths_of, pad_ids
from omni.data.release import DRAWINGS, drawing_rows
from omni.data.worlds.questions import caption
from omni.data.worlds.scenes import ALL_COMBINATIONS, SEEN_COMBINATIONS, Scene, random_scene, render
from omni.errors import DataError
from omni.evaluation.metrics import chance_at, hits_at, rounded_ratio, spread
from omni.evaluation.nlvr import evaluate_nlvr
from omni.evaluation.probes import evaluate_probes
from omni.image import load_image, to_pixels
from omni.inference.omni import Omni

log = logging.getLogger(__name__)

SCENES = 1_000
SEED = "unseen scenes of the vision suite"  # no training draws from it
BATCH = 32
NEEDED = ("thinker", "vision_encoder", "contrastive")

T = TypeVar("T")


def unseen_scenes(n: int) -> list[Scene]:
    """`n` scenes of one to six things, no two with the same caption, so that those of one thing, of which there are few, are fewer. Every
    other scene holds a combination of colour and shape that no training picture has."""
    rng, found = Random(SEED), dict[str, Scene]()
    while len(found) < n:
        unseen = len(found) % 2 == 0
        scene = random_scene(rng, rng.randint(1, 6), ALL_COMBINATIONS if unseen else SEEN_COMBINATIONS)
        if scene.is_unseen == unseen:
            found.setdefault(caption(scene), scene)
    return list(found.values())


def batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Lists of `size`, the last maybe shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


@torch.inference_mode()
def image_vectors(omni: Omni, pictures: Iterable[Image.Image]) -> Tensor:
    """Unit vectors (N,E)."""
    model, size = omni.model, omni.model.config.vision_encoder.image_size
    found = [
        model.contrastive.image(model.vision_encoder(torch.stack([to_pixels(p, size) for p in batch]).to(omni.device))[0]).cpu()
        for batch in batches(pictures)
    ]
    return torch.cat(found)


@torch.inference_mode()
def text_vectors(omni: Omni, texts: Iterable[str]) -> Tensor:
    """Unit vectors (N,E), from the Thinker's states over each text between begin of sequence and end of turn, as in training."""
    found = []
    for batch in batches(texts):
        ids = [[omni.tokenizer.bos_id, *omni.tokenizer.encode(text), omni.tokenizer.end_id] for text in batch]
        lengths = lengths_of(ids).to(omni.device)
        states = omni.model.thinker.hidden_states(pad_ids(ids, omni.tokenizer.pad_id).to(omni.device), lengths=lengths)
        found.append(omni.model.contrastive.text(states, lengths).cpu())
    return torch.cat(found)


def retrieval(similarity: Tensor, captions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """R@1 and R@5 both ways of pictures (rows) and their captions (columns), with 95 % intervals over captions, and chance. A picture's own
    caption is right wherever it stands."""
    out: dict[str, dict[str, Any]] = {"metrics": {"items": len(captions), "distinct_captions": len(set(captions))}, "baselines": {}}
    for k in (1, 5):
        for way, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
            hits = hits_at(scores, captions, k)
            name = f"{way}_r{k}"
            out["metrics"][name], out["metrics"][f"{name}_95"] = rounded_ratio(hits, [1] * len(hits), captions)
        out["baselines"][f"chance_r{k}"] = round(chance_at(captions, k), 4)
    return out


def scene_retrieval(omni: Omni, n: int) -> dict[str, dict[str, Any]]:
    """Retrieval among `n` unseen scenes; also the hits of those with held-out combinations and of the others, among all."""
    scenes = unseen_scenes(n)
    captions = [caption(scene) for scene in scenes]
    similarity = image_vectors(omni, map(render, scenes)) @ text_vectors(omni, captions).T
    out = retrieval(similarity, captions)
    hits = hits_at(similarity, captions, 1)
    for group, unseen in (("held_out_combinations", True), ("seen_combinations", False)):
        chosen = [hit for hit, scene in zip(hits, scenes, strict=True) if scene.is_unseen == unseen]
        if chosen:  # one scene is of one kind
            name = f"image_to_text_r1_{group}"
            out["metrics"][name], out["metrics"][f"{name}_95"] = rounded_ratio(chosen, [1] * len(chosen), range(len(chosen)))
    return out


def drawing_retrieval(omni: Omni, data: Path, limit: int | None) -> dict[str, dict[str, dict[str, Any]]]:
    """Retrieval among held-out drawings: those whose names are unseen, and unseen drawings of known names. Raises DataError if there is none."""
    for drawings in DRAWINGS:
        if not (data / f"images/{drawings}.jsonl").is_file():
            raise DataError(f"{data}/images/{drawings}.jsonl: not there; fetch the drawings with: muomni data get {' '.join(DRAWINGS)}")
    rows, out = list(drawing_rows(data, held_out=True)), {}
    for split in ("name", "drawing"):
        chosen = spread([row for row in rows if row["split"] == split], limit)
        if not chosen:
            raise DataError(
                f"{data}/images: no held-out drawing of the kind {split!r}; fetch them anew with: muomni data get {' '.join(DRAWINGS)}"
            )
        captions = [row["caption"] for row in chosen]
        pictures = image_vectors(omni, (load_image(row["image"]) for row in chosen))
        out[f"unseen_{split}s"] = retrieval(pictures @ text_vectors(omni, captions).T, captions)
    return out


def vision_suite(omni: Omni, data: Path, *, limit: int | None = None) -> dict[str, Any]:
    """The suite `vision`. `limit`: pictures of each set, and proportionally less training of probes and NLVR head. Raises DataError for
    missing data, CheckpointError for a missing component."""
    for name in NEEDED:
        getattr(omni.model, name)  # says what the checkpoint lacks
    found = {"scenes": scene_retrieval(omni, min(limit or SCENES, SCENES))}
    found |= {f"drawings_{name}": result for name, result in drawing_retrieval(omni, data, limit).items()}
    found["probes"] = evaluate_probes(omni, limit=limit)
    found["nlvr"] = evaluate_nlvr(omni, data, limit=limit)
    for name, result in found.items():
        log.info("%s: %s", name, result["metrics"])
    return {
        "suite": "vision",
        "checkpoint": str(omni.folder),
        "items": sum(result["metrics"]["items"] for result in found.values()),
        "metrics": {name: result["metrics"] for name, result in found.items()},
        "baselines": {name: result["baselines"] for name, result in found.items()},
        "ceilings": {},
    }
