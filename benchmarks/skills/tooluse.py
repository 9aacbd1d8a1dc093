"""Tool Use of arXiv 2601.19897 (section 4): ToolAlpaca's tools, one or more calls an answer.

The columns are the authors'. A row has ``prompt`` (text: the tools, the form of an answer, the
question) and ``golden_answer`` ([{Action, Action_Input}], the input a JSON text); a train row also
has ``golden_response`` ([text], joined by line breaks as in the authors' code).
"""

import json
import re
from collections import Counter
from contextlib import suppress

from benchmarks.skills._sources import PaperSkill, text
from harness.base.errors import UserError
from harness.skills.graders import comparable
from harness.skills.skill import Example
from harness.skills.strict_json import decoded, decoded_start

OPTIONAL = "[Optional]"  # how a reference marks a call that may be left out


def accuracy(completion, reference):
    """The authors' grader to the letter, on which the published numbers rest; 1.0 or 0.0.

    The names after ``Action:`` equal the reference's as multisets, and the merged arguments are
    equal. A block of arguments ends at the first ``}``, so nested objects never match; calls share
    one dict, so arguments may stand at the wrong call or be overwritten by a later one; a block
    that is not JSON is skipped; a reference input that is not JSON counts as empty.
    """
    given, wanted = {}, {}
    for block in re.findall(r"Action Input:\s*({.*?})", completion, re.DOTALL):
        _merge(given, block)
    for call in reference:
        _merge(wanted, call["Action_Input"])
    names = Counter(re.findall(r"Action:\s*(\w+)", completion))
    return float(names == Counter(call["Action"] for call in reference) and given == wanted)


def _merge(arguments, block):
    # The authors have a bare except.
    with suppress(ValueError, TypeError, RecursionError):
        arguments.update(json.loads(block))


def accuracy_json(completion, reference):
    """The corrected grader: every call by itself, its arguments read by a JSON decoder; 1.0 or 0.0.

    The calls (name and arguments) equal the reference's as multisets. Only lines that begin with
    ``Action:`` and ``Action Input:`` count, also in Markdown (emphasis, code, lists, headings).
    Each call has exactly one input. Objects may be nested; ``true`` is not 1, but 1.0 is; NaN, or a
    key twice in an object, is no JSON; what is no JSON is compared as text. A call that the
    reference marks ``[Optional]`` may be left out.
    """
    given, wanted, optional = Counter(calls(completion)), Counter(), Counter()
    for call in reference:
        kind = optional if call["Action"].startswith(OPTIONAL) else wanted
        kind[call["Action"].removeprefix(OPTIONAL), _arguments(call["Action_Input"])] += 1
    return float(wanted <= given <= wanted + optional)


# A line of a call: a list's mark, a quotation or a heading, then the word with its emphasis.
LINE = re.compile(
    r"^[ \t]*(?:(?:[-*+>]|#{1,6}|\d+[.)])[ \t]+)*"
    r"[*_`]*Action( Input)?[*_`]*:(?:\*+|`|_+(?=[ \t]))?[ \t]*(.*?)[ \t\r]*$",
    re.MULTILINE,
)
FENCE = re.compile(r"`{3,}[ \t]*\w*[ \t]*\r?\n|[`*]+")


def calls(completion):
    """[(name, arguments)] of an answer, arguments in a form to compare.

    Arguments are None unless exactly one input follows the name.
    """
    calls = []
    for line in LINE.finditer(completion):
        if not line[1]:
            calls.append((line[2].strip("*` \t").removeprefix(OPTIONAL), []))
        else:
            if not calls:
                calls.append(("", []))  # an input without a name is a wrong call
            calls[-1][1].append(_arguments(completion[line.start(2) :].lstrip(), line[2]))
    return [(name, inputs[0] if len(inputs) == 1 else None) for name, inputs in calls]


def _arguments(source, line=None):
    """The JSON value of ``source``, in a form to compare.

    line: the first line of ``source``; with it, the value that ``source`` begins with, also where
    that is marked as code.
    """
    try:
        if line is None:
            return comparable(decoded(source))
        code = FENCE.match(source)
        start = source[code.end() :].lstrip() if code else source
        return comparable(decoded_start(start))
    except (ValueError, RecursionError):
        return "text", (source if line is None else line).strip()


class ToolUse(PaperSkill):
    """The authors' files: 4,046 rows to train on, 97 to test."""

    name = "tooluse"
    description = (
        "Tool Use of the paper: calls of ToolAlpaca's tools (Apache-2.0), in the authors' files"
    )
    overlap_note = "most words of a prompt describe its tools, which several questions share"
    metrics = {"accuracy": accuracy, "accuracy_json": accuracy_json}
    see_thoughts = ("accuracy",)  # as the authors' script
    released = {
        "train": (
            "data/tooluse_data/train_data/data-00000-of-00001.arrow",
            "c6c3e9855e26558c8ef19e3bd9bfe34751166acc",
        ),
        "test": (
            "data/tooluse_data/eval_data/data-00000-of-00001.arrow",
            "3e95dd6bff58113a5a5f7d38628ce82a4638e54e",
        ),
    }

    def example(self, row, split, number, place):
        calls = row.get("golden_answer")
        good = (
            isinstance(calls, list)
            and calls
            and all(
                isinstance(c, dict)
                and isinstance(c.get("Action"), str)
                and c["Action"].removeprefix(OPTIONAL).strip()
                and isinstance(c.get("Action_Input"), str)
                for c in calls
            )
        )
        if not good:
            raise UserError(
                f"{place}: golden_answer",
                "must be a list of calls",
                '[{"Action": name, "Action_Input": JSON as a text}]',
            )
        response = row.get("golden_response")
        if response is not None or split == "train":
            if not (
                isinstance(response, list)
                and response
                and all(isinstance(r, str) for r in response)
                and "".join(response).strip()
            ):
                raise UserError(
                    f"{place}: golden_response",
                    "must be a list of texts",
                    "a train row shows a good response",
                )
            response = "\n".join(response)
        reference = [{"Action": c["Action"], "Action_Input": c["Action_Input"]} for c in calls]
        return Example(
            f"{split}/{number}",
            [{"role": "user", "content": text(row, ["prompt"], place)}],
            response,
            reference,
        )
