"""Sampling: the ``Sampler`` protocol, its two implementations, and their settings."""
