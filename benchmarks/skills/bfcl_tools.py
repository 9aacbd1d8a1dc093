"""Tool use for small models: real questions of the Berkeley Function Calling Leaderboard (BFCL).

Data: BFCL v4 (Patil et al., "The Berkeley Function Calling Leaderboard", ICML 2025; Apache-2.0) as
the Python package ``bfcl-eval`` ships it: the categories ``simple_python``, ``multiple`` and
``live_simple``, and for the test ``live_multiple``, with the possible answers. Only its JSON files
are read; the package itself is never imported (that would ask for a dozen providers' clients).

Form: one tool and a question; the answer is one call in the form of ToolAlpaca, the paper's Tool
Use data:

    Action: weather.get
    Action Input: {"city": "Oslo"}

Grader: the rules of BFCL's own ``ast_checker`` for Python, in code of our own that the tests
compare with it. Splits go by tool: no tool of one split occurs in another.
"""

import hashlib
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

from harness.base.errors import UserError
from harness.skills.skill import Example, Skill

PACKAGE = "bfcl-eval==2026.3.23"
CATEGORIES = ("simple_python", "multiple", "live_simple")
FURTHER = ("live_multiple",)  # behind the others in the test, for tools that no split has
# By size(), about tokens; longer rows are dropped.
QUESTION_SIZE = 112
DEMONSTRATION_SIZE = 56
ROWS_A_TOOL = 4  # a few tools have dozens of questions that differ in one word
# Shares of the groups of tools; the other groups are for training.
SHARES = (("validation", 0.16), ("test", 0.30))

# A base model this small follows no description of the form (seven wordings: no right call, mean
# reward 0.00 to 0.09), but it does follow one earlier turn: it then makes calls, most of them
# wrong, and learning from own samples can start.
CONTEXT = [
    {"role": "system", "content": "Reply with one tool call."},
    {
        "role": "user",
        "content": "Tool get_time: Time in a city.\n- city (string): Its name.\n\n"
        "What time is it in Oslo?",
    },
    {"role": "assistant", "content": 'Action: get_time\nAction Input: {"city": "Oslo"}'},
]

PYTHON_TYPES = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}


class BfclTools(Skill):
    """One correct tool call for one question; see docs/reference/skills/bfcl_tools.md."""

    name = "bfcl_tools"
    description = (
        "tool calls on real questions of the Berkeley Function Calling Leaderboard v4 "
        "(bfcl-eval, Apache-2.0)"
    )
    max_new_tokens = 64
    teacher_template = "three_turn"
    checksums = {
        "train": "8c56822099e30a08c7c52c04a16285279451160a6b6762572bcd5c8a3f18e161",
        "validation": "92c281d587c7bcec50108bf21ba62905b9cfb84926cb1a18da64d9133cd13c48",
        "test": "404510c6a0296068cd733d8dffad8fc9a4ed577ec2548b8c60c53ff4f6a4b22e",
    }

    @property
    def metrics(self):
        return {"accuracy": accuracy}

    def reward(self, completion, reference):
        return reward(completion, reference)

    def load(self, split):
        """Examples of ``split`` in a fixed pseudo-random order.

        The demonstration, in every split, has the first possible value of each argument that may
        not be left out. Raises UserError where the package's files are missing.
        """
        rows = _read(CATEGORIES)
        split_of = _split_tools(rows)
        chosen = _chosen([row for row in rows if split_of[row["tool"]["name"]] == split])
        if split == "test":
            tools = {_tool_key(name) for name in split_of}
            questions = {row["question"].lower() for row in rows}
            further = _chosen(
                [
                    row
                    for row in _read(FURTHER)
                    if _tool_key(row["tool"]["name"]) not in tools
                    and row["question"].lower() not in questions
                ]
            )
            # Each call once: some tools differ in a word of their description alone.
            chosen += {e.demonstration: e for e in reversed(further)}.values()
        return chosen


def _chosen(rows):
    """Examples of rows, at most ROWS_A_TOOL for each tool, in a fixed pseudo-random order."""
    chosen, seen = [], Counter()
    for row in sorted(rows, key=lambda r: _hash("order", r["id"])):
        name, example = row["tool"]["name"], _example(row)
        if example and seen[name] < ROWS_A_TOOL:
            seen[name] += 1
            chosen.append(example)
    return chosen


# ---- data ---------------------------------------------------------------------------------------


