"""CTC beam search: against the sum over all alignments, against greedy decoding, and the Thinker's part in it."""

import itertools
import math

import numpy as np
import pytest
import torch

from omni.characters import BLANK_ID, N_CHARACTERS, decode_characters, encode_characters
from omni.errors import CheckpointError
from omni.inference.ctc_beam import BeamSearch, History, ThinkerWords, segments
from omni.inference.omni import Omni
from omni.omni_model import OmniModel


def spread_over(characters: str, n_slots: int, seed: int, sharpness: float = 1.0) -> torch.Tensor:
    """Random log-probabilities (slots,98) over the blank and `characters`."""
    ids = [BLANK_ID, *encode_characters(characters)]
    logits = torch.full((n_slots, N_CHARACTERS), -math.inf)
    logits[:, ids] = sharpness * torch.randn(n_slots, len(ids), generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1)


def collapse(path: tuple[int, ...]) -> str:
    return decode_characters(c for c, _ in itertools.groupby(path) if c != BLANK_ID)


class Dictionary:
    """Knows the probability of every word, whatever came before."""

    def __init__(self, **probabilities: float) -> None:
        self.probabilities, self.asked = probabilities, []

    def start(self) -> History:
        return History()

    def read(self, words):
        self.asked += [word for _, word in words]
        return [History(h.words + 1, h.log_probability + math.log(self.probabilities.get(word, 1e-3))) for h, word in words]


@pytest.mark.parametrize("seed", range(6))
def test_a_wide_beam_sums_over_all_alignments_of_every_text(seed):
    log_p = spread_over("ab ", 5, seed)
    ids = [BLANK_ID, *encode_characters("ab ")]
    exact: dict[str, float] = {}
    for path in itertools.product(ids, repeat=5):
        text = collapse(path)
        exact[text] = exact.get(text, 0.0) + math.exp(sum(float(log_p[i, c]) for i, c in enumerate(path)))
    found = BeamSearch(width=2000, least_probability=1e-30, margin=math.inf)(log_p)
    assert {h.text: h.ctc for h in found} == pytest.approx({text: math.log(p) for text, p in exact.items()}, abs=1e-4)
    assert [h.score for h in found] == sorted((h.ctc for h in found), reverse=True)


@pytest.mark.parametrize("seed", range(10))
def test_a_beam_of_one_is_greedy_where_every_slot_is_sure(seed):
    generator = torch.Generator().manual_seed(seed)
    path = torch.tensor([BLANK_ID, *encode_characters("ab c")])[torch.randint(0, 5, (60,), generator=generator)]
    log_p = (torch.rand(60, N_CHARACTERS, generator=generator) + 12 * torch.nn.functional.one_hot(path, N_CHARACTERS)).log_softmax(-1)
    assert BeamSearch(width=1)(log_p)[0].text == collapse(tuple(path.tolist()))


def test_alignments_of_one_text_count_together():
    """The likeliest path is blank all the way (0.36); but "a" has the paths a-, -a and aa (0.64 together)."""
    log_p = torch.full((2, N_CHARACTERS), -math.inf)
    log_p[:, [BLANK_ID, *encode_characters("a")]] = torch.tensor([0.6, 0.4]).log()
    best = BeamSearch()(log_p)[0]
    assert (best.text, best.ctc) == ("a", pytest.approx(math.log(0.64), abs=1e-6))


def two_spellings() -> torch.Tensor:
    """ "cat sat" or "cap sat", both equally likely."""
    log_p = torch.full((7, N_CHARACTERS), -math.inf)
    log_p[range(7), encode_characters("cat sat")] = 0.0
    log_p[2, encode_characters("tp")] = math.log(0.5)
    return log_p


