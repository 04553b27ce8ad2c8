"""The training stages, by name."""

from omni.stages.audio import AudioStage
from omni.stages.base import OmniStage
from omni.stages.codec import CodecStage
from omni.stages.plain_gpt import PlainGPTStage
from omni.stages.sft import SFTStage
from omni.stages.speech_lm import SpeechLMStage
from omni.stages.talker import TalkerStage
from omni.stages.text import TextStage
from omni.stages.vision import VisionStage
from omni.stages.vocoder import VocoderStage

STAGES: dict[str, type[OmniStage]] = {  # type: ignore[type-arg]
    stage.name: stage
    for stage in (TextStage, PlainGPTStage, AudioStage, VisionStage, CodecStage, VocoderStage, TalkerStage, SFTStage, SpeechLMStage)
}
