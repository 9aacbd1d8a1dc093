"""What chat templates do: rows, ends of turns, thoughts, the date, arguments.

The reference for a row is what transformers itself renders and tokenises of the whole conversation.
"""

import copy
import datetime
import json
import shutil
from types import SimpleNamespace

import pytest

from harness.base.errors import UserError
from harness.base.thoughts import THINK, Thoughts, tags_in
from harness.models.chat import (
    ChatInputs,
    chat_tokens,
    opens_thought,
    stop_tokens,
    template_variables,
    thoughts_of,
)
from harness.models.demonstration import Demonstrations
from harness.models.load import load_model, load_tokenizer
from harness.sampling.sampler import Texts
from tests.conftest import save_tiny, tiny_tokenizer
from tests.models.chat_templates import CLOSING, TEMPLATES, TOKENIZERS

QUESTION = [{"role": "user", "content": "Q?"}]
THOUGHT = "<think>\nFrance.\n</think>\n\nParis."
TEXTS = ("Paris.", " Paris\n", THOUGHT)
# Templates that write a finished turn otherwise than a live one: {name: what is learned of TEXTS}.
EMPTY = "\n</think>\n\n"
LIVE = {
    "qwq": (EMPTY + "Paris.", EMPTY + " Paris\n", "France.\n</think>\n\nParis."),
    "r1": (EMPTY + "Paris.", EMPTY + " Paris\n", "France.\n</think>\n\nParis."),
    "r1 first": (None, None, THOUGHT),
    "seed-oss": tuple(f"\n</seed:think>\n\n{text}" for text in TEXTS),
}


def fake_model(*ends):
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=list(ends) or None))


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def rows_of(tokenizer, name):
    """(the tokenizer with the template, its Demonstrations)."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = TEMPLATES[name]
    declared = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>"])
    model = fake_model(*declared) if name == "glm 4.5" else fake_model()
    end, stops = stop_tokens(model, tokenizer)
    assert end == tokenizer.convert_tokens_to_ids(CLOSING[name])
    assert stops == {end, tokenizer.eos_token_id, *(model.generation_config.eos_token_id or [])}
    return tokenizer, Demonstrations(tokenizer, end)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_row_is_the_conversation_as_the_template_writes_it(tokenizer, name):
    """Up to the token that closes the turn; what transformers renders behind it is not learned."""
    tokenizer, rows = rows_of(tokenizer, name)
    prompt = chat_tokens(tokenizer, QUESTION)
    for i, text in enumerate(TEXTS):
        learned = rows.tokens(QUESTION, text)
        assert learned[-1] == rows.end and rows.end not in learned[:-1]
        live = LIVE.get(name, (None,) * 3)[i]
        assert rows.text(QUESTION, text)[1] is (live is not None)
        if live is not None:
            assert tokenizer.decode(learned) == live + CLOSING[name]
            continue
        conversation = [*QUESTION, {"role": "assistant", "content": text}]
        variables = ChatInputs().variables(tokenizer.chat_template)
        whole = tokenizer.apply_chat_template(conversation, return_dict=False, **variables)
        if name == "plain":  # it writes no token that closes a turn
            assert tokenizer.decode(prompt + learned).endswith(f"assistant: {text}<|endoftext|>")
        elif name == "glm 4.5":
            assert prompt + learned[:-1] == whole
        else:
            assert prompt + learned == whole[: len(prompt + learned)]
            rest = tokenizer.decode(whole[len(prompt + learned) :]).strip()
            assert rest == ("<|endoftext|>" if name == "phi 3" else "")


def test_an_answer_that_joins_the_prompt_keeps_the_prompts_tokens():
    """The first tokens of the answer are its own where the whole conversation would join them with
    the prompt's last one; no blank is invented.
    """
    for make in TOKENIZERS.values():
        tokenizer, rows = rows_of(make(), "plain")
        prompt = chat_tokens(tokenizer, QUESTION)
        learned = rows.tokens(QUESTION, "Paris.")
        assert tokenizer.decode(prompt + learned) == "user: Q?\nassistant: Paris.<|endoftext|>"
    assert tokenizer.convert_ids_to_tokens(learned)[:2] == ["Paris", "."]


@pytest.mark.parametrize(
    "name, arguments, text, taught",
    [
        ("qwen3", {}, "Paris.", "<think>\n\n</think>\n\nParis."),
        ("qwen3", {}, THOUGHT, THOUGHT),
        ("qwen3", {"enable_thinking": False}, "Paris.", "Paris."),
        ("qwen3", {"enable_thinking": False}, THOUGHT, "Paris."),  # the prompt is without thoughts
        ("qwen3", {}, "France.\n</think>\n\nParis.", THOUGHT),
        ("qwen3 thinking", {}, "Paris.", "\n</think>\n\nParis."),
        ("qwen3 thinking", {}, THOUGHT, "France.\n</think>\n\nParis."),
        ("r1", {}, "France.</think>Paris.", "France.</think>Paris."),
        ("r1", {}, "<think>France.</think>Paris.", "France.</think>Paris."),
        ("glm 4.5", {}, "Paris.", "\n<think></think>\nParis."),
        ("glm 4.5", {"enable_thinking": False}, "Paris.", "\nParis."),
        ("gpt-oss", {}, "Paris.", "<|channel|>final<|message|>Paris."),
        (
            "gpt-oss",  # refused by the template in a finished turn
            {},
            "<|channel|>analysis<|message|>F<|end|><|start|>assistant<|channel|>final<|message|>P",
            "<|channel|>analysis<|message|>F<|end|><|start|>assistant<|channel|>final<|message|>P",
        ),
        ("mistral v3", {}, "Paris.", " Paris."),
        ("llama 2", {}, " Paris.\n", " Paris. "),
        ("llama 3", {}, " Paris.\n", "Paris."),
        ("cohere", {}, "Paris.", "<|START_RESPONSE|>Paris.<|END_RESPONSE|>"),
    ],
)
def test_what_is_written_around_an_answer(name, arguments, text, taught):
    tokenizer, rows = rows_of(TOKENIZERS["bytes"](), name)
    rows = Demonstrations(tokenizer, rows.end, ChatInputs(arguments=arguments))
    assert tokenizer.decode(rows.tokens(QUESTION, text)[:-1]) == taught


def test_a_template_that_changes_some_answers_is_left_out_for_them():
    """The demonstration is learned as it stands, and it is counted as a live turn."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m.content }}", "{{ m.content | replace('&', 'and') }}"
    )
    rows = Demonstrations(tokenizer, tokenizer.eos_token_id)
    assert rows.text(QUESTION, "a & b") == ("a & b", True)
    assert rows.text(QUESTION, "a and b") == ("a and b", False)


