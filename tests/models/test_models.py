"""Models: fingerprint, save, load, stop tokens, and output_head against the model's own logits."""

import copy
import json
import os
import shutil

import pytest
import torch

from harness.base.errors import UserError
from harness.models.chat import chat_tokens, stop_tokens
from harness.models.checkpoint import check_saving, model_fingerprint, save_checkpoint
from harness.models.forward import hidden_states, output_head, pad_right
from harness.models.load import load_model, read_model, resolve_dtype
from tests.sampling.test_sampler import other_model


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "granite", "cohere", "qwen2"])
def test_head_is_the_models_own(kind):
    """Logits that are soft-capped (Gemma), divided (Granite), multiplied (Cohere) or plain.

    The rows have different lengths and are padded on the right.
    """
    model = other_model(kind, 260)
    rows = [[5, 6, 7, 8, 9, 10, 11], [1, 2, 3], [200]]
    with torch.no_grad():
        batch = output_head(model)(hidden_states(model, pad_right(rows, "cpu")))
        for row, logits in zip(rows, batch, strict=True):
            wanted = model(torch.tensor([row])).logits[0]
            assert torch.allclose(logits[: len(row)], wanted, atol=1e-5)
            plain = model.get_output_embeddings()(hidden_states(model, torch.tensor([row])))[0]
            # Qwen2's logits alone are those of the linear map.
            assert torch.allclose(plain, wanted, atol=1e-2) is (kind == "qwen2")


def test_head_passes_gradients_through():
    """Also through the soft cap: as autograd through the model's own logits."""
    model, ids = other_model("gemma2", 260), torch.tensor([[5, 6, 7, 8]])
    gradients = []
    for logits in (model(ids).logits, output_head(model)(hidden_states(model, ids))):
        model.zero_grad()
        logits.log_softmax(-1)[0, :, 9].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) and a.any() for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["gemma2", "qwen2"])
def test_head_adds_up_gradients_in_place(kind):
    """In chunks they add up to autograd's gradients of all logits at once.

    The projection is tied to the embedding, and a gradient is there already.
    """
    model, ids = other_model(kind, 260), torch.tensor([[5, 6, 7, 8, 9]])
    gradients = []

    def gradient(weight):
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad

    for gradient_of, chunks in ((None, [slice(0, 5)]), (gradient, [slice(0, 2), slice(2, 5)])):
        model.zero_grad()
        logits, states = output_head(model, gradient_of), hidden_states(model, ids)[0]
        leaf = states.detach().requires_grad_()
        for part in chunks:
            logits(leaf[part]).log_softmax(-1)[:, 9].sum().backward()
        states.backward(leaf.grad)
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert gradients[0][0].any() and all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fingerprint_differs_with_any_weight(tiny, dtype):
    model, _ = load_model(str(tiny), dtype, "cpu")
    first = model_fingerprint(model)
    assert len(first) == 32 and first == model_fingerprint(model.train()) == model_fingerprint(
        copy.deepcopy(model)
    )
    seen = {first}
    for _, p in model.named_parameters():  # Flip the last bit of one number in each tensor.
        with torch.no_grad():
            bits = p.view(torch.int16 if dtype == "bfloat16" else torch.int32).view(-1)
            bits[-1] ^= 1
            seen.add(model_fingerprint(model))
            bits[-1] ^= 1
    assert len(seen) == 1 + len(list(model.parameters())) and model_fingerprint(model) == first


def test_fingerprint_does_not_change_with_a_reload(tiny_model, tiny, tmp_path):
    model, tokenizer = tiny_model
    save_checkpoint(model, tokenizer, tmp_path / "kept")
    again, tokenizer_again = load_model(str(tmp_path / "kept"), "float32", "cpu")
    assert (
        model_fingerprint(again)
        == model_fingerprint(model)
        == model_fingerprint(load_model(str(tiny), "float32", "cpu")[0])
    )
    assert model_fingerprint(load_model(str(tiny), "bfloat16", "cpu")[0]) != model_fingerprint(
        model
    )
    chat = [{"role": "user", "content": "Ünïcode 12  two spaces"}]
    assert chat_tokens(tokenizer_again, chat) == chat_tokens(tokenizer, chat)


