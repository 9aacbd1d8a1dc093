"""Instructions with constraints that a program checks, in the manner of IFEval; generated.

The task of Retaining by Doing (Chen et al. 2025, arXiv 2510.18874) beside MMLU and Countdown. Its
own rows are not used: prompts and answers are built here from 48 topics with five plain sentences
each (``ifeval_style.jsonl``, this project's own). An answer is built first, and the constraints are
drawn so that it keeps them: every prompt can be satisfied, and the demonstration shows how. No
prompt is one of IFEval's. Topics, wordings and closing words of a split are in no other.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.skills._constraints import loose, strict
from benchmarks.skills._instruction_words import ASKS, NOTES, OF_SPLIT, OFTEN, PHRASES, WORDINGS
from harness.base.files import read_jsonl
from harness.skills.skill import Example, Skill

SEED = 20251021
SIZES = {"train": 2000, "validation": 200, "test": 500}
COUNTS = (1, 1, 2, 2, 3)  # constraints of a prompt, each as likely
KINDS = tuple(WORDINGS)
EXISTENCE, FORBIDDEN = "keywords:existence", "keywords:forbidden_words"
PARAGRAPHS, NTH = (
    "length_constraints:number_paragraphs",
    "length_constraints:nth_paragraph_first_word",
)
BULLETS, SECTIONS = "detectable_format:number_bullet_lists", "detectable_format:multiple_sections"
JSON, TWO = "detectable_format:json_format", "combination:two_responses"
TITLE, HIGHLIGHTS = "detectable_format:title", "detectable_format:number_highlighted_sections"
PLACEHOLDERS, POSTSCRIPT = "detectable_content:number_placeholders", "detectable_content:postscript"
END, QUOTATION, NO_COMMA = "startend:end_checker", "startend:quotation", "punctuation:no_comma"
LOWER, UPPER = "change_case:english_lowercase", "change_case:english_capital"
LAYOUTS = {  # what gives the answer its form: sentences that it may have
    PARAGRAPHS: (2, 3),
    NTH: (2, 3),
    BULLETS: (2, 3, 4),
    SECTIONS: (2, 3),
    JSON: (2,),
    TWO: (2,),
}
ONLY_WITH = {JSON: {EXISTENCE, FORBIDDEN}, TWO: {EXISTENCE, FORBIDDEN, TITLE, NO_COMMA}}
APART = (  # no two of a set in one prompt
    set(LAYOUTS),
    {LOWER, UPPER},
    {HIGHLIGHTS, SECTIONS},
    {QUOTATION, TITLE},
    {NTH, TITLE},
    {SECTIONS, LOWER},
    {SECTIONS, UPPER},
    {POSTSCRIPT, LOWER},
    {END, LOWER},
    {END, UPPER},
    {END, QUOTATION},
)
WORD = re.compile(r"[a-z]{4,}")
COMMON = (  # words that say nothing of a topic
    "about above after also because been before both does each even every from have into like many "
    "more most never often once only other over section some text than that their them then these "
    "they this topic those under until very were when where which while with"
)
Arguments = dict[str, Any]  # of a constraint, by lm-eval's names


class Topic(NamedTuple):
    """What is written about, and plain sentences on it."""

    name: str
    sentences: tuple[str, ...]


@cache
def topics(split: str) -> tuple[Topic, ...]:
    """The topics of a split."""
    rows = (row for _, row in read_jsonl(Path(__file__).with_suffix(".jsonl")))
    return tuple(
        Topic(row["topic"], tuple(row["sentences"])) for row in rows if row["split"] == split
    )


# ---- an answer and constraints that it keeps -----------------------------------------------------


def draw_kinds(rng: random.Random, first: str) -> list[str]:
    """``first`` and up to two further kinds, all of which can go together."""
    wanted, kinds = rng.choice(COUNTS), [first]
    for kind in rng.sample(KINDS, len(KINDS)):
        if len(kinds) < wanted and kind != first and go_together([*kinds, kind]):
            kinds.append(kind)
    return kinds


def go_together(kinds: Sequence[str]) -> bool:
    """Whether one answer can keep constraints of all these kinds."""
    alone = all(set(kinds) - {kind} <= ONLY_WITH[kind] for kind in kinds if kind in ONLY_WITH)
    return alone and all(len(group.intersection(kinds)) < 2 for group in APART)


def build(
    rng: random.Random, topic: Topic, kinds: Sequence[str], split: str
) -> tuple[str, list[Arguments]] | None:
    """(an answer, the instructions of ``kinds`` that it keeps); None where a draw gives none."""
    layout = next((kind for kind in kinds if kind in LAYOUTS), "")
    count = rng.choice(LAYOUTS.get(layout, (2, 3)))
    sentences = rng.sample(topic.sentences, len(topic.sentences))
    if NO_COMMA in kinds:
        sentences = [sentence.replace(",", "") for sentence in sentences]
    used, spare = sentences[:count], sentences[count:]
    found: dict[str, Arguments] = {kind: {} for kind in kinds}
    if HIGHLIGHTS in kinds:
        found[HIGHLIGHTS] = {"num_highlights": _highlight(rng, used)}
    text = _laid_out(rng, layout, used, topic, found)
    text = _framed(rng, text, spare[0], topic, found, split)
    instructions = []
    for kind, arguments in found.items():
        if kind in COUNTED:
            drawn = COUNTED[kind](rng, text, spare)
            if drawn is None:
                return None
            arguments = drawn
        instructions.append({"id": kind, **arguments})
    return (text, instructions) if all(strict(text, instructions)) else None


def _highlight(rng: random.Random, sentences: list[str]) -> int:
    """Put stars around a word of two or more of the sentences, in place; returns how many."""
    places = rng.sample(range(len(sentences)), rng.randint(2, len(sentences)))
    for place in places:
        word = rng.choice(_words(sentences[place]))
        sentences[place] = re.sub(
            rf"\b({word})\b", r"*\1*", sentences[place], count=1, flags=re.IGNORECASE
        )
    return len(places)


def _laid_out(
    rng: random.Random,
    layout: str,
    sentences: list[str],
    topic: Topic,
    found: dict[str, Arguments],
) -> str:
    """The sentences in the form of ``layout``, whose arguments go into ``found``."""
    count = len(sentences)
    if layout == PARAGRAPHS:
        found[layout] = {"num_paragraphs": count}
        return "\n***\n".join(sentences)
    if layout == NTH:
        words = [sentence.split()[0].strip("*,").lower() for sentence in sentences]
        longer = [nth for nth, word in enumerate(words, 1) if len(word) > 2]
        nth = rng.choice(longer or range(1, count + 1))
        found[layout] = {
            "num_paragraphs": count,
            "nth_paragraph": nth,
            "first_word": words[nth - 1],
        }
        return "\n\n".join(sentences)
    if layout == BULLETS:
        found[layout] = {"num_bullets": count}
        return "\n".join(f"* {sentence}" for sentence in sentences)
    if layout == SECTIONS:
        found[layout] = {"section_spliter": "Section", "num_sections": count}
        return "\n".join(f"Section {i}\n{sentence}" for i, sentence in enumerate(sentences, 1))
    if layout == TWO:
        return "\n******\n".join(sentences)
    if layout == JSON:
        return json.dumps({"topic": topic.name, "text": " ".join(sentences)})
    return " ".join(sentences)


def _framed(
    rng: random.Random,
    text: str,
    further: str,
    topic: Topic,
    found: dict[str, Arguments],
    split: str,
) -> str:
    """The text with what stands before, behind and around it, and in its case.

    further: a sentence for the postscript. Arguments go into ``found``.
    """
    if TITLE in found:
        text = f"<<{topic.name.title()}>>\n{text}"
    if PLACEHOLDERS in found:
        notes = rng.sample(NOTES, 2)
        text = "\n".join([text, *notes])
        found[PLACEHOLDERS] = {"num_placeholders": "".join(notes).count("[")}
    if POSTSCRIPT in found:
        text = f"{text}\nP.S. {further}"
        found[POSTSCRIPT] = {"postscript_marker": "P.S."}
    if END in found:
        phrase = rng.choice(PHRASES[split])
        text = f"{text}\n{phrase}"
        found[END] = {"end_phrase": phrase}
    if LOWER in found:
        text = text.lower()
    if UPPER in found:
        text = text.upper()
    return f'"{text}"' if QUOTATION in found else text


# ---- constraints on words, drawn from the answer as it is ----------------------------------------


def _words(text: str) -> list[str]:
    """The different words of a text that say something, in lower case and the same order."""
    common = set(COMMON.split())
    return [word for word in dict.fromkeys(WORD.findall(text.lower())) if word not in common]


def _existence(rng: random.Random, text: str, spare: Sequence[str]) -> Arguments | None:
    words = _words(text)
    return {"keywords": rng.sample(words, 2)} if len(words) >= 2 else None


def _forbidden(rng: random.Random, text: str, spare: Sequence[str]) -> Arguments | None:
    """Words of the topic's other sentences, so that they are near."""
    inside = set(re.findall(r"\w+", text.lower()))
    words = [word for word in _words(" ".join(spare)) if word not in inside]
    return {"forbidden_words": rng.sample(words, 2)} if len(words) >= 2 else None


