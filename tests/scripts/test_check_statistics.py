import numpy as np
import pytest
from check_statistics import Speech, hear


def test_rates_are_those_of_much_speech() -> None:
    speech = Speech(200_000, loops=0.01, more_loops=0.01)
    heard = hear(speech, np.random.default_rng(0))
    for system, true_percent in enumerate(speech.true_percent):
        assert heard.sample(system).percent == pytest.approx(true_percent, abs=0.2)


def test_no_word_stands_at_an_end() -> None:
    heard = hear(Speech(50, speakers=3, loops=0.5), np.random.default_rng(0), systems=3)
    assert len(heard.systems) == 3
    assert all(marks[-1, 1] == 0 for system in heard.systems for marks in system)
    assert heard.speakers is not None
    assert set(heard.speakers) == {0, 1, 2}
