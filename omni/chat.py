"""The one chat template, shared by training and inference: messages → ids, loss mask and places for media.

    <bos> <|user|> <|image|> ·media· <|/image|> <|audio|> ·media· <|/audio|> text <|end|> <|assistant|> text <|end|> …

Inside a turn the order is picture, sound, text, whatever order the message gives. Loss falls on the assistant's text and its end of turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omni.characters import encode_characters
from omni.errors import DataError
from omni.tokenizer import BPETokenizer

Message = dict[str, Any]  # {"role": …, "content": text or [{"type": "text"|"image"|"audio", <type>: value}]}
ROLES = ("system", "user", "assistant")
MEDIA_KINDS = ("image", "audio")
DESCRIBE = "Describe the picture."
TRANSCRIBE = "Write down what you hear."


@dataclass(frozen=True)
class MediaSpan:
    """`length` placeholder positions from `start`, to be filled with the embeddings of `source` (whatever the message held)."""

    kind: Literal["image", "audio"]
    source: Any
    start: int
    length: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids (T,), with True in `loss_mask` (T,) where the assistant speaks. `notices` say what did not fit."""

    input_ids: list[int]
    loss_mask: list[bool]
    media: list[MediaSpan]
    notices: list[str]
    n_dropped_turns: int


@dataclass(frozen=True)
class MediaBudget:
    """How many positions media take: each picture `image_tokens`; a clip what `audio_tokens` says, at most `max_audio_tokens`."""

    image_tokens: int
    audio_tokens: Callable[[Any], int]
    max_audio_tokens: int


def parts_of(message: Message) -> list[tuple[str, Any]]:
    """(type, value) of every part of a message, checked. Raises DataError that says what is wrong with it."""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise DataError(f"a message needs a role out of {', '.join(ROLES)}, found {message!r:.80}")
    content = message.get("content")
    if isinstance(content, str):
        return [("text", content)]
    if not isinstance(content, list):
        raise DataError(f"a message's content is text or a list of parts, found {content!r:.80}")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", *MEDIA_KINDS) or kind not in part:
            raise DataError(f'a part is {{"type": "text"|"image"|"audio", and its value under that name}}, found {part!r:.80}')
        if kind == "text" and not isinstance(part[kind], str):
            raise DataError(f"a text part holds text, found {part[kind]!r:.80}")
        parts.append((kind, part[kind]))
    return parts


def render(
    messages: Sequence[Message],
    tokenizer: BPETokenizer,
    budget: MediaBudget,
    context_length: int,
    *,
    reserve: int = 0,
    add_generation_prompt: bool = False,
    strict: bool = False,
) -> Rendered:
    """Render a conversation into at most `context_length - reserve` positions.

    A clip over its budget is cut, and the oldest turns (never a leading system message) are dropped until the rest fits, answers with their
    questions; each with a notice. Raises DataError for an empty conversation, a last turn that cannot fit alone, and, when `strict`, instead of any
    notice.
    """
    if not messages:
        raise DataError("a conversation needs at least one message")
    for message in messages:
        parts_of(message)  # what is dropped must be well-formed too
    prompt = [tokenizer.assistant_id] if add_generation_prompt else []
    room = context_length - reserve - 1 - len(prompt)
    n_pinned = 1 if messages[0]["role"] == "system" and len(messages) > 1 else 0
    pinned = [_render_turn(message, tokenizer, budget) for message in messages[:n_pinned]]
    recent: list[_Turn] = []  # newest first: what will be dropped is not even looked at
    used = sum(len(turn.input_ids) for turn in pinned)
    for message in reversed(messages[n_pinned:]):
        turn = _render_turn(message, tokenizer, budget)
        if used + len(turn.input_ids) > room:
            if not recent:
                what = "the system message and the last turn take" if pinned else "the last turn takes"
                used += len(turn.input_ids)
                raise DataError(f"{what} {used} positions, but only {max(room, 0)} of the context of {context_length} are free; shorten it")
            break
        recent.append(turn)
        used += len(turn.input_ids)
    if n_pinned + len(recent) < len(messages):
        while len(recent) > 1 and messages[-len(recent)]["role"] == "assistant":  # its question is gone
            recent.pop()
    turns = pinned + recent[::-1]
    notices = [notice for turn in turns for notice in turn.notices]
    dropped = len(messages) - len(turns)
    if dropped:
        lost = Counter(kind for message in messages[n_pinned : n_pinned + dropped] for kind, _ in parts_of(message))
        left = " and ".join(f"{n} {name}{'s' * (n > 1)}" for name, n in (("picture", lost["image"]), ("sound", lost["audio"])) if n)
        notices.append(
            f"the conversation exceeds the context of {context_length}: kept {len(turns)} of {len(messages)} turns, dropped the oldest {dropped}{left and f', with {left}'}"
        )
    if strict and notices:
        raise DataError("; ".join(notices))
    ids, mask, media = [tokenizer.bos_id], [False], []
    for turn in turns:
        media += [MediaSpan(span.kind, span.source, span.start + len(ids), span.length) for span in turn.media]
        ids += turn.input_ids
        mask += turn.loss_mask
    return Rendered(ids + prompt, mask + [False] * len(prompt), media, notices, dropped)


