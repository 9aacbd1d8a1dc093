"""How often 95% intervals hold the truth, and how often a difference is told, by simulation.

``python -m benchmarks.coverage`` draws runs whose truth is known and prints the tables of
docs/explanation/sensitivity.md; with ``--measured`` the one of what a folder's runs tell.
"""
