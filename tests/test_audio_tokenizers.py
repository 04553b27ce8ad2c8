"""Sound to ids and back: our codec and SNAC behind one protocol, sample for sample what they do by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from omni.audio import save_audio
from omni.audio_tokenizers import CodecTokenizer, SNACTokenizer, id_list
from omni.checkpoint import save_model
from omni.config import ModelConfig
from omni.errors import CheckpointError, ConfigError, DataError
from omni.omni_model import OmniModel
from omni.speech_tokens import ScaleLayout

SMALL = {
    "codec": {"n_codebooks": 3, "codebook_size": 16, "latent_size": 8, "hidden_size": 16, "n_blocks": 1},
    "vocoder": {"griffin_lim_rounds": 2},
}
HUB_NAME = "hubertsiuzdak/snac_24khz"


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(n) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> OmniModel:
    torch.manual_seed(0)
    return OmniModel(ModelConfig.model_validate(SMALL), ["codec"]).eval()


# --- our codec


@pytest.mark.parametrize("n", [1, 1280, 1281, 20_000])
def test_codec_ids_are_the_codecs_codes_and_its_sound_the_vocoders(model: OmniModel, n: int) -> None:
    tokenizer, wave = CodecTokenizer(model), noise(n)
    ids = tokenizer.encode_audio(wave)
    codes = model.codec.encode(model.log_mel(torch.from_numpy(wave))[None])
    assert tokenizer.layout.to_codes(ids) == codes[0].T.tolist()
    with torch.inference_mode():
        expected = model.vocoder(model.codec.decode(codes))[0].numpy()
    made = tokenizer.decode_audio(ids)
    assert len(made) == -(-n // tokenizer.samples_per_frame) * tokenizer.samples_per_frame == len(expected)
    assert np.array_equal(made, expected)


def test_fewer_codebooks_are_the_first_ones(model: OmniModel) -> None:
    wave, both = noise(9000), (CodecTokenizer(model), CodecTokenizer(model, 2))
    whole, coarse = (tokenizer.layout.to_codes(tokenizer.encode_audio(wave)) for tokenizer in both)
    assert whole[:2] == coarse
    assert both[1].layout == ScaleLayout(16, (1, 1))
    assert len(both[1].decode_audio(both[1].layout.to_ids(coarse))) == len(coarse[0]) * 1280
    with pytest.raises(ConfigError, match="codebooks 4: the codec has 3"):
        CodecTokenizer(model, 4)


def test_a_file_a_waveform_and_a_tensor_are_the_same(model: OmniModel, tmp_path: Path) -> None:
    tokenizer, wave = CodecTokenizer(model), np.round(noise(5000) * 32767) / 32768
    save_audio(tmp_path / "x.wav", wave, 16_000)
    ids = tokenizer.encode_audio(str(tmp_path / "x.wav"))
    assert ids == tokenizer.encode_audio((wave * 32768).astype(np.int16))
    assert ids == tokenizer.encode_audio(torch.from_numpy(wave)[None]) == tokenizer.encode_audio(wave)
    assert np.array_equal(tokenizer.decode_audio(torch.tensor([ids])), tokenizer.decode_audio(ids))


def test_what_is_no_sound_and_no_row_of_ids_is_refused(model: OmniModel) -> None:
    tokenizer = CodecTokenizer(model)
    for wave in (
        np.zeros(0, np.float32),
        np.zeros((2, 9), np.float32),
        np.array([np.nan], np.float32),
        None,
        np.array(["a"]),
        np.array([True]),
        np.zeros(9, np.uint8),
    ):
        with pytest.raises(DataError, match="a waveform is|not finite"):
            tokenizer.encode_audio(wave)
    for ids in (torch.zeros(2, 2, dtype=torch.long), torch.zeros(2), ["x"], None, "12", [0.5, 2.9]):
        with pytest.raises(DataError, match="ids are one row of whole numbers"):
            id_list(ids)
    assert len(tokenizer.decode_audio([])) == 0


def test_a_checkpoint_is_a_codec_tokenizer(model: OmniModel, tmp_path: Path) -> None:
    save_model(tmp_path / "model", model.tensors(), model.config, model.components, None)
    ids = CodecTokenizer(model).encode_audio(noise(4000))
    assert CodecTokenizer.from_pretrained(tmp_path / "model").encode_audio(noise(4000)) == ids
    projector = OmniModel(model.config, ["image_projector"])
    save_model(tmp_path / "other", projector.tensors(), model.config, projector.components, None)
    with pytest.raises(CheckpointError, match="has no codec"):
        CodecTokenizer.from_pretrained(tmp_path / "other")


# --- SNAC


@pytest.fixture(params=["24khz", "32khz", "44khz"])
def snac_folder(request: pytest.FixtureRequest, random_snac, tmp_path: Path) -> Path:
    return random_snac(tmp_path, request.param)


@pytest.mark.parametrize("n", [1, 777, 9_999])
def test_snac_there_and_back_is_its_own_encoder_and_decoder_sample_for_sample(snac_folder: Path, n: int) -> None:
    import snac

    tokenizer, wave = SNACTokenizer(snac_folder), torch.from_numpy(noise(n))
    own = snac.SNAC.from_pretrained(str(snac_folder))
    with torch.inference_mode():
        codes = own.encode(wave[None, None])
        torch.manual_seed(3)
        expected = own.decode(codes)[0, 0].numpy()
    ids = tokenizer.encode_audio(wave)
    assert tokenizer.layout.to_codes(ids) == [row[0].tolist() for row in codes]
    assert tokenizer.layout.codebook_size == 48 and (tokenizer.layout.start_id, tokenizer.layout.end_id) == (ids[0], ids[-1])
    torch.manual_seed(3)
    made = tokenizer.decode_audio(ids)
    assert np.array_equal(made, expected)
    assert len(made) == (len(ids) - 2) // tokenizer.layout.tokens_per_frame * tokenizer.samples_per_frame
    window = 8 * (own.attn_window_size or 4)  # samples that its encoder fills up to: 8 are one code of the finest scale
    assert n <= len(made) < n + window


def test_any_number_of_frames_becomes_as_much_sound(snac_folder: Path) -> None:
    """Attention in windows wants whole windows; a model may end anywhere."""
    tokenizer = SNACTokenizer(snac_folder)
    frames = tokenizer.layout.read_frames(tokenizer.encode_audio(noise(3000)))[0]
    for n in (1, 2, 3):
        assert len(tokenizer.decode_audio([i for frame in frames[:n] for i in frame])) == n * tokenizer.samples_per_frame
    assert len(tokenizer.decode_audio([])) == 0


def test_a_damaged_snac_is_named(snac_folder: Path) -> None:
    (snac_folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="not a SNAC model"):
        SNACTokenizer(snac_folder)
    (snac_folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: no such file"):
        SNACTokenizer(snac_folder)


def test_what_is_neither_folder_nor_hub_name_is_said() -> None:
    pytest.importorskip("snac")
    with pytest.raises(CheckpointError, match="no such folder, and not a hub name"):
        SNACTokenizer("/no/such/folder")


def test_a_hub_that_cannot_be_reached_is_one_line() -> None:
    """All the way to the download, in a process of its own: the client reads its settings once."""
    pytest.importorskip("snac")
    program = f"from omni.audio_tokenizers import SNACTokenizer; SNACTokenizer({HUB_NAME!r})"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, cwd=Path(__file__).parents[1]
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"omni.errors.CheckpointError: {HUB_NAME}: cannot be fetched from the hub (")
    assert last.endswith("name a local folder with config.json and pytorch_model.bin instead")


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snac", None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e .\[snac\]"):
        SNACTokenizer(HUB_NAME)
