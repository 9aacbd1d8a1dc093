"""The reasoning in an answer: which tags hold it, and what the answer is without it.

The samplers take thoughts off a completion (``Completion.text``), so that graders, rewards and
judges see the answer alone. Nobody else does.
"""

import re
from dataclasses import dataclass

# <think>, <seed:think>, <thought>; [THINK]; ◁think▷; and what closes them. In square brackets only
# capitals: message[reasoning] is Jinja's own.
WORDS = r"(?:think|thinking|thoughts?|reason|reasoning)"
PAIRED = re.compile(
    rf"<(?P<slash1>/?)(?P<name1>(?:\w+:)?{WORDS})>"
    rf"|\[(?P<slash2>/?)(?P<name2>{WORDS.upper()})\]"
    rf"|◁(?P<slash3>/?)(?P<name3>{WORDS})▷"
)
# <|START_THINKING|> ... <|END_THINKING|>, <|begin_of_thought|> ... <|end_of_thought|>
WORDED = re.compile(rf"<\|(?:START|END|begin|end)(?P<name>_(?:of_)?{WORDS})\|>", re.IGNORECASE)
FORMS = {"1": ("<{}>", "</{}>"), "2": ("[{}]", "[/{}]"), "3": ("◁{}▷", "◁/{}▷")}


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


# Of a model of which only answers are known: a judge's server, a file of completions.
THINK = Thoughts("<think>", "</think>")


def tags_in(template: str) -> Thoughts | None:
    """The tags of thoughts that a chat template writes or looks for; None where it knows none."""
    if match := PAIRED.search(template):
        form = next(form for form in FORMS if match[f"name{form}"])
        opening, closing = FORMS[form]
        name = match[f"name{form}"]
        return Thoughts(opening.format(name), closing.format(name))
    if match := WORDED.search(template):
        first, last = ("START", "END") if match[0][2].isupper() else ("begin", "end")
        return Thoughts(f"<|{first}{match['name']}|>", f"<|{last}{match['name']}|>")
    return None
