"""Text normalizers: what is made of reference and hypothesis before words are compared.

Each maps text to text, keeps no state and knows nothing of the rest of the package.
"""

from edge_asr.evaluation.normalizers.basic import basic, plain
from edge_asr.evaluation.normalizers.english import english_2024
from edge_asr.evaluation.normalizers.english_2026 import english_2026
from edge_asr.evaluation.normalizers.frequent import frequent_words

__all__ = ["basic", "english_2024", "english_2026", "frequent_words", "plain"]
