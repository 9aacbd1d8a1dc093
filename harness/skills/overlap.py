"""Questions of a test that were taught: the same by their words, or nearly the same.

Two questions are the same where ``normalise`` makes the same words of their prompts, without system
turns and without the turns with which all prompts of a skill begin. They are nearly the same where
the Jaccard index of their shingles is at least NEAR: the share of runs of SHINGLE words that both
have, of all that either has (Broder 1997; data sets are cleaned of their tests by it, as in Lee et
al. 2022, arXiv 2107.06499).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from harness.results.overlap import Overlap
from harness.skills.skill import Example, Skill
from harness.skills.words import normalise

SHINGLE = 8  # words
NEAR = 0.8
BLOCK = 1 << 22  # pairs of texts that are held at a time


def find_overlaps(
    skills: Sequence[Skill], measured: Mapping[tuple[str, str], Sequence[Example]]
) -> list[Overlap]:
    """The overlap of every measured split with every train split, where there is one.

    measured: {(skill, split): its examples}.
    """
    taught, asked = {}, {}
    for skill in skills:
        train = skill.examples("train")
        mine = {key: examples for key, examples in measured.items() if key[0] == skill.name}
        opening = _opening([_turns(e) for each in (train, *mine.values()) for e in each])
        taught[skill.name] = {_words(example, opening) for example in train} - {""}
        for key, examples in mine.items():
            asked[key] = [_words(example, opening) for example in examples]
    near = _near(
        sorted({words for questions in asked.values() for words in questions} - {""}),
        sorted({words for questions in taught.values() for words in questions}),
    )
    notes = {skill.name: skill.overlap_note for skill in skills}
    overlaps: list[Overlap] = []
    for (name, split), questions in asked.items():
        for other, prompts in taught.items():
            rest = [words for words in questions if words not in prompts]
            overlap: Overlap = {
                "skill": name,
                "split": split,
                "train": other,
                "questions": len(questions),
                "same": len(questions) - len(rest),
                "near": sum(not near.get(words, set()).isdisjoint(prompts) for words in rest),
                "note": notes[name] if other == name else "",
            }
            if overlap["same"] or overlap["near"]:
                overlaps.append(overlap)
    return overlaps


def _turns(example: Example) -> list[str]:
    return [turn["content"] for turn in example.prompt if turn["role"] != "system"]


def _opening(prompts: Sequence[list[str]]) -> int:
    """How many turns all prompts of a skill begin with: examples of the form, the same for all."""
    length = min(map(len, prompts)) - 1
    while any(prompt[:length] != prompts[0][:length] for prompt in prompts):
        length -= 1
    return length


def _words(example: Example, opening: int) -> str:
    """The normalised words of a question; its signs where it has no words."""
    text = "\n".join(_turns(example)[opening:])
    return normalise(text) or " ".join(text.split())


def _near(asked: Sequence[str], taught: Sequence[str]) -> dict[str, set[str]]:
    """{question of ``asked``: those of ``taught`` that it nearly is}; texts of normalised words."""
    if not asked or not taught:
        return {}
    shingles = [_shingles(text) for text in (*asked, *taught)]
    sizes = np.array([len(of_text) for of_text in shingles])
    text, group, weights = _groups(shingles, len(asked))
    is_asked = text < len(asked)
    mine, of_mine = text[is_asked], group[is_asked]
    of_theirs = group[~is_asked]
    theirs = text[~is_asked][np.argsort(of_theirs, kind="stable")] - len(asked)
    counts = np.bincount(of_theirs, minlength=len(weights))  # taught texts of a group
    starts = np.cumsum(counts) - counts
    # A product of sparse matrices, a block of rows at a time.
    costs = np.bincount(mine, counts[of_mine], len(asked)) + len(taught)
    blocks = np.cumsum(costs) // BLOCK
    near: dict[str, set[str]] = {}
    for block in np.unique(blocks):
        first, end = np.searchsorted(blocks, [block, block + 1])
        here = (mine >= first) & (mine < end)
        size, group = counts[of_mine[here]], of_mine[here]
        place = np.arange(size.sum()) + np.repeat(starts[group] - np.cumsum(size) + size, size)
        pairs = np.repeat(mine[here] - first, size) * len(taught) + theirs[place]
        both = np.bincount(pairs, np.repeat(weights[group], size), (end - first) * len(taught))
        i, j = np.divmod(np.flatnonzero(both), len(taught))
        common, i = both[both > 0], i + first
        is_near = common >= NEAR * (sizes[i] + sizes[j + len(asked)] - common)
        for question, other in zip(i[is_near], j[is_near], strict=True):
            near.setdefault(asked[question], set()).add(taught[other])
    return near


def _shingles(text: str) -> np.ndarray:
    """Hashes of the runs of SHINGLE words of a text; of all its words where there are fewer."""
    words = text.split()
    runs = set(map(hash, zip(*(words[i:] for i in range(SHINGLE)), strict=False)))
    return np.fromiter(runs or {hash(tuple(words))}, np.int64)


def _groups(
    shingles: Sequence[np.ndarray], asked: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which text holds which group of shingles: two arrays of pairs; and the size of every group.

    shingles: of every text, first of those ``asked``, then of those taught; what stands on one side
    alone is left out. A group is of shingles that stand in the same texts, as those of a preamble
    of all prompts do: without groups it would cost its length for every pair of texts.
    """
    text = np.repeat(np.arange(len(shingles)), [len(of_text) for of_text in shingles])
    names, shingle = np.unique(np.concatenate(shingles), return_inverse=True)
    is_asked = text < asked
    on_both = np.bincount(shingle[is_asked], minlength=len(names)) > 0
    on_both &= np.bincount(shingle[~is_asked], minlength=len(names)) > 0
    kept = on_both[shingle]
    text, shingle = text[kept], (np.cumsum(on_both) - 1)[shingle[kept]]
    # Two sums of random numbers, one a text, tell sets of texts apart.
    numbers = np.random.default_rng(0).random((2, len(shingles)))
    sums = [np.bincount(shingle, weights=of_text[text]) for of_text in numbers]
    _, first, group, sizes = np.unique(
        sums[0] + 1j * sums[1], return_index=True, return_inverse=True, return_counts=True
    )
    is_first = first[group[shingle]] == shingle
    return text[is_first], group[shingle[is_first]], sizes.astype(float)