def test_fingerprint_knows_the_positions(tiny_model):
    """Two models with the same weights and other rotary frequencies are two models."""
    model = copy.deepcopy(tiny_model[0])
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 12345.0}
    assert model_fingerprint(model) != model_fingerprint(tiny_model[0])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["model", "tokenizer", "removal"])
def test_save_is_whole_or_not_there(tiny_model, tmp_path, monkeypatch, where):
    """After a save that is killed, the folder holds old weights, new weights, or nothing.

    The next save succeeds.
    """
    model, tokenizer = copy.deepcopy(tiny_model[0]), tiny_model[1]
    folder = tmp_path / "weights"
    save_checkpoint(model, tokenizer, folder)
    old = model_fingerprint(model)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    new = model_fingerprint(model)

    def cut_short(*args, **kwargs):
        raise Killed

    def half_removed(path, **kwargs):
        if path.exists():
            (path / "model.safetensors").unlink()
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if where == "removal":
            patch.setattr(shutil, "rmtree", half_removed)
        else:
            patch.setattr(
                type(model if where == "model" else tokenizer), "save_pretrained", cut_short
            )
        save_checkpoint(model, tokenizer, folder)
    if folder.exists():
        assert model_fingerprint(load_model(str(folder), "float32", "cpu")[0]) in (old, new)
    save_checkpoint(model, tokenizer, folder)
    assert model_fingerprint(load_model(str(folder), "float32", "cpu")[0]) == new
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def test_stop_tokens(tiny_model):
    """The end of a turn in the template closes a demonstration.

    All end tokens of the model stop a completion.
    """
    model, tokenizer = copy.deepcopy(tiny_model[0]), copy.deepcopy(tiny_model[1])
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert stop_tokens(model, tokenizer) == (end, {end})
    model.generation_config.eos_token_id = [258, 259]
    assert stop_tokens(model, tokenizer) == (end, {end, 258, 259})
    # Here turns end with another token than texts.
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|system|>\n")
    assert stop_tokens(model, tokenizer) == (
        tokenizer.convert_tokens_to_ids("<|system|>"),
        {end, 258, 259},
    )
    # It closes a turn whatever the generation config says.
    model.generation_config = None
    assert stop_tokens(model, tokenizer) == (259, {end, 259})


def test_end_of_turn_in_a_template_with_the_letters_of_the_probe(tiny_model):
    """The text after the answer may hold any letters: <|reply|> is no answer that ends in y."""
    tokenizer = copy.deepcopy(tiny_model[1])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|reply|>", "<|yes|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "<|reply|><|yes|>")
    reply, yes = tokenizer.convert_tokens_to_ids(["<|reply|>", "<|yes|>"])
    model = copy.deepcopy(tiny_model[0])
    model.generation_config.eos_token_id = [reply, yes]
    assert stop_tokens(model, tokenizer)[0] == reply


