"""English number words as digits, exactly as Whisper's normalizer writes them.

"two hundred and five dollars" becomes "$205", "nineteen fifties" "1950s", "double oh seven"
"007". The rules, with what looks accidental about them, are those of openai/whisper,
whisper/normalizers/english.py, `EnglishNumberNormalizer`; published rates depend on all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction


class Kind(Enum):
    """What a number word does to the number being read."""

    ZERO = auto()
    ADDEND = auto()  # one to ninety
    MULTIPLIER = auto()
    SIGN = auto()
    CURRENCY = auto()
    PERCENT = auto()
    AND = auto()
    POINT = auto()
    REPEAT = auto()  # double, triple


@dataclass(frozen=True)
class NumberWord:
    """One word of the number lexicon.

    Attributes:
        kind: What it does.
        amount: Its value, or how often it repeats the next digit.
        ending: What follows the digits of a plural or an ordinal, which ends its number.
        symbol: The sign or currency written before the digits.
    """

    kind: Kind
    amount: int = 0
    ending: str = ""
    symbol: str = ""


_UNIT_NAMES = """one two three four five six seven eight nine ten
    eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"""
_TEN_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
_POWER_NAMES = """thousand million billion trillion quadrillion quintillion
    sextillion septillion octillion nonillion decillion"""

_UNITS = {word: amount for amount, word in enumerate(_UNIT_NAMES.split(), start=1)}
_TENS = {word: 10 * tens for tens, word in enumerate(_TEN_NAMES.split(), start=2)}
_MULTIPLIERS = {"hundred": 100} | {
    word: 1000**power for power, word in enumerate(_POWER_NAMES.split(), start=1)
}
_ZEROS = ("o", "oh", "zero")
_IRREGULAR_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "twelve": "twelfth",
}


def _plural(word: str) -> str:
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + ("es" if word == "six" else "s")


def _ordinal(word: str) -> str:
    if word.endswith("y"):
        return word[:-1] + "ieth"
    return _IRREGULAR_ORDINALS.get(word, word + "th")


def _lexicon() -> dict[str, NumberWord]:
    words = {word: NumberWord(Kind.ZERO) for word in _ZEROS}
    words["zeroth"] = NumberWord(Kind.ADDEND, ending="th")
    kinds = ((Kind.ADDEND, _UNITS | _TENS), (Kind.MULTIPLIER, _MULTIPLIERS))
    for kind, amounts in kinds:
        for word, amount in amounts.items():
            ending = {"one": "st", "two": "nd", "three": "rd"}.get(word, "th")
            words[word] = NumberWord(kind, amount)
            words[_plural(word)] = NumberWord(kind, amount, "s")
            words[_ordinal(word)] = NumberWord(kind, amount, ending)
    for symbol, signs in {"-": ("minus", "negative"), "+": ("plus", "positive")}.items():
        words |= {word: NumberWord(Kind.SIGN, symbol=symbol) for word in signs}
    for symbol, name in {"£": "pound", "€": "euro", "$": "dollar", "¢": "cent"}.items():
        words |= {word: NumberWord(Kind.CURRENCY, symbol=symbol) for word in (name, name + "s")}
    words |= {word: NumberWord(Kind.PERCENT) for word in ("per", "percent")}
    words |= {"and": NumberWord(Kind.AND), "point": NumberWord(Kind.POINT)}
    words |= {"double": NumberWord(Kind.REPEAT, 2), "triple": NumberWord(Kind.REPEAT, 3)}
    return words


_LEXICON = _lexicon()
_DECIMALS = {*_ZEROS, *_UNITS, *_TENS}

# Python turns at most 4,300 digits into an int; a longer run is a word like any other.
_MOST_DIGITS = 4000
_NUMERAL = re.compile(rf"\d{{1,{_MOST_DIGITS}}}(\.\d{{1,{_MOST_DIGITS}}})?")
_NUMERAL_WITH_SYMBOL = re.compile(rf"([-+£€$¢]?)({_NUMERAL.pattern})")

_AND_A_HALF = re.compile(r"\band\s+a\s+half\b")
_LETTER_THEN_DIGIT = re.compile(r"([a-z])([0-9])")
_DIGIT_THEN_LETTER = re.compile(r"([0-9])([a-z])")
_ENDING_APART = re.compile(r"([0-9])\s+(st|nd|rd|th|s)\b")
_MONEY_AND_CENTS = re.compile(r"([€£$][0-9]+) (?:and )?¢([0-9]{1,2})\b")
_CENTS_ALONE = re.compile(r"[€£$]0.([0-9]{1,2})\b")
_ONE = re.compile(r"\b1(s?)\b")


def _is_numeral(word: str) -> bool:
    return _NUMERAL.fullmatch(word) is not None


def _may_continue(following: str) -> bool:
    return following in _LEXICON or _is_numeral(following)


def _times(number: str, multiplier: int) -> int | None:
    """The product if `number` is a decimal number and the product a whole one."""
    if len(number) > _MOST_DIGITS:
        return None
    try:
        product = Fraction(number) * multiplier
    except ValueError:  # "." or "1.2.3"
        return None
    return product.numerator if product.denominator == 1 else None


class _Reader:
    """Reads words in order and writes them again, numbers as digits.

    Attributes:
        written: Words written so far.
        number: The number being read: an int while more can be added to it, a string of digits
            once they are only put side by side ("one oh", "3."), None between numbers.
        symbol: A sign or currency to stand before whatever is written next.
    """

    def __init__(self) -> None:
        self.written: list[str] = []
        self.number: int | str | None = None
        self.symbol = ""

    def read(self, previous: str, word: str, following: str) -> bool:
        """Take one word, given its neighbours; whether `following` is used up as well."""
        entry = _LEXICON.get(word)
        if entry is None:
            self._read_other(word)
            return False
        match entry.kind:
            case Kind.ZERO:
                self.number = self._digits() + "0"
            case Kind.ADDEND:
                self._add(entry.amount, previous)
            case Kind.MULTIPLIER:
                self._multiply(entry.amount)
            case Kind.SIGN:
                self.end_number()
                if _may_continue(following):
                    self.symbol = entry.symbol
                else:
                    self._write(word)
            case Kind.CURRENCY if self.number is not None:
                self.symbol = entry.symbol
                self.end_number()
            case Kind.PERCENT if self.number is not None:
                return self._percent(word, following)
            case Kind.AND | Kind.POINT | Kind.REPEAT if _may_continue(following):
                return self._join(entry, previous, word, following)
            case _:
                self._write_word(word)
        if entry.ending:
            self._write(f"{self.number}{entry.ending}")
        return False

    def end_number(self) -> None:
        """Write the number being read, if there is one."""
        if self.number is not None:
            self._write(str(self.number))

    def _write(self, text: str) -> None:
        self.written.append(self.symbol + text)
        self.symbol = ""
        self.number = None

    def _write_word(self, word: str) -> None:
        self.end_number()
        self._write(word)

    def _digits(self) -> str:
        return str(self.number or "")

    def _read_other(self, word: str) -> None:
        match = _NUMERAL_WITH_SYMBOL.fullmatch(word)
        if match is None:
            self._write_word(word)
        elif isinstance(self.number, str) and self.number.endswith("."):
            self.number += word
        else:
            self.end_number()
            symbol, digits = match[1], match[2]
            whole, _, decimals = digits.partition(".")
            self.symbol = symbol or self.symbol
            self.number = digits if int(decimals or 0) else int(whole)

    def _add(self, amount: int, previous: str) -> None:
        number = self.number
        below_ten = amount < 10
        if number is None:
            self.number = amount
        elif isinstance(number, str) and below_ten and previous in _TENS:
            self.number = number[:-1] + str(amount)  # "one oh" "twenty" "five": 1025
        elif (
            isinstance(number, int)
            and previous not in _UNITS
            and number % (10 if below_ten else 100) == 0
        ):
            self.number = number + amount
        else:
            self.number = f"{number}{amount}"

    def _multiply(self, multiplier: int) -> None:
        number = self.number
        if isinstance(number, int):  # only what follows the thousands: "two thousand three hundred"
            below_thousand = number % 1000
            self.number = number - below_thousand + below_thousand * multiplier
            return
        product = None if number is None else _times(number, multiplier)
        if product is None:
            self.end_number()
        self.number = multiplier if product is None else product

    def _percent(self, word: str, following: str) -> bool:
        if word == "per" and following != "cent":
            self._write_word(word)
            return False
        self._write(f"{self.number}%")
        return word == "per"

    def _join(self, entry: NumberWord, previous: str, word: str, following: str) -> bool:
        """Words that mean something only between numbers; `following` may be one."""
        if entry.kind is Kind.AND:
            if previous not in _MULTIPLIERS:
                self._write_word(word)
        elif entry.kind is Kind.POINT:
            # Before another number word, as "hundred" or "and", the point itself is lost.
            if following in _DECIMALS or _is_numeral(following):
                self.number = self._digits() + "."
        elif following in _UNITS or following in _ZEROS:
            digit = str(_LEXICON[following].amount)
            self.number = self._digits() + digit * entry.amount
            return True
        else:
            self._write_word(word)
        return False


def _with_point_five(text: str) -> str:
    """`and a half` as `point five` after a number word; other blanks around it are lost."""
    *parts, last = _AND_A_HALF.split(text)
    written: list[str] = []
    for part in parts:
        if words := part.split():
            after_number = words[-1] in _DECIMALS or words[-1] in _MULTIPLIERS
            written += [part, "point five" if after_number else "and a half"]
    if last.strip():
        written.append(last)
    return " ".join(written)


def digits_for_number_words(text: str) -> str:
    """The text with its numbers in digits, but a lone 1, which stays `one`.

    Args:
        text: Lower case, symbols removed but `.%$¢€£`.
    """
    text = _with_point_five(text)
    text = _LETTER_THEN_DIGIT.sub(r"\1 \2", text)
    text = _DIGIT_THEN_LETTER.sub(r"\1 \2", text)
    words = _ENDING_APART.sub(r"\1\2", text).split()
    reader = _Reader()
    used_up = False
    for previous, word, following in zip(["", *words], words, [*words[1:], ""], strict=False):
        used_up = not used_up and reader.read(previous, word, following)
    reader.end_number()
    text = " ".join(reader.written)
    text = _MONEY_AND_CENTS.sub(lambda match: f"{match[1]}.{int(match[2]):02d}", text)
    text = _CENTS_ALONE.sub(lambda match: f"¢{int(match[1])}", text)
    return _ONE.sub(r"one\1", text)
