"""Which texts say the same: two lists, in many scripts, made by hand."""

import hashlib
import random
import re
import time

import pytest

from stillhouse.stages.text.reading import in_plain_characters, reading
from tests.support.questions import DIFFERENT, SAME
from tests.support.texts import golden_texts


@pytest.mark.parametrize(("left", "right"), SAME)
def test_one_question_typed_in_two_ways(left: str, right: str) -> None:
    assert reading(left) == reading(right)


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_two_questions_that_look_alike(left: str, right: str) -> None:
    assert reading(left) != reading(right)


def test_readings_are_what_they_were() -> None:
    """Pinned before reading was made faster: hashes of readings are stored, and those of two rules do not compare."""
    digest = hashlib.blake2b(digest_size=16)
    for text in golden_texts():
        digest.update(reading(text).encode() + b"\0")
    assert digest.hexdigest() == "1351c41bcebdd5fbc1951461d5fcc98c"


def test_a_reading_reads_as_itself_where_there_is_no_code() -> None:
    for text in [text for pair in SAME for text in pair]:
        assert reading(reading(text)) == reading(text)


def test_a_reading_is_empty_only_if_there_is_nothing() -> None:
    for text in ("", " \n\t", "\u200b", "\ufeff \u3000"):
        assert reading(text) == ""
    for text in ("?", "...", "🙂", "。", "¿?", "!", "\u0301"):
        assert reading(text) != ""


def test_it_holds_no_empty_line_and_no_space_at_its_ends() -> None:
    """So that turns can be joined by an empty line."""
    for text in ("a\n\n\nb", "  a\n  b\n\n    c  \n", "```\n\nx\n\n```", "\n\na\r\n\r\n\tb", "? \n ?\n\n ?"):
        said = reading(text)
        assert "\n\n" not in said
        assert said == said.strip()


def test_joiners_at_an_edge_are_left_out() -> None:
    """A run of them stays between two characters that are no white space."""
    rng = random.Random(1)
    for _ in range(2000):
        text = "".join(rng.choice("a \u200c\u200d") for _ in range(rng.randrange(12)))
        pieces = re.split("([\u200c\u200d]+)", text)  # every second one is a run of joiners
        kept = [
            piece if i % 2 == 0 or (pieces[i - 1][-1:].strip() and pieces[i + 1][:1].strip()) else ""
            for i, piece in enumerate(pieces)
        ]
        assert in_plain_characters(text) == "".join(kept), ascii(text)


def test_long_texts_take_time_in_proportion() -> None:
    rng = random.Random(0)
    for alphabet in ("ab ?!.,", "())\"'.?! ", "写。 a!?", ".!?" * 3 + "\n ", "aB \n"):
        text = "".join(rng.choice(alphabet) for _ in range(400_000))
        started = time.process_time()
        reading(text)
        assert time.process_time() - started < 10, alphabet
    for text in (
        "?" * 400_000,
        "a" + "?" * 400_000,
        "(" * 400_000 + "?",
        "a " * 200_000,
        "写" * 400_000,
        "\n " * 200_000,
        "a" + "\u200d" * 100_000 + "b",
    ):
        started = time.process_time()
        reading(text)
        assert time.process_time() - started < 10, text[:3]