def broken(change):
    def write(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return write


BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), "is not a model folder"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{oops"), "not a valid JSON"),
    "no such architecture": (broken(lambda c: c.update(model_type="nonesuch")), "nonesuch"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "weights cut short": (lambda f: os.truncate(f / "model.safetensors", 5000), "cannot be loaded"),
    "weights empty": (lambda f: os.truncate(f / "model.safetensors", 0), "cannot be loaded"),
    "weights of fewer layers": (
        broken(lambda c: c.update(num_hidden_layers=3)),
        "do not fit its config.json",
    ),
    "weights of another width": (
        broken(lambda c: c.update(intermediate_size=48)),
        "do not fit its config.json",
    ),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tok*")], "cannot be loaded"),
    "tokenizer is not JSON": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be loaded"),
    "no chat template": (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
}


@pytest.mark.parametrize("case", BAD)
def test_load_refuses_a_bad_folder(tiny, tmp_path, case):
    shutil.copytree(tiny, tmp_path / "m")
    spoil, words = BAD[case]
    spoil(tmp_path / "m")
    with pytest.raises(UserError, match=words) as error:
        load_model(str(tmp_path / "m"), "float32", "cpu", place="order.yaml: model")
    assert (
        str(error.value).startswith("order.yaml: model: ")
        and "; " in str(error.value)
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize(
    "name,words",
    [
        ("nobody/no-such-model", "cannot be loaded"),
        ("no-such-model", "cannot be loaded"),
        ("./no-such-folder", "is not a folder"),
        ("/no/such/folder", "is not a folder"),
        ("~/no-such-folder", "is not a folder"),
    ],
)
def test_load_refuses_a_name_without_a_model(name, words):
    with pytest.raises(UserError, match=words):
        load_model(name)


def test_load_refuses_logits_that_output_head_does_not_compute(tiny, monkeypatch):
    """A model class that changes its logits in its own way is refused, not trained wrongly."""
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def bent(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 1.001
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", bent)
    with pytest.raises(UserError, match="computes its logits in an unknown way"):
        load_model(str(tiny), "float32", "cpu")


def test_loaded_models_evaluate(tiny):
    model, _ = load_model(str(tiny), "bfloat16", "cpu")
    assert not model.training and model.dtype == torch.bfloat16
    assert (
        resolve_dtype("float32", "cpu") == torch.float32
        and resolve_dtype("bfloat16", "cpu") == torch.bfloat16
    )


GENERATION = {
    "torn": '{"eos_token_id": 25',
    "a list": "[256]",
    "empty": "",
    "an end that is a text": '{"eos_token_id": "256"}',
    "an end that is true": '{"eos_token_id": [256, true]}',
}


@pytest.mark.parametrize("how", GENERATION)
def test_a_generation_config_that_would_lose_end_tokens(how, tiny, tmp_path):
    """transformers takes a torn one for none."""
    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(GENERATION[how])
    said = "is not JSON|is not a JSON object|it is the number of a token"
    with pytest.raises(UserError, match=r"generation_config.json.*(" + said + ")"):
        load_model(str(tmp_path / "m"), "float32", "cpu")


def test_keys_of_beams_mean_nothing_without_beams(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "m")
    config = {"eos_token_id": 256, "length_penalty": 2.0, "early_stopping": True}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(config))
    model, tokenizer = load_model(str(tmp_path / "m"), "float32", "cpu")
    check_saving(model, tokenizer)
    assert model.generation_config.eos_token_id == 256


def test_files_that_were_read_before_are_not_hashed_again(tiny, tmp_path, monkeypatch):
    """One byte of a weight that changes in place is another file; a copy is one too."""
    from harness.models import checkpoint

    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    hashed = []
    whole = checkpoint.model_fingerprint

    def counted(model):
        hashed.append(model)
        return whole(model)

    monkeypatch.setattr(checkpoint, "model_fingerprint", counted)
    first = checkpoint.file_fingerprint(read_model(str(folder), "float32", "cpu"))
    assert first == checkpoint.file_fingerprint(read_model(str(folder), "float32", "cpu"))
    assert len(hashed) == 1 and first == whole(load_model(str(folder), "float32", "cpu")[0])
    half = checkpoint.file_fingerprint(read_model(str(folder), "bfloat16", "cpu"))
    assert len(hashed) == 2 and half != first
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    with open(weights, "r+b") as file:
        file.write(data)
    model = read_model(str(folder), "float32", "cpu")
    assert checkpoint.file_fingerprint(model) == whole(model) != first and len(hashed) == 3
    model.name_or_path = "someone/model"  # a hub's, of a commit that is not known
    assert checkpoint.file_fingerprint(model) == whole(model) and len(hashed) == 4
