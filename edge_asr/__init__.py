"""What does compressing a speech recogniser cost in word error rate, and what does it gain?"""

__version__ = "0.4.0"
