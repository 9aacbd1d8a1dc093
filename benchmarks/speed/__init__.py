"""Speed of the harness beside the tools that people use today: ``python -m benchmarks.speed``; see
docs/speed.md.
"""
