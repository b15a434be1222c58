"""The two tokenizers of `shapes`: a BPE for CLIP and a Unigram for T5, one token a word."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from torch import Tensor
from transformers import CLIPTokenizer, T5Tokenizer

from planner.measure.captions import NUMBERS, PLACES, RELATIONS
from planner.measure.outlines import HUES, SHAPES
from planner.zoo.draw import TEXTURES

TEXT_LENGTH = 12
"""Tokens of the T5 text (`max_sequence_length` of the reference call)."""

CLIP_LENGTH = 13
"""Tokens of the CLIP text, with its begin and end marks."""

_RESERVE = ("small", "large", "one", "five", "many", "pink", "white", "black", "gray", "with", "no")
"""Words the captions do not use yet, so that later training needs no new vocabulary."""


def words() -> list[str]:
    """Return every word of a caption in a fixed order."""
    phrases = " ".join([*PLACES.values(), *RELATIONS]).split()
    plural = [*(f"{shape}s" for shape in SHAPES if shape != "cross"), "crosses", "shapes"]
    known = ["a", "an", "and", "shape", *HUES, *SHAPES, *plural, *NUMBERS, *TEXTURES, *phrases]
    return list(dict.fromkeys([*known, *_RESERVE]))


def _merges() -> list[tuple[str, str]]:
    """Return byte-pair merges, the most frequent pair first, until each word is one token."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words()]
    found = []
    while pairs := Counter(pair for parts in split for pair in pairwise(parts)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        found.append(best)
        for parts in split:
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == best:
                    parts[at : at + 2] = ["".join(best)]
                at += 1
    return found


def clip_tokenizer() -> CLIPTokenizer:
    """Return the BPE tokenizer: letters as a base, and merges that join each word of a caption."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges = _merges()
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    tokens += ["".join(pair) for pair in merges]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=CLIP_LENGTH,
        pad_token="<|endoftext|>",
    )


def t5_tokenizer() -> T5Tokenizer:
    """Return the Unigram tokenizer, in which every word is one piece."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    pieces += [(f"▁{word}", -3.0) for word in words()]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)


class Words:
    """Both tokenizers, which give a caption's tokens as FluxPipeline pads them."""

    def __init__(self) -> None:
        """Build them."""
        self.clip, self.t5 = clip_tokenizer(), t5_tokenizer()

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Return the token ids for CLIP (n, CLIP_LENGTH) and for T5 (n, TEXT_LENGTH)."""
        how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        clip: Tensor = self.clip(captions, max_length=CLIP_LENGTH, **how).input_ids
        t5: Tensor = self.t5(captions, max_length=TEXT_LENGTH, **how).input_ids
        return clip, t5
