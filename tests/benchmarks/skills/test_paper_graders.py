"""The graders of the paper's skills against implementations of their own, on thousands of awkward
answers.

The implementations here share no code with the graders: they read characters one by one, use no
regular expressions and parse JSON themselves.
"""

import itertools
import json
import random
from collections import Counter
from contextlib import suppress

import pytest

from benchmarks.skills import science, tooluse
from harness.skills.graders import answer_tag
from harness.skills.registry import get_skill

# ---- an implementation of its own ---------------------------------------------------------------

NAN = float("nan")


class Wrong(Exception):
    """Not JSON."""


def parse_json(text, at=0, constants=True):
    """(value, end) of the JSON value at ``at``. constants: NaN and Infinity are allowed, and
    of a key that stands twice the last value counts, as Python's json does.
    """

    def blank(i):
        while i < len(text) and text[i] in " \t\n\r":
            i += 1
        return i

    def digits(i):
        while i < len(text) and text[i] in "0123456789":
            i += 1
        return i

    words = {"true": True, "false": False, "null": None}
    if constants:
        words |= {"NaN": NAN, "Infinity": float("inf"), "-Infinity": float("-inf")}
    for word, value in words.items():
        if text.startswith(word, at):
            return value, at + len(word)
    here = text[at] if at < len(text) else ""
    if here == '"':
        return parse_string(text, at + 1)
    if here and here in "-0123456789":
        start = at + (here == "-")
        end = digits(start)
        if end == start:
            raise Wrong
        if text[start] == "0":
            end = start + 1
        whole = True
        if end < len(text) and text[end] == "." and digits(end + 1) > end + 1:
            end, whole = digits(end + 1), False
        if end < len(text) and text[end] in "eE":
            sign = end + 1 + (end + 1 < len(text) and text[end + 1] in "+-")
            if digits(sign) > sign:
                end, whole = digits(sign), False
        return (int if whole else float)(text[at:end]), end
    if here == "[" or here == "{":
        close, items, i = {"[": "]", "{": "}"}[here], [], blank(at + 1)
        if i < len(text) and text[i] == close:
            return ([] if here == "[" else {}), i + 1
        while True:
            if here == "{":
                if text[i : i + 1] != '"':
                    raise Wrong
                key, i = parse_string(text, i + 1)
                i = blank(i)
                if text[i : i + 1] != ":":
                    raise Wrong
                value, i = parse_json(text, blank(i + 1), constants)
                items.append((key, value))
            else:
                value, i = parse_json(text, i, constants)
                items.append(value)
            i = blank(i)
            if text[i : i + 1] == close:
                if here == "{" and not constants and len(dict(items)) < len(items):
                    raise Wrong
                return (items if here == "[" else dict(items)), i + 1
            if text[i : i + 1] != ",":
                raise Wrong
            i = blank(i + 1)
    raise Wrong


def parse_string(text, i):
    out = []
    while True:
        c = text[i : i + 1]
        if c == "" or c < " ":
            raise Wrong
        if c == '"':
            return "".join(out).encode("utf-16", "surrogatepass").decode(
                "utf-16", "surrogatepass"
            ), i + 1
        if c == "\\":
            e = text[i + 1 : i + 2]
            if e == "u":
                code = text[i + 2 : i + 6]
                if len(code) < 4 or any(x not in "0123456789abcdefABCDEF" for x in code):
                    raise Wrong
                out.append(chr(int(code, 16)))
                i += 6
            elif e and e in '"\\/bfnrt':
                out.append(dict(zip('"\\/bfnrt', '"\\/\b\f\n\r\t', strict=True))[e])
                i += 2
            else:
                raise Wrong
        else:
            out.append(c)
            i += 1


def whole_json(text, constants=True):
    stripped = text.strip(" \t\n\r")
    value, end = parse_json(stripped, 0, constants)
    if end < len(stripped):
        raise Wrong
    return value


def skip_blanks(text, i):
    while i < len(text) and text[i].isspace():
        i += 1
    return i