# ---- the end of a turn --------------------------------------------------------------------------


def test_the_templates_end_stops_whatever_the_generation_config_says():
    tokenizer = TOKENIZERS["bytes"]()
    tokenizer.chat_template = TEMPLATES["qwen2.5"]
    closing, other = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert stop_tokens(fake_model(other), tokenizer) == (closing, {closing, other})
    tokenizer.eos_token = None
    assert stop_tokens(fake_model(), tokenizer) == (closing, {closing})


@pytest.mark.parametrize(
    "template, eos, words",
    [
        ("{% for m in messages %}{{ m.content }} {% endfor %}", None, "writes nothing"),
        (
            "{% for m in messages %}{{ m.content }}[DONE]\n{% endfor %}",
            "<|end|>",
            "writes '[DONE]', which",
        ),
    ],
)
def test_a_model_without_an_end_is_refused(tmp_path, template, eos, words):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    with pytest.raises(UserError) as error:
        stop_tokens(fake_model(), tokenizer, "order.yaml: model")
    line = str(error.value)
    assert line.startswith("order.yaml: model: no token ends a turn") and words in line
    assert "set eos_token in tokenizer_config.json" in line


# ---- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template, words",
    [
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "drops or changes"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "drops or"),
        ("{% for m in messages %}{{ m.content[:3] }}{% endfor %}", "drops or changes"),
        ("{% for i in range(10000000) %}x{% endfor %}", r"fails on messages .*OverflowError"),
        ("{{ 1 / 0 }}", r"fails on messages .*ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"fails on messages .*RecursionError"),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('a\nb') }}"
            "{% endif %}{{ m.content }}{% endfor %}",
            "fails on messages of user, assistant",
        ),
    ],
)
def test_a_template_that_keeps_no_answer_is_refused(tiny, tmp_path, template, words):
    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=words) as error:
        load_tokenizer(str(tmp_path / "m"), place="order.yaml: model")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("size", [100, 258, 259])
def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path, size):
    save_tiny(tmp_path / "m", vocab_size=size, bos_token_id=0, eos_token_id=0)
    with pytest.raises(UserError, match=rf"up to id 259 .*the model has {size} embeddings"):
        load_model(str(tmp_path / "m"), "float32", "cpu")


