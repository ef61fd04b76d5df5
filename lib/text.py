"""A real text that comes with the book: *Alice's Adventures in Wonderland* by Lewis Carroll (1865), public domain.

The edition is that of the Canterbury corpus (Arnold & Bell 1997), with Unix line ends: 148 kB of plain ASCII.
"""

import hashlib
from pathlib import Path

ALICE = Path(__file__).parent / "data" / "alice.txt"
# What a page prints depends on every letter; the sum also carries a change of the text into the pages' content keys.
_SHA256 = "99e53cbb0aeb274344a254733db996ca2d05d5fcd10fc0ca02d6966f2b2bc961"


def alice() -> str:
    """The whole book as one string.

    Raises:
        FileNotFoundError: the file is not beside this module.
        ValueError: it is not the text that the book's results were computed with.
    """
    content = ALICE.read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise ValueError(f"{ALICE} is not the text the book was computed with; restore it from the book's repository")
    return content.decode("ascii")
