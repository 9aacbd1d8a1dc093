"""Tool use at the size of the embedded model: real questions of the Berkeley Function Calling Leaderboard (BFCL).

Data: BFCL v4 (Patil et al., "The Berkeley Function Calling Leaderboard", ICML 2025; Apache-2.0) as the Python package
``bfcl-eval`` ships it: the categories ``simple_python``, ``multiple`` and ``live_simple``, with the possible answers. Only
its JSON files are read; the package itself is never imported (that would ask for the clients of a dozen providers).

Form: a short list of tools and a question; the answer is one call in the form of ToolAlpaca, the paper's Tool Use data:

    Action: weather.get
    Action Input: {"city": "Oslo"}

Grader: the rules of BFCL's own ``ast_checker`` for Python, written anew and compared with it in the tests.
Splits go by tool: no tool of the test or validation split is called or even listed in another split.
"""

import hashlib
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

from harness.errors import UserError
from harness.skills import Example, Skill

PACKAGE = "bfcl-eval==2026.3.23"
CATEGORIES = ("simple_python", "multiple", "live_simple")
PROMPT_SIZE, DEMONSTRATION_SIZE = 165, 56  # by size(); more is dropped
ROWS_A_TOOL = 4  # a few tools have dozens of questions that differ in one word
SHARES = (("validation", 0.16), ("test", 0.30))  # of the groups of tools; the others are for training

TEMPLATE = """{tool}

Question: {question}

Call the tool. Reply with exactly two lines:
Action: the tool name
Action Input: the arguments as a JSON object"""

PYTHON_TYPES = {"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list,
                "dict": dict, "any": str}


class BfclTools(Skill):
    """One correct tool call for one question; see the module's first lines and docs/skills/bfcl_tools.md."""

    name = "bfcl_tools"
    description = "tool calls on real questions of the Berkeley Function Calling Leaderboard v4 (bfcl-eval, Apache-2.0)"
    max_new_tokens = 64
    teacher_template = "three_turn"
    checksums = {  # noqa: RUF012 - read only
    }

    @property
    def metrics(self):
        return {"accuracy": accuracy}

    def reward(self, completion, reference):
        return reward(completion, reference)

    def load(self, split):
        """Examples of ``split`` in a fixed pseudo-random order. Raises UserError where the package's files are missing."""
        rows = _read()
        split_of = _split_tools(rows)
        chosen, seen = [], Counter()
        for row in sorted(rows, key=lambda r: _hash("order", r["id"])):
            example = _example(row)
            if split_of[row["called"]] == split and example and seen[row["called"]] < ROWS_A_TOOL:
                seen[row["called"]] += 1
                chosen.append(example)
        return chosen


# ---- data -------------------------------------------------------------------------------------------------------


def _hash(*parts):
    """A uniform number in [0, 1) that depends on nothing but ``parts``."""
    return int.from_bytes(hashlib.sha256("|".join(("bfcl_tools", *parts)).encode()).digest()[:8], "big") / 2**64


