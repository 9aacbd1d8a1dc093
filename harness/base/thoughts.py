"""The reasoning in an answer: which tags hold it, and what the answer is without it.

The samplers take thoughts off a completion (``Completion.text``), so that graders, rewards and
judges see the answer alone. Nobody else does.
"""

import re
from dataclasses import dataclass

# <think>, <seed:think>, <longcat_think>, <Thought>; [THINK]; ◁think▷; <|think|>; and what closes
# them. In square brackets only capitals: message[reasoning] is Jinja's own. <no_think> is a switch.
WORDS = r"(?:think|thinking|thoughts?|reason|reasoning)"
NAME = rf"(?!no_)(?:\w+[:_])?(?i:{WORDS})(?:_process)?"
PAIRED = re.compile(
    rf"<(?P<slash1>/?)(?P<name1>{NAME})>"
    rf"|\[(?P<slash2>/?)(?P<name2>{WORDS.upper()})\]"
    rf"|◁(?P<slash3>/?)(?P<name3>{WORDS})▷"
    rf"|<\|(?P<slash4>/?)(?P<name4>{WORDS})\|>"
)
FORMS = {
    **{"1": ("<{}>", "</{}>"), "2": ("[{}]", "[/{}]")},
    **{"3": ("◁{}▷", "◁/{}▷"), "4": ("<|{}|>", "<|/{}|>")},
}
# <|START_THINKING|> ... <|END_THINKING|>, <|begin_of_thought|> ... <|end_of_thought|>
WORDED = re.compile(rf"<\|(?P<edge>start|end|begin)(?P<name>_(?:of_)?{WORDS})\|>", re.IGNORECASE)
# <|thought_start|> ... <|thought_end|>
ENDED = re.compile(rf"<\|(?P<name>{WORDS})_(?P<edge>start|end|begin)\|>", re.IGNORECASE)


@dataclass(frozen=True)
class Thoughts:
    """The tags around a thought."""

    open: str
    close: str

    def answer(self, text: str, opened: bool = False) -> str:
        """What follows the last thought of ``text``, and precedes one that never ends.

        opened: whether the prompt has opened a thought, in which the text begins. A text without a
        thought is its own answer.
        """
        _, closed, rest = text.rpartition(self.close)
        if not closed:
            return "" if opened else text.split(self.open)[0]
        return rest.split(self.open)[0].lstrip()

    def unfinished(self, text: str) -> bool:
        """Whether ``text`` ends in a thought that it has opened."""
        return self.open in text.rpartition(self.close)[2]


# Names of their own: Apertus, Gemma 4.
OTHERS = (
    Thoughts("<|inner_prefix|>", "<|inner_suffix|>"),
    Thoughts("<|channel>thought", "<channel|>"),
)
# Of a model of which only answers are known: a judge's server, a file of completions.
THINK = Thoughts("<think>", "</think>")


def tags_in(template: str) -> Thoughts | None:
    """The tags of thoughts that a chat template writes or looks for; None where it knows none."""
    if match := PAIRED.search(template):
        form = next(form for form in FORMS if match[f"name{form}"])
        opening, closing = FORMS[form]
        name = match[f"name{form}"]
        return Thoughts(opening.format(name), closing.format(name))
    for pattern in (WORDED, ENDED):
        if match := pattern.search(template):
            return Thoughts(*_edges(match, pattern, template))
    return next((tags for tags in OTHERS if tags.open in template), None)


def _edges(match: re.Match[str], form: re.Pattern[str], template: str) -> tuple[str, str]:
    """(opening, closing) tag of a pair of which ``match`` is one.

    The other one is looked up in the template, which names the first "start" or "begin".
    """
    edges = {found["edge"].lower() for found in form.finditer(template)}
    first = "start" if "start" in edges or (form is WORDED and match["edge"] == "END") else "begin"

    def tag(edge: str) -> str:
        edge = edge.upper() if match["edge"].isupper() else edge
        begin, end = match.span("edge")
        begin, end = begin - match.start(), end - match.start()
        return match[0][:begin] + edge + match[0][end:]

    return tag(first), tag("end")
