"""lib.text: the text is the one that the stored results were computed with."""

import pytest

from lib import text


def test_it_is_alice():
    book = text.alice()
    assert "Down the Rabbit-Hole" in book
    assert book.count("Alice") == 395
    assert book.isascii()
    assert "\r" not in book


def test_another_text_is_refused(tmp_path, monkeypatch):
    other = tmp_path / "alice.txt"
    other.write_text("Through the Looking-Glass")
    monkeypatch.setattr(text, "ALICE", other)
    with pytest.raises(ValueError, match="restore it"):
        text.alice()
