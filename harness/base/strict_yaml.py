"""YAML in which nothing is read otherwise than it is written, or lost, without a word.

Every YAML file of the project and of a user is read here: orders, retention suites, presets.
"""

from pathlib import Path
from typing import Any

import yaml

from harness.base.errors import UserError
from harness.base.settings import BEYOND

# Of a file, with all that its aliases repeat.
MOST_NODES = 100_000  # keys, values and lists
MOST_LETTERS = 10_000_000

# A ValueError: bytes that are not UTF-8, or a date that is none. A RecursionError: lists in lists.
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


def parse_yaml(text: str) -> Any:
    """The value of a text. Raises one of YAML_ERRORS, of which ``yaml_problem`` makes words."""
    return yaml.load(text, _Loader)


def read_yaml(path: Path, remedy: str, place: object = None) -> Any:
    """The value of a file.

    place: what an error names, by default the path. Raises UserError with the line where it is
    known, and ``remedy``.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        where = path if place is None else place
        problem = f"is not YAML ({yaml_problem(error)})"
        raise UserError(f"{where}{line}", problem, remedy) from None


def yaml_problem(error: Exception) -> object:
    """What is wrong with a text that is not YAML, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return getattr(error, "problem", None) or error


class _Loader(yaml.SafeLoader):
    """YAML in which a repeated key is an error, and whole numbers have at most 64 bits.

    Numbers of YAML 1.1 that are others, or texts, in YAML 1.2 and to most readers are errors: octal
    ones (010 is 8) and those to the base of 60 (1:30 is 90).

    Aliases may not make it larger than any file of settings is, nor contain themselves.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_nodes(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A tag may name a kind that its text is not, where PyYAML raises whatever comes."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            kind = str(node.tag).rpartition(":")[2]
            raise _yaml_error(node, f"no {kind} stands there: {error}") from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: dict[Any, str] = {}
        pairs = node.value if isinstance(node, yaml.MappingNode) else []  # super() says what it is
        for key, _ in pairs:
            if isinstance(key, yaml.ScalarNode):
                merges = key.tag == "tag:yaml.org,2002:merge"
                value = key.value if merges else self.construct_object(key)
                if not isinstance(value, str) and str(value) != key.value:
                    problem = f"key {key.value} is {value} in YAML 1.1: write '{key.value}'"
                    raise _yaml_error(key, problem)
                for same in (value, key.value):  # 1 and 1.0 are one key
                    if same in keys:
                        also = "" if keys[same] == key.value else f", as {keys[same]!r}"
                        raise _yaml_error(key, f"key {key.value!r} stands twice{also}")
                keys |= {value: key.value, key.value: key.value}
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) < 99:
            value = super().construct_yaml_int(node)
            _check_base(node, value)
            if abs(value) < BEYOND:
                return value
        raise _yaml_error(node, "a whole number beyond 64 bits")

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        _check_base(node, value)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _check_base(node: yaml.ScalarNode, value: float) -> None:
    """Raises a YAML error where a number is another than its digits say."""
    text = node.value[:40]
    digits = node.value.replace("_", "").lstrip("+")
    if ":" in node.value:
        problem = f"{text} is {value:g} in YAML 1.1, to the base of 60: write {value:g} or '{text}'"
        raise _yaml_error(node, problem)
    if digits.removeprefix("-").isdecimal() and int(digits) != value:
        problem = f"{text} is {value} in YAML 1.1, octal: write {value} or {int(digits)}"
        raise _yaml_error(node, problem)


def _check_nodes(root: yaml.Node) -> None:
    """Raises a YAML error where ``root`` holds too much or itself."""
    sizes: dict[int, tuple[int, int]] = {}

    def size(node: yaml.Node) -> tuple[int, int]:
        """(entries, letters)."""
        key = id(node)
        if key not in sizes:
            sizes[key] = (0, 0)  # until it is known: what the node meets of itself inside
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                inner = [each for pair in node.value for each in pair]
            entries, letters = 1, len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            for each in inner:
                of_each = size(each)
                entries, letters = entries + of_each[0], letters + of_each[1]
            sizes[key] = (entries, letters)
            for count, most, what in (
                (entries, MOST_NODES, "entries"),
                (letters, MOST_LETTERS, "letters"),
            ):
                if count > most:
                    raise _yaml_error(node, f"more than {most:,} {what}, aliases counted")
        elif sizes[key][0] == 0:
            raise _yaml_error(node, "an alias that contains itself")
        return sizes[key]

    size(root)


def _yaml_error(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
