"""Kokoro-82M on one core: StyleTTS 2 (Li et al. 2023) with a decoder that ends in an inverse Fourier transform (iSTFTNet, Kaneko et al. 2022).

Its ONNX file is quantised to eight bits. What turns phonemes into pitch, energy and text features runs in onnxruntime as it is. The decoder,
nine tenths of the work, runs here: the same weights, but in bfloat16 and with activations that are not rounded to eight bits. That is closer
to the model before it was quantised, and twice as fast.

C channels  L positions in time.  Signals are (1, C, 1, L) and channels-last, which oneDNN convolves fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from kokoro_onnx.tokenizer import Tokenizer
from kokoro_onnx.trim import trim
from onnx import helper, numpy_helper
from onnx.utils import Extractor
from torch import Tensor
from torch.nn import functional as F

RATE_HZ = 24_000
FFT_SAMPLES, HOP_SAMPLES = 20, 5
OVERLAP = (
    1.5  # sum of the squared Hann windows over a sample: the file's own inverse transform does not divide by it, and is that much louder
)
DECODER = "/decoder/decoder/"
SPECTRUM = "generator.conv_post"  # the layer that gives magnitudes and phases; in bfloat16 those are noisy
# where the graph is cut: text features (1, 512, L), pitch and energy (1, 1, 2L), style (1, 128), spectrum of the voiced source (1, 22, 120L + 1)
FEATURES = (
    "/encoder/MatMul_1_output_0",
    f"{DECODER}Unsqueeze_output_0",
    f"{DECODER}Unsqueeze_1_output_0",
    "/decoder/Slice_output_0",
    f"{DECODER}generator/Concat_3_output_0",
)


class Kokoro:
    """The model in the ONNX file `model`, with `styles` of its voices: (510, 1, 256), a row for each number of phonemes."""

    def __init__(self, model: bytes, styles: Mapping[str, np.ndarray]) -> None:
        proto = onnx.load_model_from_string(model)
        front = Extractor(proto).extract_model(["tokens", "style", "speed"], list(FEATURES))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # its threads spin while they wait: two on a busy machine are slower than one
        self.front = onnxruntime.InferenceSession(front.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.decoder = Decoder(proto.graph)
        self.tokenizer = Tokenizer()
        self.styles = styles

    def __call__(self, text: str, voice: str, language: str, speed: float) -> np.ndarray:
        """`text` of at most 510 phonemes, said: a waveform (n,) at 24 kHz without the silence around it."""
        phonemes = " ".join(self.tokenizer.phonemize(text, language).split())
        tokens = self.tokenizer.tokenize(phonemes)
        inputs = {
            "tokens": np.array([[0, *tokens, 0]]),
            "style": self.styles[voice][len(tokens) - 1],
            "speed": np.array([speed], np.float32),
        }
        wave = self.decoder(*map(torch.from_numpy, self.front.run(None, inputs)))
        return trim(wave.numpy())[0]


class Decoder:
    """Features of speech to its waveform."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.dtype = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        self.convolutions: dict[str, Callable[[Tensor], Tensor]] = {}
        self.linears: dict[str, Callable[[Tensor], Tensor]] = {}
        self.alphas = {name: _signal(torch.tensor(value), self.dtype) for name, value in constants.items() if ".alpha" in name}
        for node in graph.node:
            if not node.name.startswith(DECODER) or node.op_type not in ("Conv", "ConvInteger", "ConvTranspose", "MatMulInteger"):
                continue
            path = node.name.removeprefix(DECODER).rpartition("/")[0].replace("asr_res/", "").replace("/", ".")
            weight = constants[node.input[1]]
            if node.op_type.endswith("Integer"):
                scale = constants[node.input[1].removesuffix("quantized") + "scale"]
                weight = (weight.astype(np.float32) - constants[node.input[3]]) * scale
            bias = constants.get(f"decoder.decoder.{path}.bias")
            if node.op_type == "MatMulInteger":
                self.linears[path] = partial(F.linear, weight=torch.tensor(weight.T), bias=torch.tensor(bias))
                continue
            dtype = torch.float32 if path == SPECTRUM else self.dtype
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            options: dict[str, Any] = {
                "bias": None if bias is None else torch.tensor(bias, dtype=dtype),
                "stride": (1, *attributes["strides"]),
                "padding": (0, attributes["pads"][0]),
                "dilation": (1, *attributes["dilations"]),
                "groups": attributes["group"],
            }
            if node.op_type == "ConvTranspose":
                options["output_padding"] = (0, *attributes.get("output_padding", [0]))
            convolve = F.conv_transpose2d if node.op_type == "ConvTranspose" else F.conv2d
            self.convolutions[path] = partial(convolve, weight=_signal(torch.tensor(weight), dtype), **options)

    @torch.inference_mode()
    def __call__(self, text: Tensor, pitch: Tensor, energy: Tensor, style: Tensor, source: Tensor) -> Tensor:
        """FEATURES -> a waveform (600L,)."""
        text, pitch, energy, source = (_signal(x, self.dtype) for x in (text, pitch, energy, source))
        pitch, energy = self.convolutions["F0_conv"](pitch), self.convolutions["N_conv"](energy)
        x = self._block(torch.cat([text, pitch, energy], 1), style, "encode")
        text = self.convolutions["asr_res.0"](text)
        for i in range(4):
            x = self._block(torch.cat([x, text, pitch, energy], 1), style, f"decode.{i}")
        for i in range(2):
            x = self.convolutions[f"generator.ups.{i}"](F.leaky_relu(x, 0.1))
            if i == 1:
                x = torch.cat([x[..., 1:2], x], 3)  # the first position mirrored: as many as the source has
            x = x + self._snake_block(self.convolutions[f"generator.noise_convs.{i}"](source), style, f"generator.noise_res.{i}")
            a, b, c = (self._snake_block(x, style, f"generator.resblocks.{3 * i + j}") for j in range(3))
            x = (a + b + c) / 3
        log_magnitude, phase = self.convolutions[SPECTRUM](F.leaky_relu(x, 0.01).float())[0, :, 0].chunk(2)
        spectrum = torch.polar(log_magnitude.exp(), phase.sin())
        return OVERLAP * torch.istft(spectrum, FFT_SAMPLES, HOP_SAMPLES, window=torch.hann_window(FFT_SAMPLES))

    def _norm(self, x: Tensor, style: Tensor, path: str) -> Tensor:
        """Adaptive instance normalisation (Huang and Belongie 2017): that of the one batch item is its batch normalisation."""
        gain, shift = self.linears[f"{path}.fc"](style)[0].chunk(2)
        return F.batch_norm(x, None, None, 1 + gain, shift, training=True)

    def _block(self, x: Tensor, style: Tensor, path: str) -> Tensor:
        y = F.leaky_relu(self._norm(x, style, f"{path}.norm1"), 0.2)
        if upsample := self.convolutions.get(f"{path}.pool"):
            x, y = x.repeat_interleave(2, 3), upsample(y)
        y = self._norm(self.convolutions[f"{path}.conv1"](y), style, f"{path}.norm2")
        y = self.convolutions[f"{path}.conv2"](F.leaky_relu(y, 0.2))
        return (self.convolutions[f"{path}.conv1x1"](x) + y) * 0.5**0.5

    def _snake_block(self, x: Tensor, style: Tensor, path: str) -> Tensor:
        """Residual dilated convolutions after the activation x + sin^2(ax) / a, whose output stays periodic (Ziyin et al. 2020)."""
        for i in range(3):
            y = x
            for half in (1, 2):
                y = self._norm(y, style, f"{path}.adain{half}.{i}")
                alpha = self.alphas[f"decoder.decoder.{path}.alpha{half}.{i}"]
                y = self.convolutions[f"{path}.convs{half}.{i}"](torch.addcdiv(y, torch.sin(alpha * y).square_(), alpha))
            x = x + y
        return x


def _signal(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, L) -> (B, C, 1, L)."""
    return x[:, :, None].to(dtype).contiguous(memory_format=torch.channels_last)
