"""A skill of the user's own: JSONL files named in the order."""

from pathlib import Path

from harness.base.errors import UserError, did_you_mean
from harness.base.files import read_jsonl
from harness.skills.skill import Example, Skill


class FileSkill(Skill):
    """A user's own skill: one JSONL file a split, the name of a grader, no code.

    Each row holds ``prompt`` (a text or chat messages), ``demonstration`` (text; may be absent
    outside train), ``reference`` (any JSON value) and optionally ``id`` and ``source``.
    """

    def __init__(self, name, files, grader, place="order"):
        from harness.skills.graders import GRADERS

        if grader not in GRADERS:
            raise UserError(place, f"unknown grader {grader!r}", did_you_mean(grader, GRADERS))
        self.name, self.files, self.splits = (
            name,
            {k: Path(v) for k, v in files.items()},
            tuple(files),
        )
        self.description = f"{name}, from " + ", ".join(p.name for p in self.files.values())
        self._metrics = {grader: GRADERS[grader]}
        for path in self.files.values():
            if not path.is_file():
                raise UserError(place, f"{path} is not a file", "give the path of a JSONL file")

    metrics = property(lambda self: self._metrics)

    def reference(self, row, place):
        reference = super().reference(row, place)
        if reference == []:
            raise UserError(place, "`reference` is an empty list", "name at least one right answer")
        return reference

    def load(self, split):
        path, rows = self.files[split], []
        for number, row in read_jsonl(path):
            place = f"{path}, row {number}"
            prompt = chat_prompt(row, place)
            if "reference" not in row:
                raise UserError(
                    place, "has no `reference`", "the grader compares the answer with it"
                )
            demonstration = row.get("demonstration")
            if not (isinstance(demonstration, str) or (demonstration is None and split != "train")):
                raise UserError(
                    place, "`demonstration` must be a text", "a train row shows a good response"
                )
            if not isinstance(row.get("source"), str | None):
                raise UserError(place, "`source` must be a text")
            rows.append(
                Example(
                    str(row.get("id", number)),
                    prompt,
                    demonstration,
                    self.reference(row, place),
                    row.get("source"),
                )
            )
        if not rows:
            raise UserError(path, "has no rows")
        return rows


def chat_prompt(row, place):
    """The ``prompt`` of a JSONL row as chat messages. Raises UserError at ``place`` if it is
    neither a text nor messages.
    """
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    good = (
        isinstance(prompt, list)
        and prompt
        and all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in prompt
        )
    )
    if not good or prompt[-1]["role"] != "user":
        raise UserError(place, "`prompt` must be a text or chat messages that end in a user turn")
    return prompt