def _frequency(rng: random.Random, text: str, spare: Sequence[str]) -> Arguments | None:
    counts = {word: text.lower().count(word) for word in _words(text)}
    repeated = [word for word, count in counts.items() if count > 1]
    if repeated and rng.random() < 0.7:
        word = rng.choice(repeated)
        return {"keyword": word, "frequency": counts[word], "relation": "at least"}
    if not counts:
        return None
    word = rng.choice(list(counts))
    return {"keyword": word, "frequency": counts[word] + 1, "relation": "less than"}


def _letters(rng: random.Random, text: str, spare: Sequence[str]) -> Arguments | None:
    letter = rng.choice("abcdefghiklmnoprstuvwy")
    count = text.lower().count(letter)
    if count > 2 and rng.random() < 0.5:
        wanted, relation = rng.randint(max(2, count - 3), count), "at least"
    else:
        wanted, relation = max(2, count + rng.randint(1, 3)), "less than"
    return {"letter": letter, "let_frequency": wanted, "let_relation": relation}


def _length(rng: random.Random, text: str, spare: Sequence[str]) -> Arguments | None:
    count = len(re.findall(r"\w+", text))
    if rng.random() < 0.5:
        return {"num_words": count - count % 5, "relation": "at least"} if count >= 5 else None
    return {"num_words": count - count % 5 + rng.choice((5, 10)), "relation": "less than"}


