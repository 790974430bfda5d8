"""Audio files as the models hear them: float32 mono at 16 kHz."""

from edge_asr.audio.decoding import SAMPLE_RATE, AudioFile, Decoded, decode
from edge_asr.audio.stream import DamagedAudio

__all__ = ["SAMPLE_RATE", "AudioFile", "DamagedAudio", "Decoded", "decode"]
