"""Loads the data of a suite and says what is there.

    python -m benchmarks.fetch SUITE [--from FOLDER_OR_ZIP]

Data that the authors' repositories hold (cl, superni) are fetched at a pinned commit and checked
against git's id of each file. TRACE and the data of Retaining by Doing are archives of their
authors, which a user downloads: --from reads the folder or the zip file, and keeps the files that
the suite reads in the cache, where its skills find them. countdown, ifeval_style and drifting_facts
are generated.
"""

import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.skills._suite import SuiteSkill, data_folder, half_of
from benchmarks.skills.cl import LabelWords
from benchmarks.skills.countdown import Countdown
from benchmarks.skills.drifting_facts import DriftingFacts
from benchmarks.skills.ifeval_style import IFEvalStyle
from benchmarks.skills.retaining import Retaining
from benchmarks.skills.superni import SuperNI
from benchmarks.skills.trace import Trace
from harness.base.errors import Parser, UserError, reported
from harness.base.files import left_by_the_dead, machine
from harness.skills.skill import Skill, examples_fingerprint

SUITES: dict[str, type[SuiteSkill]] = {
    "trace": Trace,
    "cl": LabelWords,
    "superni": SuperNI,
    "retaining": Retaining,
}
GENERATED: dict[str, type[Skill]] = {
    "countdown": Countdown,
    "ifeval_style": IFEvalStyle,
    "drifting_facts": DriftingFacts,
}
SPLITS = ("train", "validation", "test")
LARGEST = 1 << 30  # bytes of all files that are read of an archive


def skills_of(suite: str) -> list[Skill]:
    """The skills of a suite, one a task."""
    cls = GENERATED.get(suite) or SUITES[suite]
    return [cls(task) for task in cls.tasks] if cls.tasks else [cls()]


def stems(cls: type[SuiteSkill]) -> tuple[str, ...]:
    """The files of a task, without their ending."""
    return ("train", cls.second, "test", *cls.further)


def keep_release(cls: type[SuiteSkill], source: Path, target: Path | None = None) -> Path:
    """Copies the files of a release into the cache, whole or not at all; returns their folder.

    source: a folder or a zip file; target: the folder, if it is not that of the suite. Raises
    UserError where a task is missing or a row does not fit, and where the cache has it already.
    """
    target = target or data_folder(cls.suite)
    if target.exists():
        raise UserError(target, "is there already", "remove it to load the suite again")
    read = _from_zip(cls, source) if source.is_file() else _from_folder(cls, source)
    part = target.with_name(f"{target.name}.{machine()}.{os.getpid()}.part")
    if target.parent.is_dir():
        for left in left_by_the_dead(target.parent, f"{target.name}.", ".part"):
            shutil.rmtree(left, ignore_errors=True)
    try:
        for name, content in read:
            file = part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        _check(cls, part, source)
        try:
            os.replace(part, target)
        except OSError:
            if not target.is_dir():  # by another process, that keeps the same files
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _check(cls: type[SuiteSkill], part: Path, source: Path) -> None:
    """Reads every split of every task in ``part``, so that what is kept is what skills can use.

    Raises UserError that names ``source`` and the place in the release.
    """
    try:
        for skill in (cls(task, path=str(part)) for task in cls.tasks):
            for split in skill.splits:
                skill.examples(split)
    except UserError as error:
        said = str(error).replace(f"{part}{os.sep}", "").replace(str(part), "the release")
        raise UserError(source, said) from None


def _from_folder(cls: type[SuiteSkill], source: Path) -> Iterator[tuple[str, bytes]]:
    """(path in the release, content) of every file of the suite. Raises UserError."""
    for task in cls.tasks:
        skill = cls(task, path=str(source))
        for stem in stems(cls):
            file = skill.local(stem) if stem == cls.second else skill.file(stem)
            if file is not None:
                yield f"{cls.place(task, stem)}{file.suffix}", file.read_bytes()


