"""Checks of the constraints of IFEval (Zhou et al. 2023, arXiv 2311.07911) that need no package.

Names, arguments and verdicts are those of lm-eval's task ``ifeval``, for twenty of its kinds; a
test runs both on made answers. Two differ: upper and lower case go by the letters alone, where
lm-eval also asks a detector for English, which draws at random. A word is taken literally, where
lm-eval reads it as a pattern. Left out are the kinds that want a splitter of sentences or words or
a detector of languages, one of three given answers, and the prompt repeated.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Instruction = Mapping[str, Any]  # {"id": a kind, and its arguments}
PARAGRAPH = re.compile(r"\s?\*\*\*\s?")


def existence(text: str, keywords: Sequence[str]) -> bool:
    return all(_count(word, text) for word in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _related(_count(keyword, text), relation, frequency)


def forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    words = (rf"\b{re.escape(word)}\b" for word in forbidden_words)
    return not any(re.search(word, text, re.IGNORECASE) for word in words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


def number_words(text: str, num_words: int, relation: str) -> bool:
    return _related(len(re.findall(r"\w+", text)), relation, num_words)


def number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Parts between ``***``. One at either end may be empty, which is no paragraph."""
    parts = [bool(part.strip()) for part in PARAGRAPH.split(text)]
    return all(parts[1:-1]) and sum(parts) == num_paragraphs


def nth_paragraph_first_word(
    text: str, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Parts between empty lines; quotes before the word and what follows a sign do not count."""
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > count or not (part := parts[nth_paragraph - 1].strip()):
        return False
    word = part.split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", word)[0]
    return count == num_paragraphs and word.lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    patterns = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    pattern = patterns.get(postscript_marker, re.escape(postscript_marker.lower()))
    return bool(re.search(pattern, text.lower()))


def number_bullet_lists(text: str, num_bullets: int) -> bool:
    """Lines that begin with a star or a hyphen."""
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    hyphens = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return len(stars) + len(hyphens) == num_bullets


def number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """Parts between stars that are not empty; those between two stars count as well."""
    single = re.findall(r"\*[^\n\*]*\*", text)
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    parts = [part.strip("*") for part in single] + [part[2:-2] for part in double]
    return sum(bool(part.strip()) for part in parts) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    mark = rf"\s?{re.escape(section_spliter)}\s?\d+\s?"
    return len(re.findall(mark, text)) >= num_sections


def title(text: str) -> bool:
    return any(each.lstrip("<").rstrip(">").strip() for each in re.findall(r"<<[^\n]+>>", text))


def json_format(text: str) -> bool:
    text = text.strip()
    for mark in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(mark)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    whole = [part for part in parts if part]
    return all(parts[1:-1]) and len(whole) == 2 and whole[0] != whole[1]


def end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(text: str) -> bool:
    return "," not in text


def _count(word: str, text: str) -> int:
    """How often a word stands in a text, also inside others, in any case."""
    return len(re.findall(re.escape(word), text, re.IGNORECASE))


def _related(count: int, relation: str, wanted: int) -> bool:
    return count < wanted if relation == "less than" else count >= wanted


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "length_constraints:number_words": number_words,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:title": title,
    "detectable_format:json_format": json_format,
    "combination:two_responses": two_responses,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "punctuation:no_comma": no_comma,
    "change_case:english_lowercase": str.islower,
    "change_case:english_capital": str.isupper,
}


def follows(text: str, instruction: Instruction) -> bool:
    """Whether an answer keeps one constraint; an empty one keeps none."""
    arguments = {name: value for name, value in instruction.items() if name != "id"}
    return bool(text.strip()) and CHECKS[instruction["id"]](text, **arguments)


def strict(text: str, instructions: Sequence[Instruction]) -> list[bool]:
    """Of each constraint, whether the answer keeps it."""
    return [follows(text, instruction) for instruction in instructions]


def loose(text: str, instructions: Sequence[Instruction]) -> list[bool]:
    """The same where one of IFEval's eight forms of the answer keeps it.

    With or without the first line, the last line, and all stars.
    """
    lines = text.split("\n")
    cut = ["\n".join(lines[part]).strip() for part in (slice(1, None), slice(-1), slice(1, -1))]
    forms = [form for each in (text, *cut) for form in (each, each.replace("*", ""))]
    return [any(follows(form, instruction) for form in forms) for instruction in instructions]
