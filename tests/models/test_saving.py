"""A model that loads and cannot be saved is found before anything is trained."""

import copy
import json
import shutil

import pytest

from harness.base.errors import UserError
from harness.models.checkpoint import check_saving, mend_sampling, save_checkpoint
from harness.models.load import load_model
from harness.runs.plan import plan
from harness.runs.reading import read_order
from harness.runs.sequence import run_order

# do_sample, further keys
MENDED = [
    {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
    {"temperature": 0.7, "top_k": 20, "min_p": 0.1},
    {"do_sample": False, "typical_p": 0.5, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.4},
    {"do_sample": False, "temperature": 0.9, "length_penalty": 2.0},
    {"early_stopping": True},
]
REFUSED = [
    {"pad_token_id": -1},
]


def with_generation(tiny, folder, keys):
    shutil.copytree(tiny, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 256, "bos_token_id": 256, **keys}))
    return folder


@pytest.mark.parametrize("keys", MENDED)
def test_keys_of_sampling_beside_no_sampling_are_taken_out(keys, tiny, tmp_path):
    folder = with_generation(tiny, tmp_path / "m", keys)
    model, tokenizer = load_model(str(folder), "float32", "cpu")
    check_saving(model, tokenizer)
    save_checkpoint(model, tokenizer, tmp_path / "again")
    again, _ = load_model(str(tmp_path / "again"), "float32", "cpu")
    assert again.generation_config.eos_token_id == 256
    assert again.generation_config.temperature in (None, 1.0)


def test_keys_of_sampling_stay_where_it_samples(tiny, tmp_path):
    keys = {"do_sample": True, "temperature": 0.9, "top_p": 0.6, "top_k": 20}
    model, tokenizer = load_model(
        str(with_generation(tiny, tmp_path / "m", keys)), "float32", "cpu"
    )
    check_saving(model, tokenizer)
    assert {key: getattr(model.generation_config, key) for key in keys} == keys
    mend_sampling(None)


@pytest.mark.parametrize("keys", REFUSED)
def test_what_cannot_be_mended_is_refused_before_a_folder_is_there(
    keys, tiny, tmp_path, order_file
):
    folder = with_generation(tiny, tmp_path / "m", keys)
    order = read_order(order_file(model={"name": str(folder), "device": "cpu"}))
    said = f"{order.path}: model: it can be loaded, but not be saved and loaded again ("
    for start in (run_order, plan):
        with pytest.raises(UserError) as caught:
            start(order, tmp_path / "out")
        assert str(caught.value).startswith(said) and len(str(caught.value)) < 600
        assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_comes_back_as_another_is_refused(tiny_model):
    model, tokenizer = tiny_model[0], copy.deepcopy(tiny_model[1])

    def save(folder, **_):
        changed = copy.deepcopy(tiny_model[1])
        changed.add_tokens(["<new>"])
        return changed.save_pretrained(folder)

    tokenizer.save_pretrained = save
    with pytest.raises(UserError, match="the tokenizer's vocabulary changes when it is saved"):
        check_saving(model, tokenizer)
