"""A tiny random model with a byte-level tokenizer, and skills and orders small enough for it."""

import copy
import gc
import json
import os
import shutil
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as harness/__init__.py, before PyTorch
# What is measured differs by machine and hour; numbers that two runs share must not.
os.environ.setdefault("HARNESS_PRODUCTS", "fixed")
# side by side they share the cores
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // workers)))

import pytest
import torch
import yaml

from harness.base.console import STAMP

# A shell starts a job in the background with Ctrl-C ignored, nohup one with the end of a terminal,
# and every process below inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish(session):
    """Packages and tests stay to the end: every stage collects garbage, half a second with them."""
    gc.collect()
    gc.freeze()


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|end|>", bos_token="<|end|>"
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]}
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_size(tokenizer):
    """Settings of a config: 2 layers and width 32, with weights so large that answers differ."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def save_tiny(folder, seed=0, **changes):
    """A Llama of that size whose head is its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    settings = {**tiny_size(tokenizer), "tie_word_embeddings": True, **changes}
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_qwen3(folder, **changes):
    """A Qwen3 of that size with a head of its own: it normalises queries and keys,
    and its heads together are wider than the model.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(2)
    settings = {**tiny_size(tokenizer), "head_dim": 16, "tie_word_embeddings": False, **changes}
    Qwen3ForCausalLM(Qwen3Config(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of the tiny model."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny):
    from harness.models.load import load_model

    return load_model(str(tiny), "float32", "cpu")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory):
    from harness.models.load import load_model

    return load_model(str(save_tiny_qwen3(tmp_path_factory.mktemp("qwen3"))), "float32", "cpu")


@pytest.fixture(params=["tiny_model", "tiny_qwen3"])
def either(request):
    """A copy of a tiny model of one of two architectures, and the tokenizer."""
    model, tokenizer = request.getfixturevalue(request.param)
    return copy.deepcopy(model), tokenizer


def read_lines(path):
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unwritable(target):
    """A stream of bytes that takes nothing: a full disk (``full``), or a pipe without a reader."""
    if target == "full":
        return open("/dev/full", "wb", buffering=0)
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "wb", buffering=0)


def without_progress(said):
    """The lines of stderr but for those of what goes on, which bear the time."""
    return [line for line in said.splitlines() if not STAMP.match(line)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def order_file(tiny, tmp_path):
    """A function that writes an order with two JSONL skills for the tiny model; keywords change its
    keys.
    """

    def write(name="tiny.yaml", **changes):
        for skill in ("vowels", "digits"):
            for split, count in (("train", 12), ("validation", 4), ("test", 4)):
                rows = [
                    {
                        "prompt": f"{skill} {split} {i}?",
                        "demonstration": f"{skill[0]}{i}",
                        "reference": f"{skill[0]}{i}",
                    }
                    for i in range(count)
                ]
                write_rows(tmp_path / f"{skill}-{split}.jsonl", rows)
        order = {
            "model": {"name": str(tiny), "dtype": "float32", "device": "cpu"},
            "skills": [
                {
                    "name": s,
                    "train": f"{s}-train.jsonl",
                    "validation": f"{s}-validation.jsonl",
                    "test": f"{s}-test.jsonl",
                    "grader": "token_f1",
                    "max_new_tokens": 6,
                }
                for s in ("vowels", "digits")
            ],
            "methods": {
                "sft": {"learning_rate": 1e-3},
                "sdft": {"learning_rate": 1e-3},
                "grpo": {"learning_rate": 1e-3, "group_size": 2},
            },
            "budget": {"prompts": 12, "batch_size": 4},
            "evaluate": {"every_steps": 2},
            **changes,
        }
        path = tmp_path / name
        path.write_text(yaml.safe_dump(order, sort_keys=False))
        return path

    return write


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    reason = "playwright is not installed"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as running:
        if path is None and not os.path.exists(running.chromium.executable_path):
            pytest.skip("no Chromium is installed")
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """A function that opens a file; at the end nothing was asked for elsewhere or went wrong."""
    problems, contexts = [], []

    def open_file(path, address="", width=1280, **how):
        context = browser.new_context(viewport={"width": width, "height": 800}, **how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: m.type in ("error", "warning") and problems.append(m.text))
        page.on("request", lambda r: r.url.startswith("file:") or problems.append(r.url))
        page.on("dialog", lambda dialog: problems.append(dialog.message) or dialog.dismiss())
        page.goto(path.as_uri() + address)
        if path.parent.name == "viewer":
            settle(page)
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not problems


def settle(page):
    """Waits until a page of the viewer shows its address."""
    page.wait_for_function(
        """() => {const main = document.getElementById('main');
        return main && main.dataset.shown === location.hash && main.ariaBusy === 'false'}"""
    )