def test_code_of_a_models_folder_is_never_run(tiny, tmp_path):
    """No question is asked on the terminal either: a UserError in one line."""
    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "m" / "modeling_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"model_type": "xx", "auto_map": {"AutoConfig": "modeling_x.X"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="needs code that comes with the model"):
        load_tokenizer(str(tmp_path / "m"))
    assert not (tmp_path / "ran").exists()


def test_a_token_for_images_needs_no_embedding(tmp_path):
    """Gemma 3 has one, also in the sizes without eyes; any other token needs its embedding."""
    save_tiny(tmp_path / "m")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.init_kwargs["image_token"] = "<image>"
    tokenizer.save_pretrained(tmp_path / "m")
    assert len(load_model(str(tmp_path / "m"), "float32", "cpu")[1]) == 261
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="up to id 261 \\('<other>'\\)"):
        load_model(str(tmp_path / "m"), "float32", "cpu")


# ---- thoughts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, opened, answer",
    [
        ("Rome", False, "Rome"),
        (" Rome\n", False, " Rome\n"),
        ("<think>Oslo?</think>Rome", False, "Rome"),
        ("<think>\nOslo?\n</think>\n\nRome", False, "Rome"),
        ("Oslo?</think> Rome", True, "Rome"),
        ("Oslo?</think> Rome", False, "Rome"),
        ("<think>Oslo?</think><think>Bergen?</think>Rome", False, "Rome"),
        ("Rome", True, ""),  # a thought that never ends
        ("<think>Rome", False, ""),
        ("Rome <think>Oslo", False, "Rome "),
        ("", True, ""),
        ("</think>", False, ""),
        ("<think></think>", False, ""),
    ],
)
def test_what_follows_a_thought_is_the_answer(text, opened, answer):
    assert THINK.answer(text, opened) == answer


@pytest.mark.parametrize(
    "template, tags",
    [
        ("{{ '<think>\n' }}", ("<think>", "</think>")),
        ("content.split('</think>')[-1]", ("<think>", "</think>")),
        ("<seed:think>", ("<seed:think>", "</seed:think>")),
        ("<thought> </thought>", ("<thought>", "</thought>")),
        ("[THINK]", ("[THINK]", "[/THINK]")),
        ("◁think▷", ("◁think▷", "◁/think▷")),
        ("<|END_THINKING|>", ("<|START_THINKING|>", "<|END_THINKING|>")),
        ("<|begin_of_thought|>", ("<|begin_of_thought|>", "<|end_of_thought|>")),
        ("<longcat_think>", ("<longcat_think>", "</longcat_think>")),
        ("'</Thought>' in content", ("<Thought>", "</Thought>")),
        ("<thinking_process>", ("<thinking_process>", "</thinking_process>")),
        ("<|think|> <|/think|>", ("<|think|>", "<|/think|>")),
        ("<|thought_start|>", ("<|thought_start|>", "<|thought_end|>")),
        ("<|think_begin|> <|think_end|>", ("<|think_begin|>", "<|think_end|>")),
        ("<|start_of_thinking|>", ("<|start_of_thinking|>", "<|end_of_thinking|>")),
        ("<|end_of_thought|>", ("<|begin_of_thought|>", "<|end_of_thought|>")),
        ("<|inner_prefix|>", ("<|inner_prefix|>", "<|inner_suffix|>")),
        ("'<|channel>thought\n'", ("<|channel>thought", "<channel|>")),
        ("<no_think> <think_off> <rethink>", None),
        ("message[reasoning] and message.reasoning_content, <tool_call>", None),
        ("You think. <answer>", None),
    ],
)
def test_a_template_names_its_tags(template, tags):
    assert tags_in(template) == (tags and Thoughts(*tags))


@pytest.mark.parametrize(
    "name, text, answer",
    [
        ("qwen3", "<think>\nOslo?\n</think>\n\nRome.<|im_end|>", "Rome."),
        ("qwen3", "Rome.<|im_end|>", "Rome."),
        ("qwen3", "<think>\nRome", ""),
        ("r1", "Oslo?\n</think>\n\nRome.<|end_of_sentence|>", "Rome."),
        ("r1", "Rome.<|end_of_sentence|>", ""),  # the prompt has opened the thought
        ("seed-oss", "Oslo?</seed:think>Rome.<seed:eos>", "Rome."),
        ("magistral", "[THINK]Oslo?[/THINK]Rome.</s>", "Rome."),  # special tokens
        ("magistral", "[THINK]Oslo?", ""),
        ("gpt-oss", "<|channel|>final<|message|>Rome.<|return|>", "Rome."),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Oslo?<|end|><|start|>assistant<|channel|>final<|message|>"
            "Rome.<|return|>",
            "Rome.",
        ),
        ("gpt-oss", "<|channel|>analysis<|message|>Rome", ""),
        # These models have no thoughts: a tag is text.
        ("qwen2.5", "<think>Oslo?</think>Rome.<|im_end|>", "<think>Oslo?</think>Rome."),
        ("cohere", "<|START_RESPONSE|>Rome.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "Rome."),
        ("llama 3", "<think>Rome", "<think>Rome"),
    ],
)
def test_samplers_take_thoughts_off(name, text, answer):
    tokenizer, _ = rows_of(TOKENIZERS["bytes"](), name)
    prompt, tokens = chat_tokens(tokenizer, QUESTION), tokenizer(text)["input_ids"]
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert Texts(tokenizer).of(prompt, tokens) == (answer, whole)