def naive_accuracy(completion, reference):
    """The paper's Tool Use metric as its description says it."""
    names, i = [], 0
    while (i := completion.find("Action:", i)) >= 0:
        start = end = skip_blanks(completion, i + 7)
        while end < len(completion) and (completion[end].isalnum() or completion[end] == "_"):
            end += 1
        if end > start:
            names.append(completion[start:end])
        i = end if end > start else i + 1
    given, i = {}, 0
    while (i := completion.find("Action Input:", i)) >= 0:
        start = skip_blanks(completion, i + 13)
        end = completion.find("}", start)
        if completion[start : start + 1] != "{" or end < 0:
            i += 1
            continue
        with suppress(Wrong):
            given |= whole_json(completion[start : end + 1])
        i = end + 1
    wanted = {}
    for call in reference:
        try:
            value = whole_json(call["Action_Input"])
        except Wrong:
            continue
        if isinstance(value, dict):
            wanted |= value
    return float(sorted(names) == sorted(c["Action"] for c in reference) and given == wanted)


def same(a, b):
    """JSON equality: true is not 1, 1 is 1.0, objects have no order."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def naive_accuracy_json(completion, reference):
    """The corrected Tool Use metric: calls are struck off one by one."""
    made, at = [], 0
    for line in completion.split("\n"):
        bare = line.lstrip(" \t")
        for word in ("Action", "Action Input"):  # the emphasis of the answers below
            if bare.startswith(f"**{word}:**"):
                bare = f"{word}:{bare[len(word) + 5 :]}"
        if bare.startswith("Action:"):
            made.append([bare[7:].strip(" \t*`").rstrip(" \t\r*`"), []])
        elif bare.startswith("Action Input:"):
            made = made or [[None, []]]
            start = skip_blanks(completion, at + len(line) - len(bare) + 13)
            if completion.startswith("```json\n", start):
                start = skip_blanks(completion, start + 8)
            try:
                made[-1][1].append(("json", parse_json(completion, start, constants=False)[0]))
            except Wrong:
                made[-1][1].append(("text", bare[13:].strip()))
        at += len(line) + 1
    wanted = []
    for call in reference:
        try:
            arguments = ("json", whole_json(call["Action_Input"], constants=False))
        except Wrong:
            arguments = ("text", call["Action_Input"].strip())
        optional = call["Action"].startswith("[Optional]")
        wanted.append((optional, call["Action"][10:] if optional else call["Action"], arguments))
    # what must be there first, so that an equal optional one is the one left over
    wanted.sort(key=lambda call: call[0])
    for name, inputs in made:
        if name is not None and name.startswith("[Optional]"):
            name = name[10:]
        for i, (_, wanted_name, (kind, value)) in enumerate(wanted):
            if (
                name == wanted_name
                and len(inputs) == 1
                and inputs[0][0] == kind
                and same(inputs[0][1], value)
            ):
                del wanted[i]
                break
        else:
            return 0.0
    return float(all(optional for optional, _, _ in wanted))


def naive_tag(completion, reference):
    """The text of the last pair of tags, pairs found from the left."""
    last, i = None, 0
    while (i := completion.find("<answer>", i)) >= 0 and (
        end := completion.find("</answer>", i + 8)
    ) >= 0:
        last, i = completion[i + 8 : end].strip(), end + 9
    return float(last == reference)


def last_answer(text):
    text = text[text.rfind("<answer>") + 8 :] if "<answer>" in text else text
    return (text[: text.index("</answer>")] if "</answer>" in text else text).strip()


def naive_letter(completion, reference):
    text, kept = completion, ""
    while text:
        if not text.startswith("<reasoning>"):
            kept, text = kept + text[0], text[1:]
        else:
            end = text.find("</reasoning>")
            text = text[end + 12 :] if end >= 0 else ""
    if "<answer>" not in kept:
        return 0.0
    answer = last_answer(kept)
    while answer and (answer[0].isspace() or answer[0] in "([*"):
        answer = answer[1:]
    while answer and (answer[-1].isspace() or answer[-1] in ")]*.:"):
        answer = answer[:-1]
    return float(len(answer) == 1 and answer in "ABCDabcd" and answer.upper() == reference)


def words(text):
    """SQuAD's words of a text, and with them the last one, and an A behind another word, whatever
    they are; a point between two digits belongs to a number.
    """
    found, word = [], ""
    for place, c in enumerate(text + " "):
        if c == "." and text[place - 1 : place].isdigit() and text[place + 1 : place + 2].isdigit():
            word += c
        elif c.isspace() or c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~":
            if word:
                found.append(word)
            word = ""
        else:
            word += c
    kept = found[-1:]
    for number in range(len(found) - 2, -1, -1):
        if found[number].lower() not in ("a", "an", "the") or (found[number] == "A" and number):
            kept.insert(0, found[number])
    return [word.casefold() for word in kept]


def naive_f1(completion, answer):
    given, wanted = words(completion), words(answer)
    left, same = list(wanted), 0
    for word in given:
        if word in left:
            left.remove(word)
            same += 1
    if not same:
        return 0.0
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


# ---- awkward answers ----------------------------------------------------------------------------

NAMES = [
    "getWeather",
    "get_time",
    "größe",
    "search2",
    "getWeather2",
    "a.b",
    "Action",
    "数据",
    "[Optional]getWeather",
    "set-alarm",
]
TEXTS = [
    "Oslo",
    "",
    "a}b",
    "{x",
    'say "hi"',
    "it's",
    "Zürich ☂ 😀",
    "back\\slash",
    "line\nbreak",
    "Action: getWeather",
    "[1]",
    "\u2028",
    "true",
    "1",
]


def some_value(rng, depth=0):
    kind = rng.random()
    if kind < 0.4 or depth > 2:
        return rng.choice(TEXTS)
    if kind < 0.75:
        return rng.choice([0, 1, -3, 1.0, 2.5, 1e3, 10**20, True, False, None])
    if kind < 0.87:
        return [some_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice("abc"): some_value(rng, depth + 1) for _ in range(rng.randrange(3))}


def arguments(rng):
    return {
        rng.choice(["city", "days", "a", "unité", "x y"]): some_value(rng)
        for _ in range(rng.choice([0, 1, 1, 2, 3]))
    }


def written(rng, value):
    """A JSON text of ``value`` in some style: the same value, to the authors in all of them."""
    style = rng.random()
    if style < 0.5:
        return json.dumps(value, ensure_ascii=style < 0.25)
    if style < 0.7:
        return json.dumps(value, indent=rng.choice([1, 4]))
    if style < 0.85:
        return json.dumps(value, separators=(" , ", " : "))
    pairs = list(value.items())
    rng.shuffle(pairs)  # keys in another order, one of them twice: the last counts for the authors
    rows = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in pairs]
    return "{" + ", ".join([f"{json.dumps(k)}: 5" for k, _ in pairs[:1]] + rows) + "}"


def damaged(rng, text):
    """A JSON text that is broken, or that says something else, or nearly nothing else."""
    at = rng.randrange(len(text) + 1)
    return rng.choice(
        [
            lambda: text.replace('"', "'"),
            lambda: text[:at],
            lambda: text[at:],
            lambda: text + "}",
            lambda: text[:-1] + ",}",
            lambda: text.replace('"', "“", 1),
            lambda: text.replace("1", "true", 1),
            lambda: text.replace("true", "1"),
            lambda: text.replace("1", "1.0", 1),
            lambda: text.replace("1", "NaN"),
            lambda: text.replace("1", "01", 1),
            lambda: "{" + text + "}",
            lambda: "[" + text + "]",
            lambda: text[:at] + "\n" + text[at:],
            lambda: text[:at] + "\t" + text[at:],
            lambda: text[:at] + "\\" + text[at:],
            lambda: text + " and so on",
            lambda: f"```json\n{text}\n```",
            lambda: "",
            lambda: "none",
            lambda: text.replace("{", '{"a": {"b": 1}, ', 1),
            lambda: text + text,
            lambda: text.replace('"a"', '"\\u0061"'),
            lambda: text.replace("2.5", "25e-1"),
            lambda: text.replace("1", "1e999", 1),
            lambda: text.replace("1", "-", 1),
        ]
    )()


def call_text(rng, name, source):
    if rng.random() < 0.6:
        return f"Action: {name}\nAction Input: {source}"
    return rng.choice(
        [
            f"Action:{name}\nAction Input:{source}",
            f"  Action: {name} \n\tAction Input:\n{source}",
            f"Action: {name}\r\nAction Input: {source}\r\n",
            f"Action: {name} Action Input: {source}",
            f"Action:\n{name}\nAction Input: {source}",
            f"Action Input: {source}\nAction: {name}",
            f"action: {name}\naction input: {source}",
            f"**Action:** {name}\n**Action Input:** {source}",
            f"Action: {name}",
            f"Action Input: {source}",
            f"Action: {name}()\nAction Input: {source}",
            f"Action: {name}\nAction Input: {source}\nAction Input: {source}",
            f"Action:\u00a0{name}\nAction Input:\u2003{source}",
            f"Thought: Action: {name}\nAction Input: {source}",
            f"Action: \nAction Input: {source}",
            f"Action: {name}\nThought: so\nAction Input: Action Input: {source}",
            f"Action: {name}\n\n\nAction Input: \n\n {source}",
        ]
    )


def tool_cases(count):
    """Pairs of an answer and a reference; about half of the answers begin as right ones."""
    rng = random.Random(7)
    for _ in range(count):
        wanted = [
            (rng.choice(NAMES if rng.random() < 0.3 else NAMES[:4]), arguments(rng))
            for _ in range(rng.choice([1, 1, 1, 2, 3]))
        ]
        if rng.random() < 0.1:
            wanted.append(wanted[0])
        reference = [
            {"Action": n, "Action_Input": json.dumps(a, ensure_ascii=rng.random() < 0.5)}
            for n, a in wanted
        ]
        if rng.random() < 0.15:
            reference[0]["Action_Input"] = damaged(rng, reference[0]["Action_Input"])
        made = [[n, written(rng, a)] for n, a in wanted]
        if rng.random() < 0.2:
            rng.shuffle(made)
        if rng.random() < 0.1:
            made.pop(rng.randrange(len(made)))
        if rng.random() < 0.1:
            made.append([rng.choice(NAMES), written(rng, arguments(rng))])
        if made and rng.random() < 0.3:
            call = rng.choice(made)
            call[1] = damaged(rng, call[1])
        if made and rng.random() < 0.1:
            rng.choice(made)[0] = rng.choice(NAMES)
        if len(made) > 1 and rng.random() < 0.1:
            made[0][1], made[1][1] = made[1][1], made[0][1]
        plain = rng.random() < 0.5
        answer = rng.choice(["\n", "\n\n", "\nThought: and now\n"]).join(
            f"Action: {n}\nAction Input: {s}" if plain else call_text(rng, n, s) for n, s in made
        )
        if rng.random() < 0.25:
            other = call_text(rng, rng.choice(NAMES[:4]), written(rng, arguments(rng)))
            answer = rng.choice(
                [
                    f"Thought: I need a tool.\n{answer}",
                    f"{other}\n{answer}",
                    f"<tool>{answer}</tool>",
                    f"{answer}\n<tool>{other}",
                    f"<tool>\n{answer}",
                    f"{answer}\nObservation: done }}",
                    f"{{ {answer} }}",
                    answer[: rng.randrange(len(answer) + 1)],
                    answer + "\n" + answer,
                    answer.replace(":", "："),
                    "",
                ]
            )
        yield answer, reference


def test_tool_use_graders_agree():
    """6,000 answers: both graders give what the implementations here give; both say yes and no
    often, and they differ often.
    """
    seen = Counter()
    for answer, reference in tool_cases(6000):
        found = tooluse.accuracy(answer, reference), tooluse.accuracy_json(answer, reference)
        assert found == (
            naive_accuracy(answer, reference),
            naive_accuracy_json(answer, reference),
        ), (answer, reference)
        seen[found] += 1
    assert min(seen[pair] for pair in itertools.product((0.0, 1.0), repeat=2)) > 100, seen


@pytest.mark.parametrize(
    "given, wanted, paper, corrected",
    [
        # ends at the first }
        ('Action: f\nAction Input: {"a": {"b": 1}}', [("f", '{"a": {"b": 1}}')], 0, 1),
        # so it counts as no arguments
        ('Action: f\nAction Input: {"a": {"b": 1}}', [("f", "{}")], 1, 0),
        (
            'Action: f\nAction Input: {"b": 2}\nAction: g\nAction Input: {"a": 1}',
            [("f", '{"a": 1}'), ("g", '{"b": 2}')],
            1,
            0,
        ),
        # overwritten
        (
            'Action: f\nAction Input: {"a": 1}\nAction: f\nAction Input: {"a": 2}',
            [("f", '{"a": 2}'), ("f", '{"a": 2}')],
            1,
            0,
        ),
        # order is free
        (
            'Action: g\nAction Input: {}\nAction: f\nAction Input: {"a": 1}',
            [("f", '{"a": 1}'), ("g", "{}")],
            1,
            1,
        ),
        ('Action: f\nAction Input: {"a": true}', [("f", '{"a": 1}')], 1, 0),
        ('Action: f\nAction Input: {"a": 1.0}', [("f", '{"a": 1}')], 1, 1),
        ("Thought: Action: none fits\nAction: f\nAction Input: {}", [("f", "{}")], 0, 1),
        ("Action: f\nAction Input: {'a': 1}", [("f", "{}")], 1, 0),  # no JSON: skipped
        # a reference that is no JSON counts as empty, or as its text
        ("Action: f\nAction Input: Oslo", [("f", "Oslo")], 1, 1),
        ("Action: f\nAction Input: Bergen", [("f", "Oslo")], 1, 0),
        ('Action: f\nAction Input: {"a": 1}', [("f", '{"a": 1}'), ("[Optional]g", "{}")], 0, 1),
        (
            'Action: f\nAction Input: {"a": 1}\nAction: g\nAction Input: {}',
            [("f", '{"a": 1}'), ("[Optional]g", "{}")],
            0,
            1,
        ),
        ("Action: a.b\nAction Input: {}", [("a.b", "{}")], 0, 1),  # \w+ ends at the full stop
        ("Action: f\nAction Input: {}\nAction: f\nAction Input: {}", [("f", "{}")], 0, 0),
        ("", [("f", "{}")], 0, 0),
    ],
)
def test_what_the_tool_use_graders_say(given, wanted, paper, corrected):
    """The quirks that docs/reference/skills/tooluse.md lists, one by one."""
    reference = [{"Action": name, "Action_Input": source} for name, source in wanted]
    assert (tooluse.accuracy(given, reference), tooluse.accuracy_json(given, reference)) == (
        paper,
        corrected,
    )


def test_json_that_python_cannot_take():
    """Nested too deeply, or with a number too long, it counts as no JSON; the authors' code would
    stop there.
    """
    for source in ("[" * 5000 + "]" * 5000, "9" * 5000):
        answer = f'Action: f\nAction Input: {{"a": {source}}}'
        assert tooluse.accuracy(answer, [{"Action": "f", "Action_Input": "{}"}]) == 1
        assert tooluse.accuracy_json(answer, [{"Action": "f", "Action_Input": "{}"}]) == 0


def science_cases(count):
    rng = random.Random(11)
    pieces = [
        "<answer>",
        "</answer>",
        "<reasoning>",
        "</reasoning>",
        "\n",
        " ",
        "A",
        "B",
        "C",
        "D",
        "a",
        "(B)",
        "**C**",
        "A.",
        "B:",
        "d)",
        "A or B",
        "A: 2.5",
        "Ä",
        "Α",
        "А",
        "<ANSWER>",
        "< answer>",
        "the",
        "\u00a0",
        "&lt;answer&gt;",
        "[D]",
        "BB",
        "",
    ]
    for _ in range(count):
        answer, letter = rng.choice("ABCD"), rng.choice("ABCD")
        form = rng.random()
        if form < 0.4:
            text = "".join(rng.choice(pieces) for _ in range(rng.randrange(9)))
        else:
            said = answer if rng.random() < 0.5 else rng.choice(pieces[8:])
            before = rng.choice(
                [
                    "",
                    "<reasoning>\nwhy\n</reasoning>\n",
                    f"<reasoning>maybe <answer>{letter}</answer>",
                    "<reasoning>",
                    f"is it <answer>{letter}</answer>?\n",
                    "<answer>",
                    f"<answer>{letter}</answer> no: ",
                    f"<reasoning>maybe <answer>{letter}</answer></reasoning>",
                ]
            )
            after = rng.choice(
                [
                    "",
                    "",
                    "\n",
                    f"<answer>{letter}</answer>",
                    "<answer>",
                    "</answer>",
                    "</reasoning>",
                    f" not {letter}",
                    f"<reasoning><answer>{letter}</answer></reasoning>",
                ]
            )
            gap = rng.choice(["", "\n", "\n\n ", "\u2003"])
            tag = rng.choice(["<answer>", "<answer>", "<answer>", "<Answer>", ""])
            text = f"{before}{tag}{gap}{said}{gap}"
            text += (
                rng.choice(["</answer>", "</answer>", "</answer>", "", "</answer", "<answer>"])
                + after
            )
        yield text, answer


def test_science_graders_agree():
    """6,000 answers with missing, repeated and nested tags, letters in other alphabets, and answers
    inside the reasoning.
    """
    seen = Counter()
    for text, answer in science_cases(6000):
        found = (
            answer_tag(text, answer),
            science.accuracy_released(text, answer),
            science.accuracy_letter(text, answer),
        )
        assert found == (
            naive_tag(text, answer),
            float(last_answer(text) == answer),
            naive_letter(text, answer),
        ), (text, answer)
        seen[found] += 1
    # that one wants reasoning cut off inside its answer
    often = set(itertools.product((0.0, 1.0), repeat=3)) - {(1.0, 0.0, 1.0)}
    assert min(seen[triple] for triple in often) > 50, seen


@pytest.mark.parametrize(
    "text, paper, released, corrected",
    [
        ("<reasoning>so</reasoning>\n<answer>\nA\n</answer>", 1, 1, 1),
        ("A", 0, 1, 0),
        ("<answer>A", 0, 1, 1),
        ("A</answer>", 0, 1, 0),
        ("<answer>(a)</answer>", 0, 0, 1),
        ("<answer>A. 2.5</answer>", 0, 0, 0),
        ("<answer>B</answer><answer>A</answer>", 1, 1, 1),
        ("<answer>A</answer><answer>B</answer>", 0, 0, 0),
        ("<answer><answer>A</answer>", 0, 1, 1),
        ("<answer>A</answer><answer>", 1, 0, 0),
        ("<reasoning><answer>A</answer></reasoning>", 1, 1, 0),
        ("<reasoning><answer>A</answer>", 1, 1, 0),
        ("<answer>A or B</answer>", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_what_the_science_graders_say(text, paper, released, corrected):
    """The differences that docs/reference/skills/science.md lists, one by one."""
    assert tuple(f(text, "A") for f in list(get_skill("science").metrics.values())[:3]) == (
        paper,
        released,
        corrected,
    )


@pytest.mark.parametrize("name", ["medical", "wiki"])
def test_graders_without_a_judge_agree(name):
    """3,000 pairs of texts: articles, punctuation, repeated words, other alphabets, none at all."""
    metrics = get_skill(name).metrics
    # never the names of judged numbers
    assert list(metrics) == ["contains", "normalised_match", "token_f1"]
    rng = random.Random(13)
    pieces = [
        "the",
        "The",
        "a",
        "A",
        "an",
        "lung",
        "Lung",
        "lung-",
        "(lung)",
        "HIDA",
        "scan",
        "scan.",
        "β-blocker",
        "ΣΑΣ",
        "ß",
        "\u00a0",
        "",
        "...",
        "7",
        "7.5",
    ]
    seen = Counter()
    for _ in range(3000):
        answer = " ".join(rng.choice(pieces) for _ in range(rng.randrange(6)))
        completion = rng.choice(
            [
                answer,
                answer.upper(),
                answer + "!",
                " ".join(rng.choice(pieces) for _ in range(rng.randrange(9))),
            ]
        )
        for reference in (answer, {"question": "What is it?", "answer": answer}):
            inside, match, f1 = (f(completion, reference) for f in metrics.values())
            found, wanted = words(completion), words(answer)
            windows = [found[i : i + len(wanted)] for i in range(len(found))]
            assert inside == float(wanted != [] and wanted in windows), (completion, answer)
            assert match == float(found == wanted != []), (completion, answer)
            assert f1 == pytest.approx(naive_f1(completion, answer), abs=1e-12), (
                completion,
                answer,
            )
        seen[match, 0 < f1 < 1] += 1
    assert seen[0, True] > 200 and seen[1, False] > 200 and seen[0, False] > 200
