"""Texts without a chat template: prompt and answer as they are, the end token behind the answer."""

import shutil

import pytest

from harness.base.errors import UserError
from harness.models.chat import chat_tokens, render
from harness.models.demonstration import Demonstrations
from harness.models.load import load_model, load_tokenizer
from harness.runs.reading import read_order

QUESTION = [{"role": "user", "content": "2 + 2 =\n"}]


def test_a_prompt_is_its_text(tiny):
    tokenizer, _ = load_tokenizer(str(tiny), template="plain")
    start = tokenizer.bos_token or ""
    assert render(tokenizer, QUESTION) == start + "2 + 2 =\n"
    answered = [*QUESTION, {"role": "assistant", "content": " 4 "}]
    assert render(tokenizer, answered, answered=True) == (
        start + "2 + 2 =\n 4 " + tokenizer.eos_token
    )


def test_a_demonstration_is_the_answer_and_the_end(tiny):
    tokenizer, _ = load_tokenizer(str(tiny), template="plain")
    rows = Demonstrations(tokenizer, tokenizer.eos_token_id)
    assert rows.text(QUESTION, "4") == ("4", False)
    assert tokenizer.decode(rows.tokens(QUESTION, "4")) == "4" + tokenizer.eos_token
    chat, _ = load_tokenizer(str(tiny))
    assert len(chat_tokens(tokenizer, QUESTION)) < len(chat_tokens(chat, QUESTION))


def test_a_tokenizer_without_a_template_can_be_plain(tiny, tmp_path):
    _, tokenizer = load_model(str(tiny), "float32", "cpu")
    shutil.copytree(tiny, tmp_path / "base")
    tokenizer.chat_template = None
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=r"no chat template; .*write model: \{template: plain\}"):
        load_tokenizer(str(tmp_path / "base"))
    assert load_tokenizer(str(tmp_path / "base"), template="plain")


def test_an_order_says_so(order_file):
    order = read_order(order_file())
    assert order.model.template == "chat" and "template" not in order.about()["model"]
    model = {"name": order.model.name, "template": "plain"}
    order = read_order(order_file(model=model))
    assert order.about()["model"]["template"] == "plain"
    with pytest.raises(UserError, match="template"):
        read_order(order_file(model={**model, "template": "chatty"}))
