"""Several clips in one window: a model that always hears 30 seconds takes as long for three."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_asr.audio import SAMPLE_RATE

# Silence between two clips of a window, as between two sentences.
GAP_SECONDS = 0.3
# Of so many windows one holds a single clip, for transcription meets padding all the time.
WINDOWS_A_SINGLE = 8


def pack(
    samples: Sequence[int], tokens: Sequence[int], window: int, room: int
) -> list[tuple[int, ...]]:
    """Which clips share a window, by their numbers; every clip is in one window.

    Clips are taken from the longest to the shortest, and each goes to the first window that has
    room for it. Before that, one clip for every `WINDOWS_A_SINGLE` windows is set aside for a
    window of its own; these are spread evenly over all lengths.

    Args:
        samples: Length of every clip, at most `window`.
        tokens: Length of every clip's transcript in tokens, at most `room`.
        window, room: The most samples and tokens of a window.
    """
    order = sorted(range(len(samples)), key=lambda clip: -samples[clip])
    count = -(-len(_first_fit(order, samples, tokens, window, room)) // WINDOWS_A_SINGLE)
    alone = {order[int((index + 0.5) * len(order) / count)] for index in range(count)}
    rest = [clip for clip in order if clip not in alone]
    packed = _first_fit(rest, samples, tokens, window, room)
    return [*packed, *((clip,) for clip in order if clip in alone)]


def _first_fit(
    order: Sequence[int], samples: Sequence[int], tokens: Sequence[int], window: int, room: int
) -> list[tuple[int, ...]]:
    windows: list[list[int]] = []
    for clip in order:
        for clips in windows:
            longer = joined_length([samples[one] for one in (*clips, clip)])
            if longer <= window and sum(tokens[one] for one in (*clips, clip)) <= room:
                clips.append(clip)
                break
        else:
            windows.append([clip])
    return [tuple(clips) for clips in windows]


def joined_length(samples: Sequence[int]) -> int:
    """Samples of several clips with the gaps between them."""
    return sum(samples) + (len(samples) - 1) * round(GAP_SECONDS * SAMPLE_RATE)


def joined(waves: Sequence[np.ndarray]) -> np.ndarray:
    """The clips, each of shape [samples], one after the other with silence between them."""
    gap = np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32)
    parts = [part for wave in waves for part in (gap, wave)]
    return np.concatenate(parts[1:])
