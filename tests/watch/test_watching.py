"""What a person sees of run_sequence.py: bars, curves, plain lines, log, the last line alone."""

import io
import re
import sys

import pytest

import run_sequence
from harness.base.console import Progress, Screen
from harness.base.stopping import SIGNALS
from harness.watch.curves import Curves, panel
from harness.watch.log import LOG
from harness.watch.page import PageRedrawer
from tests.fabricate import METHODS, fabricate

FAST = {
    "methods": {"sft": {"learning_rate": 1e-3}},
    "budget": {"prompts": 12, "batch_size": 4},
    "evaluate": {"every_steps": 2},
    "retention": [
        {"task": "embedded_facts", "limit": 4},
        {"task": "embedded_instructions", "limit": 2},
    ],
}
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
TABLE = "a table\nreport: out/report/index.html"


class Screenful(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def command(monkeypatch, tmp_path, order_file, capsys):
    """A function that starts run_sequence.py here: (what it prints, what is on its stderr)."""
    path = order_file(**FAST)

    def start(*options, terminal=False):
        words = ["run_sequence.py", str(path), "--out", str(tmp_path / "out"), *options]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "100")
        with monkeypatch.context() as patch:
            if terminal:
                patch.setattr(sys, "stderr", Screenful())
            run_sequence.main()
            said = sys.stderr.getvalue() if terminal else None
        out, err = capsys.readouterr()
        return out, err if said is None else said

    return start


@pytest.fixture
def no_page(monkeypatch):
    monkeypatch.setattr(run_sequence, "report", lambda out, progress: TABLE)


def test_a_terminal_is_painted_and_left_clean(command, no_page, tmp_path, monkeypatch):
    shown = Screen.shown

    def at_once(self, progress):
        shown(self, progress)
        self.live.refresh()  # which the painting thread does twice a second

    monkeypatch.setattr(Screen, "shown", at_once)
    out, said = command("--live", terminal=True)
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", said)
    for what in (
        "imports PyTorch",
        "estimates the time that is left",
        r"order [━╸╺ ]+\d+% +\d:\d\d left",
        "run 1/1 sft-seed0",
        "stage 1/2 vowels",
        r"step 3/3, [\d.]+ (s/step|steps/s) loss",
        r"evaluates vowels test 4/4",
        r"evaluates retention 50%: embedded_facts \d+/\d+",
        "writes the weights",
        "score: nothing yet",
        r"vowels \d[.\d]*  digits",
    ):
        assert re.search(what, plain), what
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")  # the cursor is there again
    assert SIGNALS.tell is None and not isinstance(sys.stdout, Screenful)
    assert out == TABLE + "\n"
    log = (tmp_path / "out" / LOG).read_text().splitlines()
    assert all(re.match(STAMP, line) for line in log) and "\x1b" not in "".join(log)
    assert "reads " in log[0]
    assert log[-1].endswith("finished: 1 of 1 runs; report: out/report/index.html")


def test_elsewhere_there_are_plain_lines_and_a_log_that_goes_on(command, no_page, tmp_path):
    out, said = command()
    assert out == TABLE + "\n" and "\x1b" not in said
    assert all(re.match(STAMP, line) for line in said.splitlines())
    log = tmp_path / "out" / LOG
    first = log.read_text()
    assert first == said
    records = (tmp_path / "out/records.jsonl").read_bytes()
    out, said = command("--quiet")
    assert (out, said) == ("report: out/report/index.html\n", "")
    again = log.read_text()
    assert again.startswith(first) and again.count("finished: 1 of 1 runs") == 2
    assert (tmp_path / "out/records.jsonl").read_bytes() == records
    log.unlink()
    log.mkdir()  # a log that cannot be written stops nothing
    _, said = command("--live")
    assert "LogFile is off: IsADirectoryError" in said and "finished: 1 of 1 runs" in said
    assert "--live: there is no terminal to draw in" in said


def test_an_error_is_the_last_line_of_the_log(tmp_path):
    from harness.base.errors import UserError
    from harness.watch.log import LogFile

    for error in (UserError("order", "is wrong"), KeyboardInterrupt()):
        with pytest.raises(type(error)), Progress(stream=io.StringIO()) as progress:
            progress.listeners.append(LogFile())
            progress.say("before the folder is there")
            progress.opened(tmp_path, {})
            raise error
    lines = [re.sub(f"^{STAMP}", "", line) for line in (tmp_path / LOG).read_text().splitlines()]
    said = "before the folder is there"
    assert lines == [said, "error: order: is wrong", said, "ends by KeyboardInterrupt"]


def test_a_stop_is_told_below_the_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Screenful()
    with Progress(stream=stream) as progress:
        progress.show("step 1/2")
        assert SIGNALS.tell is not None
        SIGNALS.tell("stops after this step")
        (screen,) = progress.listeners
        screen.live.refresh()
        print("a library's line", file=sys.stderr)
    said = stream.getvalue()
    assert "stops after this step" in said and "a library's line" in said
    assert SIGNALS.tell is None


def test_curves_are_of_the_present_run_and_go_on_behind_a_kill():
    about = {"evaluate": {"split": "test"}, "skills": [{"name": "vowels", "metric": "token_f1"}]}
    record = {"kind": "skill", "name": "vowels", "split": "test", "metric": "token_f1"}
    curves = Curves()
    curves.opened(None, about)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.0), (3, 1.5)):  # the third step was lost
        curves.learned("sft-seed0", {"step": step, "loss": loss})
    others = [{**record, "split": "validation"}, {**record, "metric": "response_tokens"}]
    curves.measured("sft-seed0", [{**record, "step": 0, "value": 0.25}])
    curves.measured("sft-seed0", [*({**r, "step": 3, "value": 9.0} for r in others)])
    assert curves.losses == [(1, 3.0), (2, 2.0), (3, 1.5)]
    assert curves.scores == {"vowels": [(0, 0.25)]}
    text = panel("loss", {"loss": curves.losses}, 40).plain.split("\n")
    assert text[0] == "loss 1.5  " and len(text) == 10 and all(len(line) <= 40 for line in text)
    assert text[1].lstrip().startswith("3 ⠑") or text[1].startswith("  3 ")
    assert text[-1].split() == ["step", "1", "3"]
    curves.learned("grpo-seed0", {"step": 1, "reward": 0.5})
    assert (curves.name, curves.losses, curves.scores) == ("reward", [(1, 0.5)], {})


def test_the_page_is_drawn_after_a_stage_but_not_twice_at_the_end(monkeypatch, tmp_path):
    drawn, now = [], 0.0
    monkeypatch.setattr("harness.watch.page.subprocess.run", lambda *a, **k: drawn.append(now))
    monkeypatch.setattr("harness.watch.page.time.monotonic", lambda: now)
    page = PageRedrawer(tmp_path, ("sft-seed0", 3), Progress(stream=io.StringIO()))
    for now, stage in ((30.0, 0), (90.0, 1), (91.0, 2), (500.0, 3)):  # noqa: B007
        page.stage_over("sft-seed0", stage)
    assert drawn == [90.0]


def test_the_page_is_really_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr("harness.watch.page.PAUSE", 0.0)
    fabricate(tmp_path / "out", methods={"sft": METHODS["sft"]}, n=4, items=False)
    stream = io.StringIO()
    page = PageRedrawer(tmp_path / "out", ("sft-seed0", 3), Progress(every=0, stream=stream))
    page.due = 0.0
    page.stage_over("sft-seed0", 1)
    assert (tmp_path / "out/report/index.html").exists() and "draws the page" in stream.getvalue()
