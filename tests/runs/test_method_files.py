"""A method in a file of the user's own."""

import pytest

from harness.runs.reading import read_order
from tests.runs.refusals import refused


@pytest.mark.parametrize(
    "code, said",
    [
        ("raise RuntimeError('two\\nlines')", ["cannot be imported (RuntimeError: two lines)"]),
        ("def broken(:", ["cannot be imported (SyntaxError: "]),
        ("import sys\nsys.exit(0)", ["cannot be imported (SystemExit: 0)"]),
        ("x = 1", ["defines 0 methods", "one class on top of Method is wanted"]),
        (
            "from harness.learning.method import Method\n"
            "class A(Method): pass\nclass B(Method): pass",
            ["defines 2 methods", "one class"],
        ),
    ],
)
def test_method_file(code, said, order_file, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    line = refused(order_file(methods={"mine": {"file": "mine.py"}}))
    assert "methods.mine: " in line and "mine.py" in line
    for part in said:
        assert part in line, line


def test_a_method_file_is_one_module_for_all_its_labels(order_file, tmp_path):
    """Another file of that name is another module."""
    code = "from harness.learning.method import Method\nclass Mine(Method): pass\n"
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "mine.py").write_text(code)
    order = read_order(
        order_file(
            methods={
                "a": {"file": "mine.py"},
                "b": {"file": "mine.py"},
                "c": {"file": "other/mine.py"},
            },
            grid={"a": {"learning_rate": [1e-4, 1e-3]}},
        )
    )
    made = [spec.cls(spec.config) for spec in order.methods.values()]
    assert len({type(m) for m in made}) == 2 and len(made) == 4
