"""NLVR (Suhr et al. 2017): is a sentence true of a picture of three boxes? Asked of a small head on the frozen encoder and Thinker.

The head is trained here, on `dev` and generated look-alikes, stopped early by a part of `dev` that shares no sentence with the rest, and
tested on `hidden`. Each box is seen by itself, at the encoder's full size, and the head treats the three alike: it cannot depend on their order.

B batch  T positions  X boxes of a picture  P patches of a box  d encoder width  D head width  K questions"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from omni.data.collate import lengths_of, pad_ids
from omni.data.release import read_jsonl
from omni.data.split import held_out
from omni.data.worlds import nlvr
from omni.errors import DataError
from omni.evaluation.metrics import rounded_ratio
from omni.evaluation.probes import coarse
from omni.image import load_image, to_pixels
from omni.inference.omni import Omni
from omni.nn.transformer import Transformer, TransformerShape

log = logging.getLogger(__name__)

LOOK_ALIKES = 12_000  # made-up examples
POOL = 1_000  # made-up pictures whose boxes they share, of towers and of scattered items each
UPDATES, CHECK_EVERY = 2_000, 100
BATCH = 64  # half from dev, half look-alikes
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 2e-3, 0.05, 50
SIGNS_WEIGHT = 3.0  # of the loss that teaches the head to tell the items
STOPPING_FRACTION = 0.15  # of the dev sentences
SEED = 0


@dataclass(frozen=True)
class Example:
    """`boxes`: the numbers of its three boxes among the features, `sentence` that of its sentence; `group` is drawn whole by the bootstrap."""

    boxes: tuple[int, ...]
    sentence: int
    label: bool
    group: str = ""


@dataclass(frozen=True)
class NLVRBatch:
    """patches (B,X,P,d), states (B,T,width), lengths (B,), labels (B,), signs (B,X,P,signs)."""

    patches: Tensor
    states: Tensor
    lengths: Tensor
    labels: Tensor
    signs: Tensor

    def logits(self, head: NLVRHead, blind: bool) -> tuple[Tensor, Tensor]:
        """What the head says; `blind`: of boxes that it does not see."""
        return head(self.patches * (not blind), self.states, self.lengths)


class FrozenFeatures:
    """What the frozen encoder and Thinker make of boxes and sentences, each computed once, kept in half precision on the CPU."""

    def __init__(self, omni: Omni) -> None:
        self.omni = omni
        self._numbers: dict[bytes | str, int] = {}
        self._boxes: list[Image.Image] = []
        self._items: dict[int, nlvr.Box] = {}
        self._sentences: list[str] = []
        self.patches, self.signs, self.states = torch.empty(0), torch.empty(0), list[Tensor]()

    def box(self, picture: Image.Image, items: nlvr.Box | None = None) -> int:
        """The number of a box; what is in it, where that is told."""
        number = self._number(picture.tobytes(), self._boxes, picture)
        if items is not None:
            self._items[number] = items
        return number

    def sentence(self, text: str) -> int:
        """The number of a sentence."""
        return self._number(text, self._sentences, text)

    def _number(self, key: bytes | str, known: list[Any], item: Any) -> int:
        if key not in self._numbers:
            self._numbers[key] = len(known)
            known.append(item)
        return self._numbers[key]

    @torch.inference_mode()
    def compute(self) -> None:
        """`patches` (boxes,P,d), their `signs` (boxes,P,signs; NaN for what is not told) and, of every sentence, `states` (T,width): the
        Thinker's and the embeddings of its tokens."""
        encoder, thinker, tokenizer = self.omni.model.vision_encoder, self.omni.model.thinker, self.omni.tokenizer
        size, device, patches = encoder.config.image_size, self.omni.device, []
        for start in range(0, len(self._boxes), BATCH):
            pixels = torch.stack([to_pixels(box, size) for box in self._boxes[start : start + BATCH]]).to(device)
            patches.append(coarse(encoder, encoder(pixels)[1]).half().cpu())
        self.patches = torch.cat(patches)
        n_patches = self.patches.shape[1]
        self.signs = torch.full((len(self._boxes), n_patches, len(SIGNS)), torch.nan)
        for number, items in self._items.items():
            self.signs[number] = signs_of(items, n_patches)
        for start in range(0, len(self._sentences), BATCH):
            ids = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in self._sentences[start : start + BATCH]]
            padded = pad_ids(ids, tokenizer.pad_id).to(device)
            states = torch.cat((thinker.hidden_states(padded, lengths=lengths_of(ids).to(device)), thinker.tok_emb(padded)), dim=-1)
            self.states += [row[: len(i)].half().cpu() for row, i in zip(states, ids, strict=True)]

    def batch(self, examples: Sequence[Example]) -> NLVRBatch:
        """The features of examples."""
        boxes = torch.tensor([e.boxes for e in examples])
        rows = [self.states[e.sentence] for e in examples]
        labels = torch.tensor([float(e.label) for e in examples])
        return NLVRBatch(
            self.patches[boxes].float(), pad_sequence(rows, batch_first=True).float(), lengths_of(rows), labels, self.signs[boxes]
        )


