"""Markdown of docstrings and of options."""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping

NOTICE = "<!-- Made by docs/generate.py from the code; change it there. -->\n"
ENTRY = re.compile(r"\s*(\* |- |\d+\. )")  # begins an entry of a list
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")

# ---- options -------------------------------------------------------------------------------------


def cell(value: object) -> str:
    """A value of a setting as YAML would have it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", lambda sign: "e" + sign[1].strip("+"), f"{value:g}")
    return str(value)


def kind(hint: object) -> str:
    """A type hint in words."""
    if typing.get_origin(hint) in (typing.Union, type(int | None)):
        return " or ".join(kind(h) for h in typing.get_args(hint) if h is not type(None))
    name = getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    return {**words, "dict": "mapping", "list": "list"}.get(name, name)


def bounds(rules: Mapping[str, typing.Any]) -> str:
    """What a setting may be, from the metadata of its ``option``."""
    if rules.get("choices"):
        return ", ".join(f"`{choice}`" for choice in rules["choices"])
    parts = [
        f"{word} {cell(rules[key])}"
        for key, word in (("min", "from"), ("above", "above"), ("max", "to"))
        if rules.get(key) is not None
    ]
    return " ".join(parts)


def default(field: dataclasses.Field[typing.Any]) -> str:
    """The default of a field, in words."""
    if field.default_factory is not dataclasses.MISSING:
        return cell(field.default_factory() or None)
    return "required" if field.default is dataclasses.MISSING else cell(field.default)


def table(config: type, without: frozenset[str] = frozenset()) -> str:
    """The settings of a dataclass as a Markdown table."""
    hints = typing.get_type_hints(config)
    rows = []
    for field in dataclasses.fields(config):
        if field.name in without:
            continue
        values = bounds(field.metadata) or kind(hints[field.name])
        rows.append((f"`{field.name}`", default(field), values, field.metadata.get("help", "")))
    return grid(("key", "default", "values", "meaning"), rows)


def grid(head: typing.Sequence[str], rows: typing.Iterable[typing.Sequence[str]]) -> str:
    """A Markdown table."""
    lines = (
        "| " + " | ".join(part.replace("|", "\\|") for part in line) + " |\n"
        for line in (head, *rows)
    )
    return next(lines) + "|---" * len(head) + "|\n" + "".join(lines)


def names(words: typing.Iterable[str]) -> str:
    """Names in code type, with commas."""
    return ", ".join(f"`{word}`" for word in words)


# ---- docstrings ----------------------------------------------------------------------------------


class Doc(typing.NamedTuple):
    """A plug-in's docstring: its first paragraph, what follows, and what it says at its end."""

    what: str
    body: str
    state: str
    cost: str


def read_doc(docstring: str | None, name: str) -> Doc:
    """The docstring of a plug-in in its parts, each as Markdown.

    Raises ValueError where no paragraph is ``State: ... Cost: ...``.
    """
    first, _, rest = inspect.cleandoc(docstring or "").partition("\n\n")
    blocks = rest.split("\n\n")
    for block in blocks:
        if found := re.fullmatch(r"State: (.+?)\s+Cost: (.+)", block, re.DOTALL):
            body = "\n\n".join(each for each in blocks if each is not block)
            ends = (sentence(blocks_of(found[i])) for i in (1, 2))
            return Doc(blocks_of(first), blocks_of(body), *ends)
    raise ValueError(f"{name}: no paragraph of its docstring is `State: ... Cost: ...`")


def markdown(docstring: str | None) -> str:
    """A docstring as Markdown: paragraphs unwrapped, code in single backquotes, papers linked."""
    return blocks_of(inspect.cleandoc(docstring or ""))


def blocks_of(text: str) -> str:
    """``markdown`` of a text without indentation of its own."""
    text = text.replace("``", "`")
    text = re.sub(r":class:`([^`]+)`", r"`\1`", text)
    blocks: list[str] = []
    for block in text.split("\n\n"):
        if block.startswith("    "):
            blocks.append("```\n" + textwrap.dedent(block) + "\n```")
        else:
            blocks += map(linked, unwrapped(block))
    return "\n\n".join(blocks)


def sentence(text: str) -> str:
    """A text that begins with a capital, unless it begins with a symbol."""
    return re.sub(r"^(a|an|[a-z]{2,})(?=[ .,;])", lambda word: word[1].capitalize(), text)


def unwrapped(block: str) -> list[str]:
    """A block's paragraph and its list, each entry on one line.

    What heads a list without a stop behind it is bold.
    """
    lines: list[str] = []
    for line in block.split("\n"):
        if lines and not ENTRY.match(line):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
    if len(lines) < 2 or ENTRY.match(lines[0]):
        return ["\n".join(lines)]
    head = lines[0] if lines[0][-1] in ".:;," else f"**{lines[0]}**"
    return [head, "\n".join(lines[1:])]


def linked(text: str) -> str:
    """A text whose papers are links."""
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def papers(docstring: str | None) -> list[str]:
    """The papers that a docstring names, as links, each once."""
    found = ARXIV.findall(" ".join((docstring or "").split()))
    return [linked(f"arXiv {number}") for number in dict.fromkeys(found)]


def functions(module: object) -> Iterator[Callable[..., object]]:
    """The public functions that a module defines, in their order in the file."""
    for node in ast.parse(inspect.getsource(module)).body:  # type: ignore[arg-type]
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield getattr(module, node.name)
