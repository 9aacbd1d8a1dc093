"""Speed of the harness beside the tools that people use today (docs/explanation/speed.md).

python -m benchmarks.speed
"""