class NLVRHead(nn.Module):
    """Says whether a sentence is true of three boxes. The SIGNS of every patch are told first: what the rest knows of the picture. K
    questions, read from the sentence, are put to the patches that show an item; what they answer is summed (so that it can be counted)
    and, beside the signs row by row (so that a tower can be climbed), judged box by box; the judgements are summed in turn."""

    def __init__(self, vision_width: int, text_width: int, n_patches: int, *, width: int = 64, n_questions: int = 6) -> None:
        super().__init__()
        shape = TransformerShape(width, n_layers=2, n_heads=4, n_kv_heads=4, d_ff=2 * width, causal=False, feed_forward="gelu", dropout=0.1)
        self.side = round(n_patches**0.5)
        self.text_in, self.text = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, width)), Transformer(shape)
        self.asking = nn.Parameter(torch.randn(n_questions, width))
        self.signs = nn.Sequential(nn.LayerNorm(vision_width), _two_layers(vision_width, width, len(SIGNS)))
        self.item, self.place = nn.Linear(len(SIGNS), width), nn.Parameter(torch.randn(n_patches, width) * 0.3)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        asked = n_questions * width
        self.box = _two_layers(asked + n_questions * (width + 1) + self.side * len(SIGNS), 2 * width, width)
        self.out = _two_layers(asked + width, 2 * width, 1)

    def forward(self, patches: Tensor, states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """patches (B,X,P,d), states (B,T,width) of `lengths` (B,) → logits (B,), and those of the SIGNS of every patch (B,X,P,signs)."""
        words = self.text(self.text_in(states), lengths=lengths)  # (B,T,D)
        behind = torch.arange(words.shape[1], device=words.device) >= lengths[:, None]
        weights = (self.asking @ words.transpose(1, 2) / words.shape[2] ** 0.5).masked_fill(behind[:, None], -torch.inf).softmax(-1)
        questions = weights @ words  # (B,K,D)

        signs = self.signs(patches)  # (B,X,P,signs)
        likely = signs.sigmoid().detach()  # learned from what is told, not from the judgement
        x = self.item(likely) + self.place  # (B,X,P,D)
        gate = (questions[:, None] @ self.key(x).transpose(2, 3) / x.shape[-1] ** 0.5).sigmoid()  # (B,X,K,P)
        gate = gate * likely[..., : len(nlvr.COLOURS)].amax(-1)[:, :, None]  # nothing is asked of an empty patch
        sums = torch.cat((gate @ self.value(x), gate.sum(-1, keepdim=True)), dim=-1)  # (B,X,K,D+1)
        rows = likely.unflatten(2, (self.side, self.side)).sum(3)  # (B,X,side,signs)
        asked = questions.flatten(1)
        seen = (sums.flatten(2), rows.flatten(2), asked[:, None].expand(-1, x.shape[1], -1))
        boxes = self.box(torch.cat(seen, dim=-1))  # (B,X,D)
        return self.out(torch.cat((boxes.sum(1), asked), dim=-1))[:, 0], signs


def _two_layers(n_in: int, n_hidden: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_out))


