"""What the files of a results folder hold: version, names of metrics, shapes of JSON."""

import json

from harness.base.errors import UserError

VERSION = 1
# before the name of a metric: of the base model with the question's source in its prompt
ORACLE = "oracle_"
# Keys of a skill or a retention task in results.json that folders from before they were written
# lack; compared where they are there.
LATER = ("evaluated", "graders", "num_fewshot", "chat_template", "limit", "max_gen_toks")
# Shapes of JSON, of what is read here: a type, [shape of every entry], {key: shape}; a key with ?
# may be absent or null, * is every key.
HEAD = {
    "name?": str,
    "skills": [{"name": str, "metric": str, "description?": str, "judge?": {"metrics?": [str]}}],
    "retention?": [{"name": str, "metric": str, "description?": str, "chance?": float}],
    "methods": {"*": {"method?": str, "config?": dict, "grid?": {"of": str, "values": dict}}},
    "seeds": [int],
    "evaluate?": {"split?": str, "skills?": str},
}
SELECTION = {"*": {"selected?": str, "rule": str, "points": list}}
RUN = {"label?": str, "packages?": dict, "config?": dict}
STAGE = {
    "stage": int,
    **dict.fromkeys(("steps?", "prompts?", "tokens?", "peak_memory_gib?"), float),
    "seconds?": {"*?": float},
}
EVALUATION = {"items?": [{"scores?": {"*?": float}}]}
NAMES = {str: "a text", float: "a number", int: "a whole number", list: "a list", dict: "an object"}
REMEDY = "restore the file, or start the run again where it is lost"


def read_object(path, shape):
    """The JSON object of a file, {} where there is none. Raises UserError naming the key that is
    not as ``shape`` says.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(path, "is not JSON", REMEDY) from None
    check_shape(path, found, shape, "")
    return found


def check_shape(path, value, shape, key):
    kind = type(shape) if isinstance(shape, list | dict) else shape
    if not isinstance(value, (int, float) if kind is float else kind) or (
        isinstance(value, bool) and kind is int
    ):
        raise UserError(
            path,
            f"`{key}` is {short_json(value)}, not {NAMES[kind]}"
            if key
            else f"is not {NAMES[kind]}",
            REMEDY,
        )
    for name, inner in shape.items() if isinstance(shape, dict) else ():
        optional = name.endswith("?")
        for part in value if name.startswith("*") else [name.rstrip("?")]:
            if not optional or value.get(part) is not None:
                check_shape(path, value.get(part), inner, f"{key}.{part}".lstrip("."))
    for i, part in enumerate(value) if isinstance(shape, list) else ():
        check_shape(path, part, shape[0], f"{key}[{i}]")


def short_json(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
