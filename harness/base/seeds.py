"""One seed for every purpose: all random draws are keyed by what they are for."""

import hashlib


def seed_for(*parts):
    """A 63-bit seed from any mixture of numbers and words: every random draw is keyed by what it is
    for.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
