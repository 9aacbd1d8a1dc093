"""What a start finds of an earlier one: checkpoints, memories of methods, the base model."""

import random

import numpy as np
import pytest
import torch

from harness.base.errors import UserError
from harness.learning.trainer import Trainer
from harness.runs import checkpoints
from harness.runs.reading import read_order
from harness.runs.sequence import run_order
from harness.runs.stage_run import SkillStage
from tests.conftest import read_lines, save_tiny


class Killed(Exception):
    pass


DRAWS = '''"""SFT in two phases that draws from every generator before each, with a memory."""

import random

import numpy
import torch

from harness.learning.packing import Row
from harness.learning.trainer import cross_entropy, learning
from methods.sft import SFT


class Draws(SFT):
    seen = torch.zeros(2)

    def phases(self, prompts):
        return [prompts, prompts]

    def learn(self, stage):
        self.seen = self.seen + 1
        with learning(stage, self.config) as trainer:
            for phase in range(2):
                drawn = {
                    "python": random.random(),
                    "numpy": numpy.random.rand(),
                    "torch": torch.rand(()),
                }
                for step in stage.steps(phase):
                    rows = [
                        Row(stage.prompt_tokens(e), stage.demonstration_tokens(e))
                        for e in step.examples
                    ]
                    step.log(**trainer.token_mean(rows, cross_entropy), **trainer.update())
                    step.log(**drawn, seen=self.seen[0])

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]
'''


def test_a_method_draws_the_same_again_on_a_resume(order_file, tmp_path, monkeypatch):
    """Killed in each phase of both stages; a start finds the generators in any state, and a GPU's
    tensors where there is none.
    """
    (tmp_path / "draws.py").write_text(DRAWS)
    order = read_order(
        order_file(methods={"draws": {"file": "draws.py"}}, evaluate={}, checkpoints={"minutes": 0})
    )
    found = {}
    for name, kills in (("alone", ()), ("killed", (2, 5, 8, 11))):
        real, updates = Trainer.update, 0

        def update(trainer):
            nonlocal updates
            updates += 1
            if updates in kills:
                raise Killed
            return real(trainer)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "update", update)
            for start in range(len(kills) + 1):
                for seeder in (random.seed, np.random.seed, torch.manual_seed):
                    seeder(1000 + 10 * len(kills) + start)
                memory = tmp_path / name / "runs/draws-seed0/stage-1/method.pt"
                if memory.exists():  # as if it had been saved on a GPU
                    patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
                    torch.save(torch.load(memory, map_location="cpu"), memory)
                    (memory.parent / "SHA256SUMS").unlink()
                    patch.setattr(torch.serialization, "location_tag", lambda storage: "cpu")
                if start < len(kills):
                    with pytest.raises(Killed):
                        run_order(order, tmp_path / name)
                else:
                    run_order(order, tmp_path / name)
        found[name] = [
            {k: v for k, v in row.items() if k != "seconds"}
            for stage in (1, 2)
            for row in read_lines(
                tmp_path / name / f"runs/draws-seed0/stage-{stage}/training.jsonl"
            )
        ]
    assert (
        found["killed"] == found["alone"]
        and [row["seen"] for row in found["alone"]] == [1] * 6 + [2] * 6
    )
    for generator in ("python", "numpy", "torch"):
        assert len({row[generator] for row in found["alone"]}) == 4  # one a phase


def test_another_base_model_under_the_same_name_is_refused(order_file, tmp_path, monkeypatch):
    """By a run that has measured it and by one that comes later, before either learns; the old
    weights are welcome again.
    """

    def go(**methods):
        order = read_order(
            order_file(
                model={
                    "name": str(save_tiny(tmp_path / "model", weights)),
                    "dtype": "float32",
                    "device": "cpu",
                },
                methods=methods,
                evaluate={},
            )
        )
        run_order(order, tmp_path / "out")

    weights, learned = 0, []

    def learn(stage):
        learned.append(stage.live.run.label)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SkillStage, "learn", learn)
        with pytest.raises(Killed):
            go(sft={})
        weights = 1
        for methods in ({"sft": {}}, {"dft": {}}):
            with pytest.raises(
                UserError,
                match=r"sft-seed0/stage-0/records\.jsonl: is of a base model with other weights "
                r"\(\w{16}\) than the order's model has now \(\w{16}\); "
                r"put the old weights back, name their revision",
            ):
                go(**methods)
        assert learned == ["sft"] and not (tmp_path / "out/runs/dft-seed0/stage-0").exists()
        weights = 0
        with pytest.raises(Killed):
            go(dft={})
    assert learned == ["sft", "dft"]


def test_a_checkpoint_of_another_edition_is_refused(order_file, tmp_path, monkeypatch):
    """Those of the first edition have none. The stage starts again once the file is removed."""
    order = read_order(order_file(methods={"sft": {}}, evaluate={}, checkpoints={"minutes": 0}))
    with monkeypatch.context() as patch:
        patch.setattr(SkillStage, "commit", lambda stage: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run_order(order, tmp_path / "out")
    path = tmp_path / "out/runs/sft-seed0/stage-1.partial/checkpoint/state.pt"
    state = torch.load(path, weights_only=True)
    assert state.pop("edition") == checkpoints.EDITION
    torch.save(state, path)
    (path.parent / "SHA256SUMS").unlink()
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        run_order(order, tmp_path / "out")
    assert str(caught.value) == (
        f"{path}: is a checkpoint of another edition of the harness; "
        "remove it: the stage starts over"
    )
    assert path.read_bytes() == before and not (tmp_path / "out/runs/sft-seed0/stage-1").exists()
    path.unlink()
    run_order(order, tmp_path / "out")
    assert (tmp_path / "out/runs/sft-seed0/stage-2/stage.json").exists()