def test_a_question_about_tags_opens_no_thought():
    tokenizer, _ = rows_of(TOKENIZERS["bytes"](), "qwen3")
    asked = chat_tokens(tokenizer, [{"role": "user", "content": "What is <think>"}])
    assert not opens_thought(tokenizer, asked, thoughts_of(tokenizer))
    assert opens_thought(tokenizer, tokenizer("x <think>\n")["input_ids"], THINK)


# ---- date and arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template, written",
    [
        ("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}", "2025-02-01 00:00:00.000000"),
        (TEMPLATES["llama 3"], "Today Date: 01 Feb 2025<"),
        (
            "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
            "{{ date_string }}",
            "01 Feb 2025",
        ),
        ("{% macro day() %}{{ strftime_now('%d') }}.{% endmacro %}{{ day() }}", "01."),
    ],
)
def test_the_date_is_the_orders(template, written):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    inputs = ChatInputs("2025-02-01")
    assert written in tokenizer.decode(chat_tokens(tokenizer, QUESTION, inputs=inputs))
    assert inputs.protocol(template) == {"date": "2025-02-01"}
    assert chat_tokens(tokenizer, QUESTION) == chat_tokens(tokenizer, QUESTION)
    today = datetime.date.today().strftime("%d %b %Y")
    assert today not in tokenizer.decode(chat_tokens(tokenizer, QUESTION))


def test_llamas_own_date_is_the_default():
    """Its older templates write it where they are told none."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ date_string | default('26 Jul 2024') }}"
    told = chat_tokens(tokenizer, QUESTION)
    assert tokenizer.decode(told) == tokenizer.apply_chat_template(QUESTION, tokenize=False)


@pytest.mark.parametrize("drawn", ["{{ ['a', 'b'] | random }}", "{{ lipsum(1) }}"])
def test_a_template_that_draws_at_random_is_refused(drawn, tiny, tmp_path):
    """Its prompts would be others in every call; no evaluation could be kept or repeated."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    path = folder / "chat_template.jinja"
    path.write_text(drawn + path.read_text())
    with pytest.raises(UserError, match=r"draws at random by `(random|lipsum)`"):
        load_tokenizer(str(folder))


def test_a_template_with_a_byte_order_mark_is_refused(tiny, tmp_path):
    path = shutil.copytree(tiny, tmp_path / "model") / "chat_template.jinja"
    path.write_text("\ufeff" + path.read_text())
    with pytest.raises(UserError, match="begins with a byte order mark"):
        load_tokenizer(str(path.parent))


def test_a_template_without_a_date_has_none_in_its_protocol():
    for name in ("qwen3", "gemma"):
        assert ChatInputs("2025-02-01").protocol(TEMPLATES[name]) == {}
    inputs = ChatInputs(arguments={"enable_thinking": False})
    assert inputs.protocol(TEMPLATES["qwen3"]) == {"template_arguments": {"enable_thinking": False}}


def test_arguments_are_those_that_the_template_reads():
    assert "enable_thinking" in template_variables(TEMPLATES["qwen3"])
    ChatInputs(arguments={"enable_thinking": True}).check(
        TEMPLATES["qwen3"], "o.yaml: chat_template"
    )
    for arguments, words in (
        ({"enable_thinkng": True}, "did you mean 'enable_thinking'"),
        ({"messages": []}, "reads no such argument"),
        ({"strftime_now": "x"}, "reads no such argument"),
    ):
        with pytest.raises(UserError, match=words):
            ChatInputs(arguments=arguments).check(TEMPLATES["qwen3"], "o.yaml: chat_template")
    with pytest.raises(UserError, match="it reads none"):
        ChatInputs(arguments={"a": 1}).check(TEMPLATES["vicuna"], "o.yaml")