def _hash(*parts):
    """A uniform number in [0, 1) that depends on nothing but ``parts``."""
    digest = hashlib.sha256("|".join(("bfcl_tools", *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _read(categories):
    """Rows of the package's files: id, question, tool (declaration), answer (possible values)."""
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "skill bfcl_tools",
            "the package bfcl-eval, which holds the data, is not installed",
            f"pip install --no-deps {PACKAGE}",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    rows, questions = [], set()
    for category in categories:
        file = f"BFCL_v4_{category}.json"
        answers = {r["id"]: r["ground_truth"][0] for r in _lines(folder / "possible_answer" / file)}
        for row in _lines(folder / file):
            ((called, answer),) = answers[row["id"]].items()
            turns, text = row["question"][0], _one_line(row["question"][0][-1]["content"])
            # A few rows have a long system turn of their own.
            if len(turns) == 1 and (called, text) not in questions:
                questions.add((called, text))
                tool = next(t for t in row["function"] if t["name"] == called)
                rows.append({"id": row["id"], "question": text, "tool": tool, "answer": answer})
    return rows


def _lines(path):
    try:
        return [
            json.loads(line)
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise UserError(
            path,
            f"cannot be read ({error.__class__.__name__})",
            f"pip install --force-reinstall --no-deps {PACKAGE}",
        ) from None


def _tool_key(name):
    """What names of one tool have in common: they may differ in case and punctuation."""
    return "tool " + re.sub(r"[^a-z0-9]", "", name.lower())


def _split_tools(rows):
    """{tool name: split}.

    Tools go into one split if their names differ in case or punctuation only, or if they share a
    question.
    """
    parent = {}

    def root(key):
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for row in rows:
        parent[root("question " + row["question"].lower())] = root(_tool_key(row["tool"]["name"]))
    groups = {}
    for name in sorted({row["tool"]["name"] for row in rows}):
        groups.setdefault(root(_tool_key(name)), []).append(name)
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
    """The Example of a row.

    None if it is too long or if BFCL's possible answers contradict the tool's declaration.
    """
    question = f"{_declaration(row['tool'])}\n\n{row['question']}"
    name, parameters = row["tool"]["name"], row["tool"]["parameters"]
    reference = {
        "name": name,
        "required": parameters["required"],
        "types": {
            key: [p["type"], p.get("items", {}).get("type")]
            for key, p in parameters["properties"].items()
        },
        "answer": row["answer"],
    }
    try:
        arguments = _first_values(row["answer"], parameters["required"])
    except TypeError:  # A row of live_multiple has a value where a list of values is wanted.
        return None
    demonstration = f"Action: {name}\nAction Input: {json.dumps(arguments, ensure_ascii=False)}"
    if size(question) > QUESTION_SIZE or size(demonstration) > DEMONSTRATION_SIZE:
        return None
    if accuracy(demonstration, reference) < 1:
        return None
    return Example(
        row["id"], [*CONTEXT, {"role": "user", "content": question}], demonstration, reference
    )


def _declaration(tool):
    """A tool in a few lines: name, first sentence of the description, one line a parameter."""
    lines = [f"Tool {tool['name']}: {_first_sentence(tool['description'])}"]
    required = tool["parameters"]["required"]
    for name, p in tool["parameters"]["properties"].items():
        kind = p["type"] + (f" of {p['items']['type']}" if "items" in p else "")
        optional = "" if name in required else ", optional"
        choices = " One of " + ", ".join(map(str, p["enum"])) + "." if "enum" in p else ""
        # The keys of a dict, or of an array's dicts.
        inner = p.get("properties") or p.get("items", {}).get("properties")
        keys = " Keys " + ", ".join(inner) + "." if inner else ""
        lines.append(
            f"- {name} ({kind}{optional}): {_first_sentence(p['description'])}{choices}{keys}"
        )
    return "\n".join(lines)


def _first_sentence(text):
    return re.split(r"(?<=[^.][a-z)\]'\"][.])\s+(?=[A-Z])", _one_line(text), maxsplit=1)[0]


def size(text):
    """About the number of tokens, without a tokenizer, so that the data depend on none.

    The correlation with SmolLM2's number of tokens is 0.96.
    """
    return len(re.findall(r"[A-Za-z]{1,7}|\d|_|[^\w\s]+", text)) + 2 * sum(c > "\x7f" for c in text)


def _one_line(text):
    return " ".join(text.split())


def _first_values(answer, required=()):
    """Arguments from possible values: the first of each.

    An argument with "" among its values may be left out, and is left out.
    """
    return {
        name: _first_value(values)
        for name, values in answer.items()
        if name in required or "" not in values
    }


def _first_value(values):
    value = next((v for v in values if v != ""), "")
    if isinstance(value, dict):
        return _first_values(value)
    if isinstance(value, list):
        return [_first_values(item) if isinstance(item, dict) else item for item in value]
    return value


# ---- grader -------------------------------------------------------------------------------------


def accuracy(completion, reference):
    """1.0 if the completion holds exactly one call and BFCL's rules accept it, else 0.0."""
    names, inputs = parse(completion)
    one = len(names) == len(inputs) == 1
    return float(one and names[0] == reference["name"] and _call_is_right(inputs[0], reference))


def reward(completion, reference):
    """The reward in [0, 1]: 1 exactly where ``accuracy`` is 1, otherwise a sum of parts.

    0.1 for an ``Action:`` line, 0.1 for an ``Action Input:`` line, 0.1 if it holds a JSON object,
    0.2 for the tool's name, 0.4 times the mean over arguments: each argument that is wanted or
    given counts 1 if right, 1/2 if only its name is right. Only the first call counts.
    """
    if accuracy(completion, reference):
        return 1.0
    names, inputs = parse(completion)
    total = 0.1 * bool(names) + 0.1 * bool(inputs)
    total += 0.2 * (bool(names) and names[0] == reference["name"])
    if inputs and isinstance(inputs[0], dict):
        given, answer = inputs[0], reference["answer"]
        wanted = {
            name
            for name, values in answer.items()
            if name in reference["required"] or "" not in values
        }
        parts = [
            0.5 + 0.5 * _value_is_right(given[n], answer[n], *reference["types"][n])
            for n in given
            if n in answer and n in reference["types"]
        ]
        total += 0.1 + 0.4 * sum(parts) / max(len(wanted | set(given)), 1)
    return total


def parse(completion):
    """([names on ``Action:`` lines], [JSON values after ``Action Input:``]); None is no JSON."""
    names = re.findall(r"^[ \t]*Action:[ \t]*(.*?)[ \t\r]*$", completion, re.MULTILINE)
    inputs = []
    for match in re.finditer(r"^[ \t]*Action Input:\s*", completion, re.MULTILINE):
        try:
            inputs.append(json.JSONDecoder().raw_decode(completion, match.end())[0])
        except (ValueError, RecursionError):
            inputs.append(None)
    return names, inputs


def _call_is_right(arguments, reference):
    """BFCL's simple_function_checker.

    All required arguments are there, none is unknown, and each value is a possible one.
    """
    answer, types = reference["answer"], reference["types"]
    return (
        isinstance(arguments, dict)
        and all(name in arguments for name in reference["required"])
        and all(name in arguments or "" in values for name, values in answer.items())
        and all(
            name in answer and name in types and _value_is_right(value, answer[name], *types[name])
            for name, value in arguments.items()
        )
    )


def _value_is_right(value, possible, kind, inner):
    """Whether the value of one argument is one of its possible values.

    kind, inner: the declared type, and the declared type of an array's elements.
    """
    expected = PYTHON_TYPES[kind]
    nested = PYTHON_TYPES[inner] if kind in ("array", "tuple") else None
    if kind == "float" and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            return False
    # A possible value of another type than the declared one is compared literally ("is_variable"
    # in BFCL).
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
        return any(_dict_is_right(value, p) for p in possible)
    if expected is list and nested is dict:
        return any(len(value) == len(p) and all(map(_dict_is_right, value, p)) for p in possible)
    if expected is list:
        return _plain_list(value) in map(_plain_list, possible)
    if expected is str:
        return _plain_text(value) in [_plain_text(p) for p in possible if type(p) is str]
    return value in possible


def _type_of(possible):
    """Type of the first possible value that is not ""; None if there is no other.

    "" means that the argument may be left out.
    """
    return next((type(p) for p in possible if p != ""), None)


def _elements_fit(value, possible, nested):
    """Whether all elements have the declared type, or the type of the possible list's first.

    One level deep, as in BFCL.
    """
    return type(possible) is not list or all(type(v) in (nested, _type_of(possible)) for v in value)


def _dict_is_right(value, possible):
    return (
        type(value) is type(possible) is dict
        and all(
            k in possible and _plain_text(v) in map(_plain_text, possible[k])
            for k, v in value.items()
        )
        and all(k in value or "" in values for k, values in possible.items())
    )


def _plain_text(value):
    """BFCL's standardize_string for a text: no blank, none of ,./-_*^, lower case, one quote.

    Other values stay as they are.
    """
    if type(value) is not str:
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')


def _plain_list(value):
    return [_plain_text(v) for v in value]
