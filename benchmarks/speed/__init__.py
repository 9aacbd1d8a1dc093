"""Speed of the harness beside the tools that people use today (docs/speed.md).

python -m benchmarks.speed
"""