@pytest.mark.parametrize("likely", ["cat", "cap"])
def test_the_language_model_breaks_a_tie(likely):
    words = Dictionary(**{likely: 0.1, "sat": 0.2})
    first, second = BeamSearch(words, alpha=0.5, beta=1.5)(two_spellings())
    assert first.text == f"{likely} sat"
    assert first.ctc == second.ctc == pytest.approx(math.log(0.5))
    assert (first.language, first.words) == (pytest.approx(math.log(0.02)), 2)
    assert first.score == pytest.approx(first.ctc + 0.5 * first.language + 1.5 * 2)
    assert sorted(words.asked) == ["cap", "cat", "sat", "sat"]  # no word twice in one place


def test_more_is_paid_for_more_words():
    log_p = torch.full((3, N_CHARACTERS), -math.inf)
    log_p[[0, 2], encode_characters("ab")] = 0.0
    log_p[1, [BLANK_ID, *encode_characters(" ")]] = math.log(0.5)
    words = Dictionary(a=0.1, b=0.1, ab=0.1)
    assert BeamSearch(words, alpha=0.0, beta=-1.0)(log_p)[0].text == "ab"
    assert BeamSearch(words, alpha=0.0, beta=1.0)(log_p)[0].text == "a b"


# --- the Thinker


def read(model: ThinkerWords, text: str) -> float:
    history = model.start()
    for word in text.split():
        (history,) = model.read([(history, word)])
    return history.log_probability


@torch.inference_mode()
def whole(omni: Omni, text: str) -> float:
    ids = [omni.tokenizer.bos_id, *omni.tokenizer.encode(text)]
    log_p = omni.model.thinker(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    return float(log_p[range(len(ids) - 1), ids[1:]].sum())


TEXTS = ["The circle is red.", "What extraordinary things, hello", "a"]


def test_words_one_by_one_are_as_probable_as_the_whole_text(omni):
    model = ThinkerWords(omni.model.thinker, omni.tokenizer)
    for text in TEXTS:
        assert read(model, text) == pytest.approx(whole(omni, text), abs=1e-3)


def test_histories_of_several_lengths_share_a_batch(omni):
    model = ThinkerWords(omni.model.thinker, omni.tokenizer)
    histories = [model.start()] * len(TEXTS)
    for words in itertools.zip_longest(*(text.split() for text in TEXTS)):
        going = [i for i, word in enumerate(words) if word is not None]
        for i, history in zip(going, model.read([(histories[i], words[i]) for i in going]), strict=True):
            histories[i] = history
    assert [h.log_probability for h in histories] == pytest.approx([whole(omni, text) for text in TEXTS], abs=1e-3)


def test_a_text_beyond_the_context_goes_on_with_a_new_one(omni):
    model = ThinkerWords(omni.model.thinker, omni.tokenizer)
    history = model.start()
    for _ in range(100):
        (history,) = model.read([(history, "extraordinary")])
        assert history.memory.keys.shape[2] <= omni.model.thinker.config.context_length
    assert history.words == 100
    assert math.isfinite(history.log_probability)


# --- recordings


def test_segments_end_behind_a_word_and_lose_nothing():
    log_p = spread_over("ab ", 500, 0, sharpness=3.0)
    pieces = list(segments(log_p, 100))
    assert torch.equal(torch.cat(pieces), log_p)
    assert all(len(piece) <= 100 for piece in pieces)
    assert all(int(piece[-1].argmax()) == encode_characters(" ")[0] for piece in pieces[:-1])
    assert [len(piece) for piece in segments(spread_over("ab", 250, 0), 100)] == [100, 100, 50]


@torch.inference_mode()
def test_transcribing_by_beam_is_the_search_over_the_clip(omni):
    wave = (np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32)
    log_p = omni.ctc_logits([omni.log_mel(wave)])[0].log_softmax(-1)
    text = omni.transcribe(wave, "ctc-beam")
    assert text == BeamSearch(ThinkerWords(omni.model.thinker, omni.tokenizer))(log_p)[0].text.strip()
    assert text


def test_without_a_thinker_there_is_no_such_beam(omni):
    alone = Omni(OmniModel(omni.model.config, ["audio_encoder"]), omni.tokenizer)
    with pytest.raises(CheckpointError, match="no thinker"):
        alone.transcribe(np.zeros(1600, dtype=np.float32), "ctc-beam")
