"""Options that several methods have, each a dataclass for a method's Config to inherit from."""

from dataclasses import dataclass

from harness.base.settings import option
from harness.skills.templates import TEACHER_CONTEXTS


@dataclass
class ImportanceOption:
    """For methods that learn from completions of the student."""

    importance_cap: float | None = option(
        None,
        "cap of the importance weights; if left out 2 where vLLM samples, else no weights; "
        "0: never",
        min=0,
    )


@dataclass
class TeacherOption:
    """For methods with a teacher that sees more than the student."""

    teacher_context: str | None = option(
        None,
        "what the teacher is shown; what its template shows if left out",
        choices=TEACHER_CONTEXTS,
    )


@dataclass
class TeacherSamplesOptions(TeacherOption):
    """For methods that learn from answers which the teacher samples before the first step."""

    generations: int | None = option(
        None, "answers sampled from the teacher in a stage; one a prompt drawn if left out", min=1
    )

    def answers_per_prompt(self, prompts: int) -> float:
        """Answers that the teacher samples for each of ``prompts`` draws, at most one."""
        return min(1, (self.generations or prompts) / prompts)
