"""Captions as CLIP's tokens, with the token span of every sentence.

Letters: B texts in a batch, T tokens of a text, BOS and EOS included.
"""

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from goal.errors import UserError
from goal.text.cleaning import repair
from goal.text.sentences import Sentence, split_sentences

__all__ = ["Sentence", "Tokens", "pad", "split_sentences", "tokenize"]

# BOS, one token and EOS.
SHORTEST_CONTEXT = 3


@dataclass(frozen=True)
class Tokens:
    """A tokenised text: ids (T,) from BOS to EOS without padding, and each sentence's half-open token span.

    BOS is token 0. A span is None when the sentence has no token in ids.
    """

    ids: Int[Tensor, " T"]
    spans: list[tuple[int, int] | None]


def tokenize(caption: str, sentences: Sequence[Sentence], context_length: int | None) -> Tokens:
    """Tokenise the whole caption with CLIP's BPE and give every sentence its span of tokens (TSL, text side).

    The ids are open_clip's (T <= context_length; what does not fit is cut and EOS kept; a context_length of
    None cuts nothing). Sentences may come in any order, overlap and leave gaps. A token belongs to the
    sentence in which its first character lies. A span is clipped where the context ends, and None when no
    token of the sentence is left.

    Offsets refer to the caption as given. Captions of a manifest are clean, so that their offsets hold in
    what CLIP reads; in another text an offset becomes the length of what stands before it, once repaired.

    Raises UserError for offsets outside the caption and a context that cannot hold BOS, a token and EOS.
    """
    if context_length is not None and context_length < SHORTEST_CONTEXT:
        raise UserError(f"context_length {context_length}: must be at least {SHORTEST_CONTEXT} tokens")
    _check(caption, sentences)
    repaired = repair(caption)
    bpe = _bpe()
    ids, starts = [bpe.sot_token_id], []
    for word in bpe.pat.finditer(repaired.lower()):
        tokens, places = _encode(word.group())
        ids += tokens
        starts += [word.start() + place for place in places]
    last = len(ids) if context_length is None else min(len(ids), context_length - 1)
    ids[last:] = [bpe.eot_token_id]
    fix = str if repaired == caption else repair
    spans = []
    for sentence in sentences:
        # Some capitals become two characters in lower case, such as the dotted capital I.
        borders = (len(fix(caption[:offset]).lower()) for offset in (sentence.start, sentence.end))
        # + 1: BOS is token 0.
        first, end = (bisect_left(starts, border) + 1 for border in borders)
        spans.append((first, min(end, last)) if first < min(end, last) else None)
    return Tokens(torch.tensor(ids), spans)


def pad(ids: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, "B T"]:
    """Texts of different length as one batch, zero padded to its longest; ValueError for an empty batch."""
    if not ids:
        raise ValueError("pad: no texts")
    return torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)


def _check(caption: str, sentences: Sequence[Sentence]) -> None:
    for row, sentence in enumerate(sentences):
        if not 0 <= sentence.start <= sentence.end <= len(caption):
            raise UserError(
                f"sentence {row}: offsets {sentence.start}:{sentence.end} do not lie in the caption of "
                f"{len(caption)} characters ({caption[:40]!r}); were they made for another caption?"
            )


@functools.cache
def _bpe():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@functools.lru_cache(maxsize=1 << 16)
def _encode(word: str) -> tuple[list[int], list[int]]:
    """The token ids of a cleaned word, and the character in which each begins (a token is some bytes)."""
    bpe = _bpe()
    character = [place for place, char in enumerate(word) for _ in char.encode()]
    ids, places, byte = [], [], 0
    for part in bpe.bpe("".join(bpe.byte_encoder[value] for value in word.encode())).split(" "):
        ids.append(bpe.encoder[part])
        places.append(character[byte])
        byte += len(part.removesuffix("</w>"))
    return ids, places
