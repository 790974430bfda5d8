"""What does compressing a speech recogniser cost in word error rate, and what does it gain?"""

# Part of every run's id: to be raised with any change after which a run may find another number.
__version__ = "0.2.0"
