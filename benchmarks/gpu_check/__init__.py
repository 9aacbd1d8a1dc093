"""One command that proves the path on a GPU: ``python -m benchmarks.gpu_check``.

Each part is a module with a function ``run(bench)``. It wants PyTorch, transformers and accelerate,
and no network; parts that want more are skipped where it is missing. docs/how-to/gpus.md says what
each part means.
"""