SIGNS = (*nlvr.COLOURS, *nlvr.SHAPES, *nlvr.SIZES, "touching")


def signs_of(box: nlvr.Box, n_patches: int) -> Tensor:
    """(P,signs): what is true of the items whose middle lies in each patch. The head learns to tell them beside its judgement."""
    side = round(n_patches**0.5)
    out = torch.zeros(n_patches, len(SIGNS))
    for item in box:
        row, column = ((item[name] + item["size"] // 2) * side // nlvr.BOX for name in ("y_loc", "x_loc"))  # type: ignore[literal-required]
        true = {item["color"], item["type"], item["size"], "touching" if nlvr.touches_edge(item) else ""}
        out[row * side + column] += torch.tensor([float(sign in true) for sign in SIGNS])
    return out.clamp(max=1.0)


def train_head(
    features: FrozenFeatures,
    dev: Sequence[Example],
    look_alikes: Sequence[Example],
    stopping: Sequence[Example],
    updates: int,
    *,
    blind: bool = False,
) -> tuple[NLVRHead, float]:
    """The head at its best on `stopping`, and its accuracy there. `blind`: it sees nothing of the boxes."""
    torch.manual_seed(SEED)
    rng = Random(SEED)
    _, n_patches, vision_width = features.patches.shape
    head = NLVRHead(vision_width, features.states[0].shape[1], n_patches)
    optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    warmup = min(WARMUP, 1 + updates // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / warmup, 1.0) * (1 - n / updates))
    best, best_accuracy = copy.deepcopy(head.state_dict()), 0.0
    for update in range(1, updates + 1):
        chosen = rng.choices(dev, k=BATCH // 2) + rng.choices(look_alikes, k=BATCH - BATCH // 2)
        batch = features.batch(chosen)
        logits, signs = batch.logits(head.train(), blind)
        loss = F.binary_cross_entropy_with_logits(logits, batch.labels)
        told = ~batch.signs.isnan()
        if not blind and told.any():
            loss = loss + SIGNS_WEIGHT * F.binary_cross_entropy_with_logits(signs[told], batch.signs[told])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % CHECK_EVERY == 0 or update == updates:
            right = correct(features, head, stopping, blind=blind)
            accuracy = sum(right) / len(right)
            log.info("NLVR head, update %d: loss %.3f, accuracy %.3f on the part of dev for stopping", update, loss.item(), accuracy)
            if accuracy > best_accuracy:
                best, best_accuracy = copy.deepcopy(head.state_dict()), accuracy
    head.load_state_dict(best)
    return head, best_accuracy


@torch.no_grad()
def correct(features: FrozenFeatures, head: NLVRHead, examples: Sequence[Example], *, blind: bool = False) -> list[bool]:
    """Whether the head judges each example right."""
    out: list[bool] = []
    for start in range(0, len(examples), 4 * BATCH):
        batch = features.batch(examples[start : start + 4 * BATCH])
        out += ((batch.logits(head.eval(), blind)[0] > 0) == batch.labels.bool()).tolist()
    return out


def real_examples(features: FrozenFeatures, data: Path, name: str, limit: int | None) -> tuple[list[Example], list[str]]:
    """The examples of "dev" or "hidden", `limit` identifiers at most, and the sentence of each. Raises DataError for what is missing."""
    examples, sentences, identifiers = [], [], dict[str, None]()
    for row in read_jsonl(data / f"images/nlvr.{name}.jsonl.gz"):
        identifiers[row["identifier"]] = None
        if limit is not None and len(identifiers) > limit:
            break
        picture = load_image(data / "images" / row["image"])
        if picture.size != (nlvr.WIDTH, nlvr.BOX):
            raise DataError(
                f"{row['image']}: is {picture.width}x{picture.height}, expected {nlvr.WIDTH}x{nlvr.BOX}; fetch it anew: muomni data get nlvr"
            )
        told = row.get("objects") if name == "dev" else None
        examples.append(Example(boxes_of(features, picture, told), features.sentence(row["sentence"]), row["label"], row["identifier"]))
        sentences.append(row["sentence"])
    if not examples:
        raise DataError(f"{data}/images/nlvr.{name}.jsonl.gz: holds no row; fetch it anew: muomni data get nlvr")
    return examples, sentences


def boxes_of(features: FrozenFeatures, picture: Image.Image, objects: nlvr.Boxes | None = None) -> tuple[int, ...]:
    """The numbers of the boxes of a 400 x 100 picture, from left to right."""
    crops = [picture.crop((x, 0, x + nlvr.BOX, nlvr.BOX)) for x in range(0, nlvr.WIDTH, nlvr.BOX + nlvr.GAP)]
    return tuple(features.box(crop, objects[i] if objects else None) for i, crop in enumerate(crops))


def look_alikes(features: FrozenFeatures, n: int) -> list[Example]:
    """`n` generated examples."""
    rng = Random(SEED)
    size = max(3, POOL * n // LOOK_ALIKES)
    pools = {towers: [nlvr.random_boxes(rng, towers) for _ in range(size)] for towers in (False, True)}

    def draw(rng: Random, towers: bool) -> nlvr.Boxes:
        return [rng.choice(rng.choice(pools[towers])) for _ in range(nlvr.N_BOXES)]

    examples = []
    for _ in range(n):
        boxes, sentence, label = nlvr.example(rng, draw)
        examples.append(Example(boxes_of(features, nlvr.render(boxes), boxes), features.sentence(sentence), label))
    return examples


def evaluate_nlvr(omni: Omni, data: Path, *, limit: int | None = None, updates: int = UPDATES) -> dict[str, dict[str, Any]]:
    """Accuracy on `hidden` with 95 % intervals over identifiers; consistency: all orders of the boxes judged right. Baselines: the majority
    of dev, and a head that sees nothing. `limit`: identifiers of `hidden`, and proportionally fewer updates and look-alikes."""
    features = FrozenFeatures(omni)
    hidden, hidden_sentences = real_examples(features, data, "hidden", limit)
    share = 1.0 if limit is None else min(1.0, len(hidden) / 2955)
    dev, dev_sentences = real_examples(features, data, "dev", limit)
    made_up = look_alikes(features, max(BATCH, int(LOOK_ALIKES * share)))
    updates = max(1, int(updates * share))
    features.compute()

    stops = [held_out(sentence, STOPPING_FRACTION) for sentence in dev_sentences]
    training = [e for e, stop in zip(dev, stops, strict=True) if not stop] or dev
    stopping = [e for e, stop in zip(dev, stops, strict=True) if stop] or dev
    groups = [e.group for e in hidden]
    known = set(dev_sentences)

    def measure(right: Sequence[bool], weights: Sequence[int]) -> dict[str, Any]:
        accuracy, interval = rounded_ratio([r * w for r, w in zip(right, weights, strict=True)], weights, groups)
        return {"accuracy": accuracy, "accuracy_95": interval}

    every = [1] * len(hidden)
    head, dev_accuracy = train_head(features, training, made_up, stopping, updates)
    right = correct(features, head, hidden)
    blind_head, _ = train_head(features, training, made_up, stopping, updates, blind=True)
    common = sum(e.label for e in dev) * 2 >= len(dev)
    consistent = {group: True for group in groups}
    for example, good in zip(hidden, right, strict=True):
        consistent[example.group] &= good
    consistency, consistency_95 = rounded_ratio(list(consistent.values()), [1] * len(consistent), list(consistent))
    metrics = {
        "items": len(hidden),
        **measure(right, every),
        "consistency": consistency,
        "consistency_95": consistency_95,
        "without_sentences_of_dev": measure(right, [int(s not in known) for s in hidden_sentences]),
        "stopping_accuracy": round(dev_accuracy, 4),
    }
    baselines = {
        "majority": measure([e.label == common for e in hidden], every),
        "text_only": measure(correct(features, blind_head, hidden, blind=True), every),
    }
    return {"metrics": metrics, "baselines": baselines}
