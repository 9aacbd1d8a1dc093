"""Grade completions made anywhere, with the code that grades a run's own: python -m harness.grade SKILL FILE.jsonl

SKILL is a skill of the project, or ORDER.yaml:NAME for a JSONL skill that an order file defines. Each row of the file holds
the example's columns, at least ``reference``, and ``completion``, as the items of a run's evaluations do; a skill with columns of its
own (tooluse, science, medical, wiki) takes its reference from them where a row has no ``reference``.
"""

import sys
from pathlib import Path

from harness import metrics
from harness.errors import Parser, UserError, reported
from harness.records import check_folder, write_jsonl
from harness.skills import get_skill, read_jsonl


def find_skill(name):
    """The skill that ``name`` means on the command line. Raises UserError."""
    path, colon, name = name.rpartition(":")
    if not colon:
        return get_skill(name, "SKILL")
    from harness.order import read_order  # only here: it takes the seconds that PyTorch takes to import

    skills = {s.name: s for s in read_order(path).skills}
    if name not in skills:
        raise UserError(f"{path}: skills", f"has no {name!r}", "it has " + ", ".join(skills))
    return skills[name]


def grade(skill, path):
    """The rows of the JSONL file ``path`` with ``score`` (the metric that counts) and ``scores`` ({metric: value}) added.

    All values are in [0, 1]. Raises UserError naming the first row that cannot be graded.
    """
    rows = []
    for number, row in read_jsonl(path):
        place = f"{path}, row {number}"
        if not isinstance(row.get("completion"), str):
            raise UserError(f"{place}: completion", "must be a text", "the answer that is to be graded")
        reference = skill.reference(row, place)
        try:
            scores = {name: float(f(row["completion"], reference)) for name, f in skill.metrics.items()}
        except Exception as error:  # a reference of another skill may break its grader in any way
            raise UserError(f"{place}: reference", f"cannot be compared ({type(error).__name__}: {error})",
                            f"it must read as in the skill {skill.name}") from error
        rows.append({**row, "score": scores[skill.metric], "scores": scores})
    if not rows:
        raise UserError(path, "has no rows", "give one JSON object a line")
    return rows


def main():
    parser = Parser(prog="python -m harness.grade", description=__doc__.split("\n")[0])
    parser.add_argument("skill", help="a skill of the project, or ORDER.yaml:NAME")
    parser.add_argument("file", help="JSONL; each row holds at least reference and completion")
    parser.add_argument("--out", metavar="FILE", help="write the rows with score and scores added")
    args = parser.parse_args()
    with reported(args.out):
        if args.out:
            check_folder(Path(args.out).absolute().parent, "give a file with --out")
            if Path(args.out).is_dir():
                raise UserError(args.out, "is a folder", "give a file with --out")
        skill = find_skill(args.skill)
        rows = grade(skill, args.file)
        for metric in skill.metrics:
            mean, stderr = metrics.mean_and_stderr([row["scores"][metric] for row in rows])
            error = "" if stderr is None else f" stderr {stderr:.4f}"
            print(f"{skill.name} {metric} {mean:.4f}{error} n {len(rows)}")
        if args.out:
            write_jsonl(args.out, rows)


if __name__ == "__main__":
    sys.exit(main())
