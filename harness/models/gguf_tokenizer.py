"""The tokenizer of a GGUF file whose vocabulary is SentencePiece's byte-pair encoding, as Gemma's.

transformers would read such a file as a unigram model, which splits texts in another way than the
model was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Token types of a GGUF file.
CONTROL = 3  # has a meaning of its own, as the end of a text
USER = 4  # is always one token, wherever it occurs
BYTE = 6
SPACE = "▁"
# The special tokens: transformers' names to GGUF's.
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """A fast transformers tokenizer that encodes as SentencePiece does.

    It writes the file's begin-of-text token in front, unless the file says otherwise.
    """
    from gguf import GGUFReader

    fields = GGUFReader(str(path)).fields

    def value(key: str, default: Any = None) -> Any:
        field = fields.get(f"tokenizer.ggml.{key}")
        return default if field is None else field.contents()

    ids = {name: value(f"{key}_token_id") for name, key in SPECIAL.items()}
    return build_tokenizer(
        value("tokens"), value("scores"), value("token_type"), ids, value("add_bos_token", True)
    )


def build_tokenizer(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    ids: Mapping[str, int],
    add_bos: bool = True,
) -> PreTrainedTokenizerFast:
    """A fast tokenizer from the vocabulary of a GGUF file.

    tokens, scores, types: of every id, in order. ids: those of "bos", "eos", "unk" and "pad".
    add_bos: whether a text begins with the begin-of-text token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    # A GGUF file writes user tokens (runs of spaces) with spaces, all others as SentencePiece does.
    tokens = [
        token.replace(" ", SPACE) if kind == USER else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    inner = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            _merges(tokens, scores, types),
            unk_token=tokens[ids["unk"]],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    inner.normalizer = normalizers.Replace(" ", SPACE)
    inner.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # User tokens are matched in the normalised text, where runs of spaces are; the longest first.
    inner.add_tokens(
        [AddedToken(token, normalized=True) for token in _of_type(USER, tokens, types)]
    )
    inner.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token in _of_type(CONTROL, tokens, types)
        ]
    )
    bos = tokens[ids["bos"]]
    if add_bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids["bos"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": tokens[i] for name, i in ids.items()},
    )


def _merges(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """The list of pairs that a fast tokenizer joins, in the order in which SentencePiece joins.

    SentencePiece joins the two neighbours whose union has the highest score. A fast tokenizer goes
    by a list, so the list holds every pair that makes a token, the best tokens first.
    """
    score = {
        token: scores[i] for i, token in enumerate(tokens) if types[i] not in (BYTE, USER, CONTROL)
    }
    merges = []
    for token in sorted(score, key=lambda token: -score[token]):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges += [(head, tail) for head, tail in cuts if head in score and tail in score]
    return merges


def _of_type(wanted: int, tokens: Sequence[str], types: Sequence[int]) -> list[str]:
    return [token for token, kind in zip(tokens, types, strict=True) if kind == wanted]
