"""Chat templates of well-known models in short form, and tokenizers of the kinds that they have.

The templates are written for these tests from what the models' own are known to do around an
answer: tools, images and default system turns are left out.
"""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.conftest import tiny_tokenizer

LOOP, END = "{% for m in messages %}", "{% endfor %}"


def chatml(answer="{{ m.content }}", generation=""):
    """ChatML, with what stands in an assistant's turn and behind the generation prompt's header."""
    return (
        LOOP + "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + answer + "{% else %}"
        "{{ m.content }}{% endif %}<|im_end|>\n" + END + "{% if add_generation_prompt %}"
        "<|im_start|>assistant\n" + generation + "{% endif %}"
    )


# The thought and the answer of a turn, as Qwen3's template takes them apart.
APART = (
    "{% set thought = '' %}{% set text = m.content %}{% if '</think>' in m.content %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
QWEN3 = (
    APART + "{% if loop.last or thought %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ text }}"
)
CUT = "{{ m.content.split('</think>')[-1] }}"  # thoughts are dropped from every finished turn
NO_THINK = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"

TEMPLATES = {
    "qwen2.5": chatml(),
    "qwen3": chatml(QWEN3, NO_THINK),
    "qwen3 thinking": chatml(QWEN3, "<think>\n"),
    "qwq": chatml(CUT, "<think>\n"),
    "r1": LOOP + "{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>" + CUT
    + "<|end_of_sentence|>{% endif %}" + END
    + "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
    "r1 first": LOOP + "{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>"
    + CUT + "<|end_of_sentence|>{% endif %}" + END
    + "{% if add_generation_prompt %}<|Assistant|>{% endif %}",
    "glm 4.5": "[gMASK]<sop>" + LOOP + "<|{{ m.role }}|>{{ '\n' }}{% if m.role == 'assistant' %}"
    + APART + "<think>{% if loop.last %}{{ thought.strip() }}{% endif %}</think>"
    "{{ '\n' + text.strip() }}{% else %}{{ m.content }}{% endif %}" + END
    + "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is false %}{{ '\n<think></think>' }}{% endif %}{% endif %}",
    "gpt-oss": "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    + LOOP + "<|start|>{{ m.role }}{% if m.role == 'assistant' %}"
    "{% if '<|channel|>' in m.content %}{{ raise_exception('thoughts go elsewhere') }}{% endif %}"
    "<|channel|>final<|message|>{{ m.content }}{% if loop.last %}<|return|>{% else %}<|end|>"
    "{% endif %}{% else %}<|message|>{{ m.content }}<|end|>{% endif %}" + END
    + "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    "mistral v3": "<s>" + LOOP + "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}" + END,
    "llama 2": LOOP + "{% if m.role == 'user' %}<s>[INST] {{ m.content.strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }} </s>{% endif %}" + END,
    "llama 3": "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}"
    "<|eot_id|>" + LOOP
    + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>" + END
    + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}",
    "gemma": "<bos>" + LOOP + "{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    + END + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "phi 3": LOOP + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n" + END
    + "{% if add_generation_prompt %}<|assistant|>\n{% else %}<|endoftext|>{% endif %}",
    "cohere": LOOP + "<|START_OF_TURN_TOKEN|>{{ m.role }}{% if m.role == 'assistant' %}"
    "<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% else %}{{ m.content }}{% endif %}"
    "<|END_OF_TURN_TOKEN|>" + END
    + "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|>assistant{% endif %}",
    "seed-oss": LOOP + "<seed:bos>{{ m.role }}\n{{ m.content }}<seed:eos>" + END
    + "{% if add_generation_prompt %}<seed:bos>assistant\n<seed:think>{% endif %}",
    "magistral": "<s>[INST]Think in [THINK] and [/THINK].[/INST]" + LOOP
    + "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}"
    "{{ m.content }}</s>{% endif %}" + END,
    "vicuna": LOOP + "{{ m.role | upper }}: {{ m.content }}"
    "{% if m.role == 'assistant' %}</s>{% else %} {% endif %}" + END
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "plain": LOOP + "{{ m.role }}: {{ m.content }}\n" + END
    + "{% if add_generation_prompt %}assistant: {% endif %}",
}  # fmt: skip
SPECIALS = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>"),
    *("<|end_of_sentence|>", "[gMASK]", "<sop>", "<|start|>", "<|message|>", "<|channel|>"),
    *("<|return|>", "[INST]", "[/INST]", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<bos>", "<start_of_turn>", "<end_of_turn>", "<|endoftext|>", "<|START_OF_TURN_TOKEN|>"),
    *("<|END_OF_TURN_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<seed:bos>"),
    *("<seed:eos>", "[THINK]", "[/THINK]"),
)
PLAIN = ("<think>", "</think>", "<seed:think>", "</seed:think>")
# What closes a turn; GLM's turns end where the next one begins.
CLOSING = {
    **dict.fromkeys(("qwen2.5", "qwen3", "qwen3 thinking", "qwq"), "<|im_end|>"),
    **dict.fromkeys(("r1", "r1 first"), "<|end_of_sentence|>"),
    **dict.fromkeys(("mistral v3", "llama 2", "magistral", "vicuna"), "</s>"),
    **{"glm 4.5": "<|user|>", "gpt-oss": "<|return|>", "llama 3": "<|eot_id|>"},
    **{"gemma": "<end_of_turn>", "phi 3": "<|end|>", "cohere": "<|END_OF_TURN_TOKEN|>"},
    **{"seed-oss": "<seed:eos>", "plain": "<|endoftext|>"},
}


def byte_tokenizer():
    """Byte-level, as GPT-2's, Llama 3's and Qwen's; it joins two line breaks, as they do."""
    tokenizer = tiny_tokenizer()
    return _with_tokens(tokenizer, PLAIN)


def sentencepiece_tokenizer(legacy=True):
    """Characters with SentencePiece's blanks, which invents one before a text.

    legacy: also behind every special token, as Llama 2's and Mistral's do.
    """
    from transformers import PreTrainedTokenizerFast

    letters = [chr(i) for i in range(33, 127)]
    pieces = [
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        *letters,
        "▁Paris",
        "▁P",
        "Paris",
    ]
    merges = [("▁", "P"), ("P", "a"), ("Pa", "r"), ("Par", "i"), ("Pari", "s"), ("▁", "Paris")]
    pieces += [piece for pair in merges if (piece := "".join(pair)) not in pieces]
    inner = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            merges[1:],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if legacy:
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    return _with_tokens(tokenizer, (*PLAIN,))


def _with_tokens(tokenizer, plain):
    specials = [*SPECIALS, "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    tokenizer.add_tokens(list(plain))
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


TOKENIZERS = {
    "bytes": byte_tokenizer,
    "sentencepiece, legacy": sentencepiece_tokenizer,
    "sentencepiece": lambda: sentencepiece_tokenizer(legacy=False),
}
