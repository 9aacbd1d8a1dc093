"""Tries to break what a results folder promises: kills, damaged files, orders with mistakes.

``python -m benchmarks.torture`` runs three campaigns on a tiny random model and prints what they
found. docs/explanation/sound.md has figures.
"""
