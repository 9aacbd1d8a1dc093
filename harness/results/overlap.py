"""Questions that are asked in a test and were taught in training, as results.json counts them."""

from typing import TypedDict


class Overlap(TypedDict):
    """What the measured questions of one split share with one train split."""

    skill: str  # whose questions are measured
    split: str
    train: str  # the skill with whose train split they are compared
    questions: int  # measured
    same: int  # of them the normalised prompt stands in train
    near: int  # others whose words nearly do
    note: str  # the skill's own: why that is meant; "" without one


OVERLAP = {  # the shape of an entry of results.json
    "skill": str,
    "split": str,
    "train": str,
    "questions": int,
    "same": int,
    "near": int,
    "note?": str,
}


def sentence(overlap: Overlap) -> str:
    """One line for people."""
    same, near = overlap["same"], overlap["near"]
    parts = [f"{same:,} stand"] if same else []
    parts += [f"{near:,} nearly stand"] if near else []
    own = overlap["train"] == overlap["skill"]
    where = "its own train split" if own else f"the train split of {overlap['train']}"
    note = overlap.get("note")
    return (
        f"{overlap['skill']}: of {overlap['questions']:,} {overlap['split']} questions "
        f"{' and '.join(parts)} in {where}" + (f" ({note})" if note else "")
    )
