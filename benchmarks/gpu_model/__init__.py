"""The cost model of a GPU, for the paper's Tool Use run: what fits which card, and how long it
takes. ``python -m benchmarks.gpu_model``.
"""
