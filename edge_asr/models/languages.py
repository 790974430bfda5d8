"""Languages by code and name: what a user, a checkpoint or a manifest may call them.

The codes are those of Whisper's prompt (openai/whisper, whisper/tokenizer.py, v20250625). Nothing
here imports torch.
"""

from __future__ import annotations

import difflib
import re

ENGLISH = "en"

# Code, what ISO 639 calls it otherwise, and its names.
_TABLE = """
en eng: english
zh zho chi cmn: chinese, mandarin
de deu ger: german
es spa: spanish, castilian
ru rus: russian
ko kor: korean
fr fra fre: french
ja jpn: japanese
pt por: portuguese
tr tur: turkish
pl pol: polish
ca cat: catalan, valencian
nl nld dut: dutch, flemish
ar ara arb: arabic
sv swe: swedish
it ita: italian
id ind: indonesian
hi hin: hindi
fi fin: finnish
vi vie: vietnamese
he heb iw: hebrew
uk ukr: ukrainian
el ell gre: greek
ms msa may zsm: malay
cs ces cze: czech
ro ron rum mo: romanian, moldavian, moldovan
da dan: danish
hu hun: hungarian
ta tam: tamil
no nor nb nob: norwegian
th tha: thai
ur urd: urdu
hr hrv: croatian
bg bul: bulgarian
lt lit: lithuanian
la lat: latin
mi mri mao: maori
ml mal: malayalam
cy cym wel: welsh
sk slk slo: slovak
te tel: telugu
fa fas per pes: persian, farsi
lv lav lvs: latvian
bn ben: bengali, bangla
sr srp: serbian
az aze azj: azerbaijani
sl slv: slovenian
kn kan: kannada
et est ekk: estonian
mk mkd mac: macedonian
br bre: breton
eu eus baq: basque
is isl ice: icelandic
hy hye arm: armenian
ne nep npi: nepali
mn mon khk: mongolian
bs bos: bosnian
kk kaz: kazakh
sq sqi alb: albanian
sw swa swh: swahili
gl glg: galician
mr mar: marathi
pa pan: punjabi, panjabi
si sin: sinhala, sinhalese
km khm: khmer
sn sna: shona
yo yor: yoruba
so som: somali
af afr: afrikaans
oc oci: occitan
ka kat geo: georgian
be bel: belarusian
tg tgk: tajik
sd snd: sindhi
gu guj: gujarati
am amh: amharic
yi yid: yiddish
lo lao: lao
uz uzb uzn: uzbek
fo fao: faroese
ht hat: haitian creole, haitian
ps pus pbt: pashto, pushto
tk tuk: turkmen
nn nno: nynorsk
mt mlt: maltese
sa san: sanskrit
lb ltz: luxembourgish, letzeburgesch
my mya bur: myanmar, burmese
bo bod tib: tibetan
tl tgl fil: tagalog, filipino
mg mlg: malagasy
as asm: assamese
tt tat: tatar
haw: hawaiian
ln lin: lingala
ha hau: hausa
ba bak: bashkir
jw jv jav: javanese
su sun: sundanese
yue: cantonese
"""
_LINES = [line.partition(": ") for line in _TABLE.strip().splitlines()]
_CODES = {code: codes.split()[0] for codes, _, _ in _LINES for code in codes.split()}
_BY_NAME = {name: codes.split()[0] for codes, _, names in _LINES for name in names.split(", ")}
LANGUAGES = {codes.split()[0]: names.partition(",")[0] for codes, _, names in _LINES}

# A word for several of them says none of the others.
_ALSO = {"zh": {"yue"}, "no": {"nn"}, "nn": {"no"}}
# What says that nobody said.
_UNDETERMINED = (
    "und", "unk", "unknown", "none", "null", "nan", "n/a", "auto", "other", "mul", "multilingual",
    "mis", "zxx",
)  # fmt: skip


def language_code(word: str) -> str | None:
    """The code of a language by its code, name, locale or Whisper's token: `de` for `de`,
    `German`, `deu`, `de-AT` and `<|de|>`; None for none of them."""
    bare = word.strip().lower().removeprefix("<|").removesuffix("|>").replace("_", "-")
    found = _CODES.get(bare) or _BY_NAME.get(bare)
    if found is None and re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]{2,8})+", bare):
        found = _CODES.get(bare.partition("-")[0])
    return found


def nearest_language(word: str) -> str:
    """A hint for a misspelt language."""
    known = [*_BY_NAME, *LANGUAGES]
    match = difflib.get_close_matches(word.strip().lower(), known, n=1)
    return (
        f"did you mean {match[0]}? " if match else ""
    ) + "give a code or an English name, such as de or german"


def language_conflict(language: str, declared: str) -> bool:
    """Whether what a manifest's row declares is another language than `language`, a code.

    Codes of ISO 639, locales and names, alone or with more words ("Mandarin Chinese", "English
    (India)"), are understood; a language outside of the table is another one, and a value that
    names none, such as a number or `und`, is no conflict.
    """
    words = re.findall(r"[^\W\d_]+", declared.lower())
    if not words or declared.strip().lower() in _UNDETERMINED:
        return False
    whole = language_code(declared)
    meant = {whole} if whole else {_BY_NAME[word] for word in words if word in _BY_NAME}
    for code in tuple(meant):
        meant |= _ALSO.get(code, set())
    return language not in meant
