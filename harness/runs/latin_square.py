"""Balanced sequences of skills: a Latin square, in which each skill stands once at each place."""


def latin_square(count: int) -> list[tuple[int, ...]]:
    """``count`` sequences of the numbers from 1 to ``count``; the first is 1, 2, ..., count.

    Williams 1949 (Aust. J. Sci. Res. A 2, 149). The rows are z + k (modulo count) for the zigzag
    z = 0, 1, count - 1, 2, count - 2, ...; the numbers are then named so that the first row counts
    up. For an even count each number also follows each other one exactly once. For an odd one no
    single square does that for all; the zigzag still varies what follows what more than shifts of
    one row would (of three numbers it is these shifts).
    """
    zigzag = [(place + 1) // 2 if place % 2 else -(place // 2) for place in range(count)]
    name_of = {value % count: place + 1 for place, value in enumerate(zigzag)}
    return [tuple(name_of[(value + row) % count] for value in zigzag) for row in range(count)]