def render_text(messages: Sequence[Message], tokenizer: BPETokenizer) -> list[int]:
    """Ids of a conversation without media, as long as it is (for packing)."""
    budget = MediaBudget(0, lambda source: 0, 0)
    return [tokenizer.bos_id] + [i for message in messages for i in _render_turn(message, tokenizer, budget).input_ids]


@dataclass(frozen=True)
class Reply:
    """A reply as the Talker is told it: ids (T,), the characters (C,) of its spelling between two spaces, the silence before and behind, and the
    position in T of each one's token."""

    input_ids: list[int]
    char_ids: list[int]
    char_tokens: list[int]


def render_reply(text: str, tokenizer: BPETokenizer) -> Reply:
    """A reply alone in the chat template. Raises DataError when there is nothing to say."""
    if not text.strip():
        raise DataError("there is nothing to say: the text is empty")
    ids = tokenizer.encode(text)
    head = [tokenizer.bos_id, tokenizer.assistant_id]
    silence = encode_characters(" ")
    char_ids, char_tokens = [*silence], [len(head)]
    for position, piece in enumerate(tokenizer.pieces(ids), start=len(head)):
        spelled = encode_characters(piece)
        char_ids += spelled
        char_tokens += [position] * len(spelled)
    if len(char_ids) == 1:
        raise DataError("there is nothing to say: the text has no letter, digit or sign")
    return Reply([*head, *ids, tokenizer.end_id], char_ids + silence, [*char_tokens, len(head) + len(ids)])


@dataclass(frozen=True)
class _Turn:
    """One message; the spans start within it."""

    input_ids: list[int]
    loss_mask: list[bool]
    media: list[MediaSpan]
    notices: list[str]


def _render_turn(message: Message, tokenizer: BPETokenizer, budget: MediaBudget) -> _Turn:
    parts = parts_of(message)
    role = message["role"]
    ids = [tokenizer.token_id(f"<|{role}|>")]
    spans: list[MediaSpan] = []
    notices: list[str] = []
    for kind in MEDIA_KINDS:
        for part_kind, source in parts:
            if part_kind == kind:
                length = budget.image_tokens if kind == "image" else _audio_length(source, budget, notices)
                ids.append(tokenizer.token_id(f"<|{kind}|>"))
                spans.append(MediaSpan(kind, source, len(ids), length))  # type: ignore[arg-type]
                ids += [tokenizer.media_id] * length + [tokenizer.token_id(f"<|/{kind}|>")]
    text = tokenizer.encode("".join(value for kind, value in parts if kind == "text"))
    spoken = [*text, tokenizer.end_id]
    mask = [False] * len(ids) + [role == "assistant"] * len(spoken)
    return _Turn(ids + spoken, mask, spans, notices)


def _audio_length(source: Any, budget: MediaBudget, notices: list[str]) -> int:
    length = budget.audio_tokens(source)
    if length > budget.max_audio_tokens:
        kept = budget.max_audio_tokens / length
        notices.append(
            f"a clip of {length} audio tokens exceeds its quarter of the context: kept the first {budget.max_audio_tokens} ({kept:.0%})"
        )
        return budget.max_audio_tokens
    return length