def _read():
    """Rows of the package's files: id, question, called (tool name), tools (declarations), answer (possible values)."""
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("skill bfcl_tools", "the package bfcl-eval, which holds the data, is not installed",
                        f"pip install --no-deps {PACKAGE}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    rows, questions = [], set()
    for category in CATEGORIES:
        answers = {r["id"]: r["ground_truth"][0] for r in _lines(folder / "possible_answer" / f"BFCL_v4_{category}.json")}
        for row in _lines(folder / f"BFCL_v4_{category}.json"):
            (called, answer), = answers[row["id"]].items()
            turns, text = row["question"][0], _one_line(row["question"][0][-1]["content"])
            if len(turns) == 1 and (called, text) not in questions:  # a few have a long system turn of their own
                questions.add((called, text))
                rows.append({"id": row["id"], "question": text, "called": called, "tools": row["function"],
                             "answer": answer})
    return rows


def _lines(path):
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(path, f"cannot be read ({error.__class__.__name__})",
                        f"pip install --force-reinstall --no-deps {PACKAGE}") from None


def _split_tools(rows):
    """{tool name: split}. Tools go together where their names differ in case or punctuation only or where one and the
    same question is asked for both."""
    parent = {}

    def root(key):
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    def key(name):
        return "tool " + re.sub(r"[^a-z0-9]", "", name.lower())

    for row in rows:
        parent[root("question " + row["question"].lower())] = root(key(row["called"]))
    groups = {}
    for name in sorted({row["called"] for row in rows}):
        groups.setdefault(root(key(name)), []).append(name)
    split_of = {}
    for names in groups.values():
        position, split = _hash("split", names[0]), "train"
        for candidate, share in SHARES:
            if 0 <= position < share:
                split = candidate
            position -= share
        split_of.update(dict.fromkeys(names, split))
    return split_of


def _example(row):
    """The Example of a row, or None: too long, or BFCL's own possible answers contradict its declaration."""
    called = next(t for t in row["tools"] if t["name"] == row["called"])
    prompt = TEMPLATE.format(tool=_declaration(called), question=row["question"])
    parameters = called["parameters"]
    reference = {
        "name": row["called"],
        "required": parameters["required"],
        "types": {name: [p["type"], p.get("items", {}).get("type")] for name, p in parameters["properties"].items()},
        "answer": row["answer"],
    }
    arguments = _first_values(row["answer"], parameters["required"])
    demonstration = f"Action: {row['called']}\nAction Input: {json.dumps(arguments, ensure_ascii=False)}"
    if size(prompt) > PROMPT_SIZE or size(demonstration) > DEMONSTRATION_SIZE:
        return None
    if accuracy(demonstration, reference) < 1:
        return None
    return Example(row["id"], [{"role": "user", "content": prompt}], demonstration, reference)


def _declaration(tool):
    """A tool in a few lines: name, first sentence of the description, one line a parameter."""
    lines = [f"Tool {tool['name']}: {_first_sentence(tool['description'])}"]
    required = tool["parameters"]["required"]
    for name, p in tool["parameters"]["properties"].items():
        kind = p["type"] + (f" of {p['items']['type']}" if "items" in p else "") + ("" if name in required else ", optional")
        choices = " One of " + ", ".join(map(str, p["enum"])) + "." if "enum" in p else ""
        lines.append(f"- {name} ({kind}): {_first_sentence(p['description'])}{choices}")
    return "\n".join(lines)


def _first_sentence(text):
    return re.split(r"(?<=[^.][a-z)\]'\"][.])\s+(?=[A-Z])", _one_line(text), maxsplit=1)[0]


def size(text):
    """About the number of tokens (SmolLM2's: within a tenth or so), without a tokenizer, so that the data depend on none."""
    return len(re.findall(r"[A-Za-z]{1,7}|[^\x00-\x7f]|\d|_|[^\w\s]+", text))


def _one_line(text):
    return " ".join(text.split())


def _first_values(answer, required=()):
    """Arguments from possible values: the first of each; what may be left out ("" among the values) is left out."""
    return {name: _first_value(values) for name, values in answer.items() if name in required or "" not in values}


def _first_value(values):
    value = next((v for v in values if v != ""), "")
    if isinstance(value, dict):
        return _first_values(value)
    if isinstance(value, list):
        return [_first_values(item) if isinstance(item, dict) else item for item in value]
    return value


# ---- grader -----------------------------------------------------------------------------------------------------


def accuracy(completion, reference):
    """1.0 if the completion holds exactly one call and BFCL's rules accept it, else 0.0."""
    names, inputs = parse(completion)
    return float(len(names) == len(inputs) == 1 and names[0] == reference["name"] and _call_is_right(inputs[0], reference))


def reward(completion, reference):
    """In [0, 1], exactly 1 where ``accuracy`` is 1; below that a sum of parts that tells bad answers from worse ones.

    0.1 an ``Action:`` line, 0.1 an ``Action Input:`` line, 0.1 it holds a JSON object, 0.2 the tool's name, 0.4 times the
    arguments: each that is wanted or given counts 1 if right, 1/2 if only its name is.
    """
    if accuracy(completion, reference):
        return 1.0
    names, inputs = parse(completion)
    total = 0.1 * bool(names) + 0.1 * bool(inputs)
    total += 0.2 * (bool(names) and names[0] == reference["name"])
    if inputs and isinstance(inputs[0], dict):
        given, answer = inputs[0], reference["answer"]
        wanted = {name for name, values in answer.items() if name in reference["required"] or "" not in values}
        parts = [0.5 + 0.5 * _value_is_right(given[n], answer[n], *reference["types"][n])
                 for n in given if n in answer and n in reference["types"]]
        total += 0.1 + 0.4 * sum(parts) / max(len(wanted | set(given)), 1)
    return total


_decoder = json.JSONDecoder(parse_constant=lambda constant: float("x"))  # ValueError: NaN and Infinity are not JSON


def parse(completion):
    """([names of the ``Action:`` lines], [what stands after ``Action Input:``]), the latter None where it is not JSON."""
    names = re.findall(r"^[ \t]*Action:[ \t]*(.*?)[ \t\r]*$", completion, re.MULTILINE)
    inputs = []
    for match in re.finditer(r"^[ \t]*Action Input:\s*", completion, re.MULTILINE):
        try:
            inputs.append(_decoder.raw_decode(completion, match.end())[0])
        except (ValueError, RecursionError):
            inputs.append(None)
    return names, inputs


def _call_is_right(arguments, reference):
    """BFCL's simple_function_checker: every required argument there, none unknown, each value among the possible ones."""
    answer, types = reference["answer"], reference["types"]
    return (
        isinstance(arguments, dict)
        and all(name in arguments for name in reference["required"])
        and all(name in arguments or "" in values for name, values in answer.items())
        and all(name in answer and name in types and _value_is_right(value, answer[name], *types[name])
                for name, value in arguments.items())
    )


def _value_is_right(value, possible, kind, inner):
    """One argument against its possible values. kind, inner: the declared type and the type of an array's elements."""
    expected = PYTHON_TYPES[kind]
    nested = PYTHON_TYPES[inner] if kind in ("array", "tuple") else None
    if kind == "float" and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            return False
    # A possible value of another type than the declared one is taken as it stands ("is_variable" in BFCL).
    answer_type = _type_of(possible)
    literal = answer_type is not None and answer_type is not expected
    if type(value) is expected:
        if nested and not any(_elements_fit(value, p, nested) for p in possible):
            return False
    elif type(value) is answer_type:
        literal = True
    else:
        return False
    if literal:
        return value in possible
    if expected is dict:
        return any(_dict_is_right(value, p) for p in possible if p != "")
    if expected is list and nested is dict:
        return any(len(value) == len(p) and all(map(_dict_is_right, value, p)) for p in possible)
    if expected is list:
        return _plain(value) in [_plain(p) for p in possible]
    if expected is str:
        return _plain(value) in [_plain(p) for p in possible if type(p) is str]
    return value in possible


def _type_of(possible):
    """Type of the first possible value that is not "" (which means: may be left out); None if there is no other."""
    return next((type(p) for p in possible if p != ""), None)


def _elements_fit(value, possible, nested):
    """True if all elements have the declared type or that of the possible list's first; one level deep, as in BFCL."""
    return type(possible) is not list or all(type(v) in (nested, _type_of(possible)) for v in value)


def _dict_is_right(value, possible):
    return all(k in possible and _plain(v) in [_plain(p) for p in possible[k]] for k, v in value.items()) and all(
        k in value or "" in values for k, values in possible.items())


def _plain(value):
    """BFCL's standardize_string, for a text or the texts in a list: no blanks and punctuation, lower case, one quote."""
    if type(value) is list:
        return [_plain(v) if type(v) is str else v for v in value]
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"') if type(value) is str else value
