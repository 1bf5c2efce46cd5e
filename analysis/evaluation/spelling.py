"""British spellings as American ones, and scripts without spaces as characters."""

from __future__ import annotations

import re

#: stems before -our, with any ending: colour, favourite, neighbours
_OUR = (
    "arm|ard|behavi|cand|clam|col|endeav|fav|ferv|flav|harb|hon|hum|lab|neighb|od|parl|ranc|rum|"
    "sav|savi|splend|tum|val|vap|vig"
)
#: stems before -ise and -isation
_ISE = (
    "apolog|author|categor|character|civil|colon|critic|custom|emphas|energ|equal|familiar|final|"
    "general|global|harmon|hospital|ideal|immun|industrial|legal|local|maxim|memor|minim|"
    "mobil|modern|national|neutral|normal|optim|organ|penal|personal|polar|popular|priorit|"
    "random|real|recogn|revolution|social|special|stabil|standard|summar|symbol|synchron|"
    "theor|urban|util|vandal|visual"
)
#: stems whose last l is doubled before an ending
_DOUBLED = "cancel|counsel|fuel|jewel|label|level|marvel|model|quarrel|signal|total|travel"
#: stems before -re
_RE = r"calib|cent|fib|lit|lust|meag|\w*met|saltpet|somb|spect|theat"
_RULES = (
    (re.compile(rf"\b((?:un|dis|re|multi)?(?:{_OUR}))our"), r"\1or"),
    (re.compile(rf"\b((?:un|dis|re)?(?:{_ISE}))is(e[ds]?|ing|able|ations?|ers?)\b"), r"\1iz\2"),
    (re.compile(r"\b((?:re)?anal|catal|paral)ys(e[ds]?|ing|ers?)\b"), r"\1yz\2"),
    (re.compile(rf"\b((?:un|re)?(?:{_DOUBLED}))l(ed|ing|ers?|ings?)\b"), r"\1\2"),
    (re.compile(rf"\b({_RE})re(s?)\b"), r"\1er\2"),
    (re.compile(r"\b(def|off|pret|lic)ence(s?)\b"), r"\1ense\2"),
    (re.compile(r"\b(catal|anal)ogue(s?)\b"), r"\1og\2"),
)
#: single words
_WORDS = {
    "aeroplane": "airplane",
    "aeroplanes": "airplanes",
    "aluminium": "aluminum",
    "cosy": "cozy",
    "enrol": "enroll",
    "fulfil": "fulfill",
    "grey": "gray",
    "jewellery": "jewelry",
    "judgement": "judgment",
    "maths": "math",
    "mould": "mold",
    "moustache": "mustache",
    "plough": "plow",
    "programme": "program",
    "programmes": "programs",
    "pyjamas": "pajamas",
    "sceptical": "skeptical",
    "skilful": "skillful",
    "tyre": "tire",
    "tyres": "tires",
}
#: a character of a script that is written without spaces: Han, kana, Thai, Lao, Khmer, Burmese
_UNSPACED = re.compile("([㐀-鿿豈-﫿぀-ヿ฀-໿ក-៿က-႟])")


def american(text: str) -> str:
    """A text in lower case with frequent British spellings as American ones.

    Whisper's normaliser does so by a table that transformers does not contain.  These rules have
    the frequent words only; both texts of a comparison get them.

    Examples:
        >>> american("the neighbours organise a theatre in grey colours")
        'the neighbors organize a theater in gray colors'
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return " ".join(_WORDS.get(word, word) for word in text.split())


def split_characters(text: str) -> str:
    """A text with spaces around each character of a script that is written without spaces.

    Word errors are then character errors in these scripts.

    Examples:
        >>> split_characters("北京 is big").split()
        ['北', '京', 'is', 'big']
    """
    return _UNSPACED.sub(r" \1 ", text)