def _from_zip(cls: type[SuiteSkill], source: Path) -> Iterator[tuple[str, bytes]]:
    """The same of a zip file, of which nothing else is unpacked. Raises UserError."""
    with _zip_errors(source, "is no zip file"):
        archive = zipfile.ZipFile(source)
    with archive:
        names: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if names.setdefault(info.filename, info) is not info:
                raise UserError(f"{source}: {info.filename[:80]}", "stands twice in the archive")
        root, left = _root(cls, names, source), LARGEST
        for task in cls.tasks:
            for stem in stems(cls):
                for form in cls.forms:
                    name = f"{cls.place(task, stem)}{form}"
                    if info := names.get(root + name):
                        place = f"{source}: {info.filename[:80]}"
                        left -= info.file_size
                        if left < 0:
                            raise UserError(place, "more than 1 GiB, with the files before it")
                        with _zip_errors(place, "cannot be read"):
                            content = archive.read(info)
                        yield name, content


@contextmanager
def _zip_errors(place: object, problem: str) -> Iterator[None]:
    """Raises UserError for an archive that is damaged, encrypted or packed in an unknown way."""
    try:
        yield
    except Exception as error:  # zipfile and each of its ways to pack have errors of their own
        reason = f"{problem} ({type(error).__name__}: {error})"
        raise UserError(place, reason, "unpack it, and give the folder") from None


def _root(cls: type[SuiteSkill], names: Sequence[str] | dict, source: Path) -> str:
    """The folder of an archive in which every task has its train and test file."""
    tail = cls.place(cls.tasks[0], "train")
    endings = [tail + form for form in cls.forms]
    found = {name.removesuffix(end) for name in names for end in endings if name.endswith(end)}
    starts = {start for start in found if start == "" or start.endswith("/")}
    whole = [
        start
        for start in sorted(starts)
        if all(
            any(f"{start}{cls.place(task, stem)}{form}" in names for form in cls.forms)
            for task in cls.tasks
            for stem in ("train", "test")
        )
    ]
    usual = [start for start in whole if start.endswith(tuple(filter(None, cls.roots)))] or whole
    if len(usual) != 1:
        raise UserError(
            source,
            f"holds the suite {len(usual)} times",
            f"unpack it, and give the folder that holds {tail}",
        )
    return usual[0]


def table(skills: Sequence[Skill]) -> Iterator[str]:
    """Lines: sizes of the splits, half of an interval of an accuracy, hash of the test."""
    yield f"{'skill':22} {'train':>6} {'valid.':>6} {'test':>6} {'±':>5}  test's hash"
    for skill in skills:
        sizes = [len(skill.examples(split)) for split in SPLITS]
        half = half_of(sizes[-1])
        digest = examples_fingerprint(skill.examples("test"))[:12]
        yield f"{skill.name:22} {sizes[0]:6} {sizes[1]:6} {sizes[2]:6} {half:5.1f}  {digest}"
    yield "±: half of a 95% interval of an accuracy of 50%, in points"


def same_files(skills: Sequence[Skill]) -> list[str]:
    """What of the source's splits is one file, in lines."""
    suites = [skill for skill in skills if isinstance(skill, SuiteSkill)]
    same = [skill.name for skill in suites if skill.second_is_test()]
    if not same:
        return []
    of = f"all {len(same)} tasks" if len(same) == len(suites) else ", ".join(same)
    return [
        f"{suites[0].second} and test are the same file in {of}: validation is drawn from train"
    ]


def parser() -> Parser:
    """The options of the command."""
    options = Parser(prog="benchmarks.fetch", description="Load the data of a suite.")
    options.add_argument("suite", choices=[*SUITES, *GENERATED])
    options.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER_OR_ZIP",
        help="the suite in its released form, which is kept in the cache",
    )
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads a suite and prints a line a task."""
    args = parser().parse_args(arguments)
    with reported("the cache folder"):
        if args.source:
            if args.suite not in SUITES:
                raise UserError("--from", f"{args.suite} is generated", "leave it out")
            source = Path(os.path.expanduser(args.source))
            if not source.exists():
                raise UserError(f"--from: {source}", "is not there", "give a folder or a zip file")
            print(f"kept in {keep_release(SUITES[args.suite], source)}")
        skills = skills_of(args.suite)
        for line in [*table(skills), *same_files(skills)]:
            print(line)


if __name__ == "__main__":
    main()
