"""One seed for every purpose: each random draw is keyed by what it is for."""

import hashlib


def seed_for(*parts: object) -> int:
    """A 63-bit seed from any mixture of numbers and words that says what a draw is for."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
