"""The tokenizer of a GGUF file whose vocabulary is SentencePiece's byte-pair encoding, as Gemma's
is.

transformers would read such a file as a unigram model, which splits texts in another way than the
model was trained on.
"""

# token types of a GGUF file: one byte, always a token of its own, has a meaning of its own
BYTE, USER, CONTROL = 6, 4, 3
SPACE = "▁"


def read_tokenizer(path):
    """A fast transformers tokenizer that encodes as SentencePiece does, with the file's
    begin-of-text token in front.
    """
    from gguf import GGUFReader

    fields = GGUFReader(path).fields

    def value(key, default=None):
        field = fields.get(f"tokenizer.ggml.{key}")
        return default if field is None else field.contents()

    ids = {
        name: value(f"{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    return build_tokenizer(
        value("tokens"), value("scores"), value("token_type"), ids, value("add_bos_token", True)
    )


def build_tokenizer(tokens, scores, types, ids, add_bos=True):
    """tokens, scores, types: of every id, in order. ids: those of "bos", "eos", "unk" and "pad".

    Of two neighbours that may be joined, SentencePiece joins those whose union has the highest
    score; a fast tokenizer joins by a list, so the list holds every way of making a token, the best
    tokens first.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    # A GGUF file writes the runs of spaces with spaces, all other tokens as SentencePiece does.
    tokens = [t.replace(" ", SPACE) if kind == USER else t for t, kind in zip(tokens, types)]
    plain = {t: i for i, t in enumerate(tokens) if types[i] not in (BYTE, USER, CONTROL)}
    merges = []
    for token in sorted(plain, key=lambda t: -scores[plain[t]]):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        merges += [(left, right) for left, right in cuts if left in plain and right in plain]
    inner = Tokenizer(
        models.BPE(
            {t: i for i, t in enumerate(tokens)},
            merges,
            unk_token=tokens[ids["unk"]],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    inner.normalizer = normalizers.Replace(" ", SPACE)
    inner.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # Looked for in the normalised text, where the runs of spaces are; the longest first.
    inner.add_tokens(
        [AddedToken(t, normalized=True) for t, kind in zip(tokens, types) if kind == USER]
    )
    inner.add_special_tokens(
        [
            AddedToken(t, normalized=False, special=True)
            for t, kind in zip(tokens, types)
            if kind == CONTROL
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
