"""Whether another way around of a model's matrix products would be faster on this processor.

    python -m benchmarks.speed.products

GFLOP/s on one thread, of the processor's time. Of a linear map of W [outputs, inputs] on x [rows,
inputs] with the gradient g [rows, outputs] of its outputs, training computes x W^T, g W and g^T x:
each as it stands and with the operands the other way around, the first by packed weights too. Of
the few rows of sampling also: packed maps of one input, apart and as one map.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from harness.base.errors import Parser, reported
from harness.models.load import load_model
from harness.models.products import _can_pack, _fastest, _packed, has_bfloat16

ROWS = 1024  # of training and scoring
SAMPLED = (16, 64)
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
COPIES = 8  # so that weights come from memory, as those of another layer do

Works = dict[str, Callable[[], object]]


def training_works(outputs: int, inputs: int, dtype: torch.dtype) -> dict[str, Works]:
    """{product: {way: work}} of one linear map."""
    x, g = torch.randn(ROWS, inputs).to(dtype), torch.randn(ROWS, outputs).to(dtype)
    w = torch.randn(outputs, inputs).to(dtype)
    found: dict[str, Works] = {
        "x W^T": {
            "as it stands": lambda: x @ w.t(),
            "turned": lambda: (w @ x.t()).t().contiguous(),
        },
        "g W": {"as it stands": lambda: g @ w, "turned": lambda: (w.t() @ g.t()).t().contiguous()},
        "g^T x": {
            "as it stands": lambda: g.t() @ x,
            "turned": lambda: (x.t() @ g).t().contiguous(),
        },
    }
    if _can_pack():
        packed = torch.ops.mkldnn._reorder_linear_weight(w)
        found["x W^T"]["packed"] = partial(_packed, packed, None, x)
    return found


def joined_works(shapes: list[tuple[int, int]], rows: int, dtype: torch.dtype) -> Works:
    """Packed maps of one input of ``rows``, apart and as one map, some copies of each."""
    x = torch.randn(rows, shapes[0][1]).to(dtype)
    pack = torch.ops.mkldnn._reorder_linear_weight
    weights = [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(COPIES)]
    apart = [pack(weight) for of_one in weights for weight in of_one]
    joined = [pack(torch.cat(of_one)) for of_one in weights]
    return {
        "apart": lambda: [_packed(weight, None, x) for weight in apart],
        "joined": lambda: [_packed(weight, None, x) for weight in joined],
    }


@torch.no_grad()
def lines(shapes: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """Both tables in Markdown; shapes: of the linear maps of a model by the ends of their names."""
    dtypes = [torch.float32, *([torch.bfloat16] if has_bfloat16() else [])]
    yield "| dtype | product | weight | as it stands | turned | packed |"
    yield "|---|---|---|---:|---:|---:|"
    for dtype in dtypes:
        for shape in dict.fromkeys(shapes.values()):
            flop = 2 * ROWS * shape[0] * shape[1]
            for product, works in training_works(*shape, dtype).items():
                taken = _fastest(works)
                rates = [f"{flop / taken[way] / 1e9:.0f}" for way in taken]
                cells = [str(dtype).removeprefix("torch."), product, " x ".join(map(str, shape))]
                yield f"| {' | '.join(cells + rates + ['–'] * (3 - len(rates)))} |"
    if not _can_pack():
        return
    yield ""
    yield "| dtype | maps | rows | apart (us) | joined (us) | ratio |"
    yield "|---|---|---:|---:|---:|---:|"
    for dtype in dtypes:
        for names in JOINED:
            for rows in SAMPLED:
                taken = _fastest(joined_works([shapes[n] for n in names], rows, dtype))
                apart, joined = (taken[way] / COPIES * 1e6 for way in ("apart", "joined"))
                cells = [str(dtype).removeprefix("torch."), ", ".join(names), str(rows)]
                cells += [f"{apart:.0f}", f"{joined:.0f}", f"{apart / joined:.2f}"]
                yield f"| {' | '.join(cells)} |"


def main() -> None:
    Parser(description=__doc__).parse_args()
    with reported(None):
        model, _ = load_model("embedded", "float32", "cpu")
        shapes = {
            name.split(".")[-1]: (module.out_features, module.in_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        for line in lines(shapes):
            print(line, flush=True)


if __name__ == "__main__":
    main()