COUNTED = {
    EXISTENCE: _existence,
    FORBIDDEN: _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letters,
    "length_constraints:number_words": _length,
}


def said(rng: random.Random, instruction: Mapping[str, Any], split: str) -> str:
    """An instruction in words of the split."""
    words = instruction.get("keywords") or instruction.get("forbidden_words") or ("", "")
    relation = instruction.get("relation") or instruction.get("let_relation")
    wording = rng.choice(WORDINGS[instruction["id"]][OF_SPLIT[split]])
    return wording.format(
        **instruction, a=words[0], b=words[1], often=OFTEN[relation] if relation else ""
    )


# ---- the skill -----------------------------------------------------------------------------------


def prompt_strict(completion: str, reference: Mapping[str, Any]) -> float:
    """1 if the answer keeps all constraints."""
    return float(all(strict(completion, reference["instructions"])))


def prompt_loose(completion: str, reference: Mapping[str, Any]) -> float:
    """The same, each constraint in the best of IFEval's eight forms of the answer."""
    return float(all(loose(completion, reference["instructions"])))


def instructions_strict(completion: str, reference: Mapping[str, Any]) -> float:
    """Share of the prompt's constraints that the answer keeps."""
    kept = strict(completion, reference["instructions"])
    return sum(kept) / len(kept)


def instructions_loose(completion: str, reference: Mapping[str, Any]) -> float:
    """The same, each constraint in the best of IFEval's eight forms of the answer."""
    kept = loose(completion, reference["instructions"])
    return sum(kept) / len(kept)


class IFEvalStyle(Skill):
    """One to three constraints of twenty kinds. reference: ``{"instructions": [{"id", ...}]}``."""

    name = "ifeval_style"
    description = (
        "instructions with verifiable constraints in the manner of IFEval; built by a seeded "
        "generator of this project"
    )
    max_new_tokens = 160
    metrics = {
        grader.__name__: grader
        for grader in (prompt_strict, prompt_loose, instructions_strict, instructions_loose)
    }
    checksums = {
        "train": "a17d1c0fb30bc8239958b1a090b193c49459bbb8cdc316170c48f46c06282c57",
        "validation": "0286f70cd463c353d04046afefbbae117a3948e9e122447b8a7902e19bda2671",
        "test": "b2a6d7e4e8618ad860337bd3ee3f7c52410be19f632be0aa7a08a7648453b28e",
    }

    def load(self, split):
        """Kinds take turns as the first of a prompt, so the first rows are a sample of all."""
        rng = random.Random(f"{SEED} {split}")
        rows: list[Example] = []
        seen: set[str] = set()
        while len(rows) < SIZES[split]:
            topic = rng.choice(topics(split))
            kinds = draw_kinds(rng, KINDS[len(rows) % len(KINDS)])
            built = build(rng, topic, kinds, split)
            if built is None:
                continue
            answer, instructions = built
            rng.shuffle(instructions)
            asked = [rng.choice(ASKS[split]).format(topic=topic.name)]
            question = " ".join(asked + [said(rng, each, split) for each in instructions])
            if question in seen:
                continue
            seen.add(question)
            prompt = [{"role": "user", "content": question}]
            reference = {"instructions": instructions}
            rows.append(Example(f"{split}/{len(rows)}", prompt, answer, reference))
        return rows

    def reward(self, completion, reference):
        """The share of the constraints that the answer keeps."""
        return instructions_strict(completion, reference)

    def feedback(self, completion, reference):
        """The constraints that the answer does not keep."""
        rng, asked = random.Random(0), reference["instructions"]
        kept = zip(asked, strict(completion, asked), strict=True)
        words = " ".join(said(rng, each, "train") for each, is_kept in kept if not is_kept)
        return f"The answer does not keep this: {words}" if words else None
