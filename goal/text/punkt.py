"""The parameters of NLTK's Punkt: English lists that come with the project, or NLTK's own when asked for."""

import functools
import string
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING

from goal.errors import UserError

if TYPE_CHECKING:
    from nltk.tokenize.punkt import PunktParameters

EMBEDDED = "embedded"
PUNKT_TAB = "punkt_tab/"

# Words whose full stop does not end a sentence by itself. Words that also end sentences (in, no, sun, art)
# are not here: _BEFORE_NUMBERS and _AFTER_INCHES name the company in which they are abbreviations.
_ABBREVIATIONS = """
    mr mrs ms dr prof rev hon gov sen rep gen col sgt capt lt cmdr st ste mt ft jr sr messrs mme
    inc ltd corp co bros dept univ assn est ave blvd rd hwy apt bldg
    etc vs approx ca cf al resp incl excl esp viz misc min max avg
    r.s.v.p ph.d b.sc m.sc bzw usw
    lb lbs oz sq cu yd hr hrs mph
    jan feb aug sept oct nov dec
"""
_NEVER_LAST = "mr mrs ms dr prof rev vs ca cf viz approx e.g i.e"
_BEFORE_NUMBERS = "no nos fig figs p pp vol ch sec eq art nr mar apr jun jul sep"
# German, in which an ordinal is a number with a full stop and what it counts has a capital: am 3. Mai.
_AFTER_ORDINALS = """
    januar februar märz april mai juni juli august september oktober november dezember
    jahrhundert stock stockwerk etage reihe
"""
_AFTER_INCHES = "wide long tall high deep thick across by x diameter in of"
# Words that open a sentence with a capital and are small inside one. Behind an abbreviation, an initial or an
# ellipsis they tell Punkt that a sentence begins ("at 4.5 m. The wall"), where a name does not ("St. Mary").
_STARTERS = """
    the a an this that these those it its he she they we you i his her their there here one some many most
    several each every both all another other in on at by to from of for with without within under over above
    below behind beneath beside besides between near next inside outside across along around through
    throughout against among toward towards beyond past up down off left right and but or so yet also then
    when while where as if because although though however since after before until once now today is are was
    were has have what which who how why whose only even just not no two three four five six seven eight nine
    ten
"""


@functools.cache
def load(name: str) -> Callable[[str], list[tuple[int, int]]]:
    """Punkt's sentence spans (start, end) of a text, by parameters `embedded` or `punkt_tab/<language>`.

    Raises UserError for another name, and where NLTK's parameters are not installed.
    """
    # NLTK takes seconds to import, and only those who split need it.
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer

    if name == EMBEDDED:
        tokenizer = PunktSentenceTokenizer(_embedded())
    elif name.startswith(PUNKT_TAB):
        try:
            tokenizer = PunktTokenizer(name.removeprefix(PUNKT_TAB))
        except (LookupError, ValueError) as error:
            fix = f"run `python -m nltk.downloader punkt_tab`, or choose `{EMBEDDED}`"
            raise UserError(f"sentences: {name!r} is not installed: {fix}") from error
    else:
        raise UserError(f"sentences: {name!r}: expected `{EMBEDDED}` or `{PUNKT_TAB}<language>`")
    # A list, since NLTK's limit of 5 s would count the time of whoever takes the spans one by one.
    return lambda text: list(tokenizer.span_tokenize(text))


def _embedded() -> "PunktParameters":
    from nltk.tokenize.punkt import _ORTHO_MID_LC, PunktParameters

    parameters = PunktParameters()
    parameters.abbrev_types = set(_ABBREVIATIONS.split())
    # Two and three letters, as in U.S., p.m., z.B., J.R.R.: Punkt's own rule for initials knows only one.
    for length in (2, 3):
        parameters.abbrev_types |= set(map(".".join, product(string.ascii_lowercase, repeat=length)))
    starters = _STARTERS.split()
    parameters.ortho_context.update(dict.fromkeys(starters, _ORTHO_MID_LC))
    parameters.collocations = set(product(_NEVER_LAST.split(), starters))
    parameters.collocations |= {(word, "##number##") for word in _BEFORE_NUMBERS.split()}
    parameters.collocations |= {("##number##", word) for word in _AFTER_ORDINALS.split()}
    parameters.collocations |= {("in", word) for word in _AFTER_INCHES.split()}
    return parameters
