"""The suite `text`: every token is scored once, with what stands before it; and the figures beside the baselines."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from omni.chat import render_text
from omni.cli.app import main
from omni.config import RunConfig
from omni.errors import CheckpointError, DataError
from omni.evaluation.ngram import Ngram
from omni.evaluation.report import flat
from omni.evaluation.text import Document, document, fit_ngram, nats_of, ngram_nats, prediction, text_suite, windows
from omni.inference.omni import Omni
from omni.stages import STAGES
from omni.stages.plain_gpt import load_plain_gpt
from omni.tokenizer import train_tokenizer
from omni.training.trainer import train

Trained = Callable[[str], str]


@pytest.fixture
def omni(trained: Trained) -> Omni:
    return Omni.from_pretrained(trained("text"), "cpu")


@pytest.mark.parametrize("lengths", [[1, 2, 9], [10, 11, 12, 30], [100]])
def test_windows_predict_every_token_but_the_first_once(lengths: list[int]) -> None:
    scored = [[0] * n for n in lengths]
    for w in windows(lengths, 10):
        assert w.end - w.start <= 11
        assert w.scored > w.start
        assert w.start == 0 or w.scored - w.start >= 5  # half a context before it
        for position in range(w.scored, w.end):
            scored[w.document][position] += 1
    assert scored == [[0] + [1] * (n - 1) for n in lengths]


def test_a_short_document_costs_its_cross_entropy(omni: Omni) -> None:
    found = document({"source": "stories", "text": "The cat is on the table."}, omni.tokenizer)
    ids = torch.tensor(found.ids)
    with torch.no_grad():
        wanted = F.cross_entropy(omni.model.thinker(ids[None, :-1])[0].float(), ids[1:], reduction="sum")
    other = Document([omni.tokenizer.bos_id, *[7] * 90], 90)
    assert nats_of(omni.model.thinker, [other, found])[1] == pytest.approx(float(wanted), rel=1e-4)


def test_a_dialogue_counts_the_bytes_of_its_messages_alone(omni: Omni) -> None:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Café?"}]
    found = document({"source": "dialogues", "messages": messages}, omni.tokenizer)
    assert found.n_bytes == 3 + 6
    assert found.ids == render_text(messages, omni.tokenizer)


def test_bits_per_byte_and_perplexity_are_the_written_out_ratios() -> None:
    documents = [Document([1, 5, 6], 4), Document([1, 5], 2)]
    found = prediction(documents, [2 * math.log(2), 4 * math.log(2)])
    assert (found.documents, found.tokens, found.bytes) == (2, 3, 6)
    assert found.bits_per_byte == 1.0
    assert found.perplexity == pytest.approx(4.0)
    assert found.bits_per_byte_95[0] <= 1.0 <= found.bits_per_byte_95[1]


def test_the_ngram_is_fitted_to_the_training_side(omni: Omni, release_data: Path) -> None:
    ngram = fit_ngram(release_data, omni.tokenizer)
    assert isinstance(ngram, Ngram)
    known, unknown = (Document([1, *omni.tokenizer.encode(text)], len(text)) for text in ("Once upon a time", "zqx jvk wwf qqp"))
    costs = ngram_nats(ngram, [known, unknown])
    assert costs[0] / len(known.ids) < costs[1] / len(unknown.ids)


def test_the_suite_puts_the_baselines_beside_the_model(
    omni: Omni, trained: Trained, nano_run: Callable[..., RunConfig], release_data: Path, tmp_path: Path
) -> None:
    run = nano_run("plain-gpt", "text", init_from=(trained("text"),), out=str(tmp_path / "gpt"), steps=2)
    train(STAGES["plain-gpt"](run))
    gpt = load_plain_gpt(tmp_path / "gpt")
    result = text_suite(omni, release_data, limit=2, baseline=gpt)
    assert set(result["baselines"]) == {"5-gram", "plain_gpt"}
    sets = set(result["metrics"]) - {"samples"}
    assert "dialogues_dev" in sets
    assert all(set(found) == sets for found in result["baselines"].values())
    for name in sets:
        ours, theirs = result["metrics"][name], result["baselines"]["5-gram"][name]
        assert theirs["checkpoint_share"] == pytest.approx(ours["bits_per_byte"] / theirs["bits_per_byte"], abs=1e-3)
        assert theirs["checkpoint_share_95"][0] <= theirs["checkpoint_share"] <= theirs["checkpoint_share_95"][1]
    assert all(0 < result["metrics"][name]["bits_per_byte"] < 20 for name in sets)
    assert result["items"] == sum(result["metrics"][name]["documents"] for name in sets)
    assert {sample["kind"] for sample in result["metrics"]["samples"]} == {"reply", "continuation"}
    assert text_suite(omni, release_data, limit=2, baseline=gpt) == result


def test_a_baseline_with_other_tokens_is_refused(omni: Omni, release_data: Path, tmp_path: Path) -> None:
    other = train_tokenizer(["another text altogether"] * 9, 300, tmp_path / "tokenizer.model")
    with pytest.raises(CheckpointError, match="tokenizer is another"):
        text_suite(omni, release_data, baseline=(omni.model.thinker, other))


def test_a_folder_without_text_is_an_error(omni: Omni, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="muomni data get"):
        text_suite(omni, tmp_path)


# --- the command


def test_eval_prints_and_writes_one_result(
    trained: Trained, release_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results/text.json"
    command = ["eval", "text", "--checkpoint", trained("text"), "--data", str(release_data), "--limit", "1", "--out", str(out)]
    assert main([*command, "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert '"suite": "text"' in printed
    assert out.read_text().strip()


@pytest.mark.parametrize(("suite", "message"), [("smell", "no suite 'smell'; known: text, asr, vision"), ("vision", "vision_encoder")])
def test_eval_says_what_is_missing(
    suite: str, message: str, trained: Trained, release_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", suite, "--checkpoint", trained("text"), "--data", str(release_data), "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err


def test_flat_names_figures_by_their_path() -> None:
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "samples": [1], "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
