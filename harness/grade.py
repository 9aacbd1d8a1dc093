"""Grade completions made anywhere, with the code that grades a run's own.

    python -m harness.grade SKILL FILE.jsonl

SKILL is a skill of the project, or ORDER.yaml:NAME for a JSONL skill that an order file defines.
Each row of the file holds the example's columns, at least ``reference``, and ``completion``, as the
items of a run's evaluations do. A skill with columns of its own (tooluse, science, medical, wiki)
takes its reference from them where a row has no ``reference``.
"""

from harness.base import metrics
from harness.base.errors import Parser, UserError, reported
from harness.base.files import write_jsonl
from harness.base.places import check_file
from harness.evaluation.completions_file import grade
from harness.skills.registry import get_skill
from harness.skills.skill import Skill


def find_skill(name: str) -> Skill:
    """The skill that ``name`` means on the command line. Raises UserError."""
    path, colon, name = name.rpartition(":")
    if not colon:
        return get_skill(name, "SKILL")
    # Only here: it takes the seconds that PyTorch takes to import.
    from harness.runs.reading import read_order

    skills = {skill.name: skill for skill in read_order(path).skills}
    if name not in skills:
        raise UserError(f"{path}: skills", f"has no {name!r}", "it has " + ", ".join(skills))
    return skills[name]


def main() -> None:
    parser = Parser(
        prog="python -m harness.grade",
        description="Grade completions made anywhere, with the code that grades a run's own.",
    )
    parser.add_argument("skill", help="a skill of the project, or ORDER.yaml:NAME")
    parser.add_argument("file", help="JSONL; each row holds at least reference and completion")
    parser.add_argument("--out", metavar="FILE", help="write the rows with score and scores added")
    args = parser.parse_args()
    with reported(args.out):
        if args.out:
            check_file(args.out)
        skill = find_skill(args.skill)
        rows = grade(skill, args.file)
        for metric in skill.metrics:
            mean, stderr = metrics.mean_and_stderr([row["scores"][metric] for row in rows])
            error = "" if stderr is None else f" stderr {stderr:.4f}"
            print(f"{skill.name} {metric} {mean:.4f}{error} n {len(rows)}")
        if args.out:
            write_jsonl(args.out, rows)


if __name__ == "__main__":
    main()
