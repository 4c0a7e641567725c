"""The readings of many texts at once: exactly what `text.reading` gives for each, in a third of the time.

All texts lie in one array of characters, in which white space, words and lines are found by arithmetic on the whole of
it. What is rare and takes a rule of its own is left to the functions of `text.reading`: a word (one letter, an acronym,
something beside an operator), a line (words run together) or a text (Han, kana, Thai).

Shape legend: T texts, L lines that are not empty, W words, of all texts; E words among them that may end a sentence.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stillhouse.stages.text.characters import CharacterTable, together
from stillhouse.stages.text.reading import (
    BRACKETS,
    CLOSERS,
    END_OF_WORD,
    ENDS,
    OPERATORS,
    RUN_TOGETHER,
    UNSPACED,
    in_plain_characters,
    is_word,
    prose,
    said,
    without_end,
)

AT_ONCE = 1 << 18
"""Characters of the texts that are read together, or one longer text: they and what is known of them stay in a core's
cache."""
_STEPS = 6
"""How far a loop looks around a word, a character at a time; one with more brackets or dots is looked at by itself."""
_BETWEEN = "\x1e"  # between readings: it ends a line, so no reading holds it

# What is asked of every character: the low 8 bits. Of characters at the edges of words: the others.
_SPACE, _BREAK, _CAPITAL, _PAUSE, _LETTER, _OTHER, _DOT = (1 << bit for bit in range(7))
_END, _CLOSER, _BRACKET, _BARE, _OPERATOR, _UPPER, _DIGIT, _ALPHA, _ALNUM, _SAYS, _MARK, _SIGN, _SMALL, _QUESTION = (
    1 << bit for bit in range(8, 22)
)
_END_CHARACTER = re.compile(f"[{ENDS}]")


def _properties(char: str) -> int:
    kind = unicodedata.category(char)[0]
    found = {
        _SPACE: char.isspace(),
        _BREAK: char in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029",
        _CAPITAL: char != char.lower(),
        _PAUSE: char in ",;!?:",
        _LETTER: char.isalnum() and not char.isdecimal(),
        _OTHER: char not in "'-" and kind not in "LM",
        _DOT: char == ".",
        _END: _END_CHARACTER.match(char) is not None,
        _CLOSER: char in CLOSERS,
        _BRACKET: char in BRACKETS,
        _BARE: char in BRACKETS + ".,;:!?",
        _OPERATOR: char in OPERATORS,
        _SIGN: char in OPERATORS and char not in "-&",  # an operator by itself
        _SMALL: char.islower() or (char.istitle() and not char.isupper()),
        _UPPER: char.isupper(),
        _DIGIT: char.isdigit(),
        _ALPHA: char.isalpha(),
        _ALNUM: char.isalnum(),
        _QUESTION: char in "?!;:",
        _MARK: char in ".!?:",
        _SAYS: char in "+#%" or kind in "LMNS",
    }
    return sum(bit for bit, holds in found.items() if holds)


_PROPERTIES = CharacterTable(_properties)


@cache
def _holding(properties: int) -> NDArray[np.bool_]:
    """[256]: whether each of the first characters has one of the properties."""
    holds: NDArray[np.bool_] = (_PROPERTIES.take(np.arange(256, dtype=np.uint8)) & np.uint32(properties)) != 0
    return holds


_LOWER = CharacterTable(lambda char: ord(char.lower()) if len(char.lower()) == 1 else ord(char))
_DROPPED = 0xFF  # what stands for a character that is left out; no text in ASCII holds it
_WITHOUT_SPACE = bytes(_DROPPED if chr(code).isspace() else code for code in range(256))
# Lower case of the last two depends on what is beside them, or is longer.
_BY_ITSELF = re.compile(rf"[\u3001\u3002{UNSPACED}\u03a3\u0130]")


def readings(texts: Sequence[str]) -> list[str]:
    """`[reading(text) for text in texts]`."""
    plain = [text if text.isascii() else in_plain_characters(text) for text in texts]
    found, of_ascii, other = [""] * len(texts), [], []
    for number, text in enumerate(plain):
        if text.isascii():
            of_ascii.append(number)
        elif _BY_ITSELF.search(text):
            found[number] = said(text)
        else:
            other.append(number)
    for group in (of_ascii, other):
        for numbers in together(group, plain, AT_ONCE):
            for number, what in zip(numbers, _Texts([plain[i] for i in numbers]).readings(), strict=True):
                found[number] = what
    return found


class _Texts:
    """Texts as one array of characters, with a line break on each side of each; and what is kept of it."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.joined = "\n" + "\n".join(texts) + "\n\n"
        length_T = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
        self.begin_T = np.cumsum(length_T) - length_T + 1
        self.dropped = _DROPPED if self.joined.isascii() else 0xFFFFFFFF
        if self.joined.isascii():
            data = self.joined.encode("ascii")
            self.code = np.frombuffer(data, np.uint8)
            self.low = np.frombuffer(data.translate(_PROPERTIES.of_ascii), np.uint8)
            space = (self.low & _SPACE) != 0
            self.kept = np.frombuffer(bytearray(data).translate(_WITHOUT_SPACE), np.uint8)
        else:
            self.code = np.frombuffer(self.joined.encode("utf-32-le", "surrogatepass"), np.uint32)
            self.number = _PROPERTIES.take(self.code)
            self.low = self.number.astype(np.uint8)
            space = (self.low & _SPACE) != 0
            self.kept = np.where(space, self.dropped, self.code)
        edge = np.flatnonzero(space[1:] != space[:-1]) + 1
        self.start_W, self.end_W = edge[::2].copy(), edge[1::2].copy()
        self.is_first_W = np.zeros(len(self.start_W), bool)  # of a line
        self.in_code_W = np.zeros(len(self.start_W), bool)
        self.to_do: set[int] = set()  # texts for `said`

    def readings(self) -> list[str]:
        if len(self.start_W):
            self.part()
            self.lower()
            self.drop_ends()
            self.find_run_together()
            self.keep_lines()
            self.read_lines()
        self.kept[self.begin_T - 1] = ord(_BETWEEN)
        if self.code.dtype == np.uint8:
            text = self.kept.tobytes().replace(bytes([_DROPPED]), b"").decode("ascii")
        else:
            text = self.kept[self.kept != self.dropped].tobytes().decode("utf-32-le", "surrogatepass")
        found = text.split(_BETWEEN)[1:]
        for number in self.to_do:
            found[number] = said(self.texts[number])
        return found

    def has(self, properties: int, place: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the character at each place has one of them."""
        if self.code.dtype == np.uint8:
            return _holding(properties).take(self.code.take(place))
        holds: NDArray[np.bool_] = (self.number.take(place) & np.uint32(properties)) != 0
        return holds

    def beyond(
        self, properties: int, place: NDArray[np.int64], step: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """From each place on, by `step`, the first whose character has none of the properties; and for which of the
        places it was not found, as it is looked for `_STEPS` far."""
        place, moving = place.copy(), np.flatnonzero(self.has(properties, place))
        for _ in range(_STEPS):
            if not len(moving):
                break
            place[moving] += step
            moving = moving[self.has(properties, place[moving])]
        return place, moving

    def part(self) -> None:
        """Parts the texts into lines, and finds those that are code."""
        place = np.flatnonzero((self.low & _BREAK) != 0)
        word = np.searchsorted(self.start_W, place)
        place, word = place[word < len(self.start_W)], word[word < len(self.start_W)]
        is_last = np.r_[word[1:] != word[:-1], True]  # the last break before a word
        self.first_L, begin_L = word[is_last], place[is_last] + 1
        start_L = self.start_W[self.first_L]
        text_L = np.searchsorted(self.begin_T, start_L, side="right") - 1
        self.is_head_L = np.r_[True, text_L[1:] != text_L[:-1]]
        begin_L = np.where(self.is_head_L, start_L, begin_L)
        is_fence_L = np.logical_and.reduce([self.code[start_L + i] == ord("`") for i in range(3)])
        self.is_code_L = is_fence_L | (begin_L < start_L)
        if is_fence_L.any():
            fences_L = np.cumsum(is_fence_L) - is_fence_L
            of_earlier_L = np.maximum.accumulate(np.where(self.is_head_L, fences_L, 0))
            self.is_code_L |= (fences_L - of_earlier_L) % 2 == 1
        self.begin_L, self.after_L = begin_L, np.r_[self.first_L[1:], len(self.start_W)]
        self.is_first_W[self.first_L] = True
        self.in_code_W = np.repeat(self.is_code_L, self.after_L - self.first_L)

    def keep_lines(self) -> None:
        """What stands between words and lines, and code as it is."""
        self.kept[self.start_W - 1] = ord(" ")
        is_code_L = self.is_code_L
        apart_L = is_code_L | np.r_[False, is_code_L[:-1]]
        self.kept[self.begin_L[apart_L] - 1] = ord("\n")
        if is_code_L.any():
            begin, end = self.begin_L[is_code_L], self.end_W[self.after_L[is_code_L] - 1]
            # Lines one after the other, with a line feed between them, are taken together.
            is_apart = (begin[1:] != end[:-1] + 1) | (self.code[end[:-1]] != ord("\n"))
            begin, end = begin[np.r_[True, is_apart]], end[np.r_[is_apart, True]]
            for first, after in zip(begin.tolist(), end.tolist(), strict=True):
                self.kept[first:after] = self.code[first:after]
        self.kept[self.start_W[self.first_L[self.is_head_L]] - 1] = self.dropped

    def lower(self) -> None:
        """Lower case, where `is_word` says so."""
        place = np.flatnonzero((self.low & _CAPITAL) != 0)
        word = np.searchsorted(self.start_W, place, side="right") - 1
        is_prose = ~self.in_code_W[word]
        place, word = place[is_prose], word[is_prose]
        if not len(word):
            return
        of_word = word[np.r_[True, word[1:] != word[:-1]]]
        begin, long_begins = self.beyond(_BARE, self.start_W[of_word], 1)
        last, long_ends = self.beyond(_BARE, self.end_W[of_word] - 1, -1)
        end = last + 1
        found = np.bitwise_or.reduceat(self.low, np.stack([begin, end], axis=1).ravel())[::2]
        is_letters, length = (found & _OTHER) == 0, end - begin
        # The words beside it on its line. Where there is none, the line break at the beginning stands for it.
        after, has_before = of_word + 1, ~self.is_first_W[of_word]
        has_after = np.r_[~self.is_first_W, False][after]
        after_begin = np.where(has_after, np.r_[self.start_W, 0][after], 0)
        after_end = np.where(has_after, np.r_[self.end_W, 1][after], 1)
        before_begin = np.where(has_before, self.start_W[of_word - 1], 0)
        before_last = np.where(has_before, self.end_W[of_word - 1] - 1, 0)
        is_lowered = is_letters & ((length > 2) | ((length == 1) & (self.code[begin] == ord("I"))))
        in_doubt = ((found & _DOT) != 0) & (self.code[begin + 1] == ord("."))
        # A letter or two: 5 Mb, USA is in NA, A word.
        few = np.flatnonzero(is_letters & ~is_lowered)
        is_lowered[few], unsure = self._is_short_word(
            begin[few], length[few], has_before[few], before_last[few], after_begin[few], after_end[few]
        )
        in_doubt[few[unsure]] = True
        for first, last in ((before_begin, before_last), (after_begin, after_end - 1)):
            is_lowered &= ~((first == last) & self.has(_SIGN, first))
            in_doubt |= (first != last) & self.has(_OPERATOR, first) & self.has(_OPERATOR, first + 1)
        in_doubt[long_begins] = in_doubt[long_ends] = True
        for i in np.flatnonzero(in_doubt).tolist():
            is_lowered[i] = self._is_word(int(of_word[i]), bool(has_before[i]), bool(has_after[i]))
        is_lowered_W = np.zeros(len(self.start_W), bool)
        is_lowered_W[of_word[is_lowered]] = True
        place = place[is_lowered_W[word]]
        self.kept[place] = _LOWER.take(self.code[place])

    def _is_short_word(
        self,
        begin: NDArray[np.int64],
        length: NDArray[np.int64],
        has_before: NDArray[np.bool_],
        before_last: NDArray[np.int64],
        after: NDArray[np.int64],
        after_end: NDArray[np.int64],
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """`is_word` of one or two letters, with a capital among them and no operator beside them; and where it may be
        wrong."""
        is_upper = self.has(_UPPER, after)
        begin_after, many_begins = self.beyond(_BARE, after, 1)
        last_after, many_ends = self.beyond(_BARE, after_end - 1, -1)
        num_after = np.where(self.has(_SPACE, begin_after), 0, np.maximum(last_after + 1 - begin_after, 0))
        is_pair = (length == 2) & ~self.has(_SMALL, begin) & ~self.has(_SMALL, begin + 1)
        begins = ~has_before | self.has(_MARK, before_last)
        at_beginning = (length == 2) | (num_after > 1)
        in_title = is_upper & (length + num_after > 2)
        is_lowered = ~self.has(_DIGIT, before_last) & (is_pair | np.where(begins, at_beginning, in_title))
        return is_lowered, np.concatenate([many_begins, many_ends])

    def _is_word(self, word: int, has_before: bool, has_after: bool) -> bool:
        near = [word - 1 if has_before else None, word, word + 1 if has_after else None]
        return is_word(["" if i is None else self._word(i) for i in near], 1)

    def _word(self, word: int) -> str:
        return self.joined[self.start_W[word] : self.end_W[word]]

    def drop_ends(self) -> None:
        """Leaves out the punctuation at the ends of words that says nothing; see `without_end`."""
        word_E = np.flatnonzero(self.has(_END | _CLOSER, self.end_W - 1) & ~self.in_code_W)
        last_E, many_closers = self.beyond(_CLOSER, self.end_W[word_E] - 1, -1)
        long_W = [word_E[many_closers]]
        is_end_E = self.has(_END, last_E)
        word_E, last_E = word_E[is_end_E], last_E[is_end_E]
        before_E, many_ends = self.beyond(_END, last_E, -1)
        said_E, many_brackets = self.beyond(_BRACKET, before_E, -1)
        is_left_out_E = self.has(_SAYS, said_E)
        is_left_out_E[many_ends] = False
        long_W += [word_E[many_ends], word_E[many_brackets]]
        # `!` may be a factorial.
        in_doubt = np.flatnonzero(is_left_out_E & (self.code[before_E + 1] == ord("!")))
        said_D, before_D = said_E[in_doubt], before_E[in_doubt]
        is_single_D = self.has(_ALPHA, said_D) & ~self.has(_ALNUM, said_D - 1)
        in_doubt = in_doubt[is_single_D | self.has(_DIGIT, said_D) | (self.code[before_D] == ord(")"))]
        is_left_out_E[in_doubt] = False
        long_W.append(word_E[in_doubt])

        place, last = before_E[is_left_out_E] + 1, last_E[is_left_out_E]
        while len(place):
            self.kept[place] = self.dropped
            place, last = place[place < last] + 1, last[place < last]
        for word in np.concatenate(long_W).tolist():
            start = int(self.start_W[word])
            for match in END_OF_WORD.finditer(self._word(word)):
                self.kept[start + match.start() + len(without_end(match)) : start + match.end()] = self.dropped
        # Nothing but ends, after a space: `prose` has a rule for that, if no ordinary word follows.
        is_alone_E = before_E < self.start_W[word_E]
        is_alone_E[many_ends] = True  # or it may be
        alone_W = word_E[is_alone_E & ~self.is_first_W[word_E]]
        start, end = self.start_W[alone_W], self.end_W[alone_W]
        is_ruled = self.has(_QUESTION, start) & self.has(_QUESTION, end - 1)
        is_ruled |= self.has(_DOT, start) & self.has(_DOT, end - 1) & (end - start > 2)
        self.odd_W = [alone_W[is_ruled & (self.has(_BREAK, end) | self.has(_SPACE | _UPPER, end + 1))]]

    def find_run_together(self) -> None:
        """Words as in "yes,of course"."""
        is_pause, is_letter = (self.low & _PAUSE) != 0, (self.low & _LETTER) != 0
        word = np.searchsorted(self.start_W, np.flatnonzero(is_pause[:-1] & is_letter[1:]), side="right") - 1
        start = self.start_W[word]
        word = word[is_letter[start] & is_letter[start + 1] & ~self.in_code_W[word]]
        found = [i for i in np.unique(word).tolist() if RUN_TOGETHER.match(self._word(i))]
        self.odd_W.append(np.array(found, np.int64))

    def read_lines(self) -> None:
        """Reads odd lines by themselves."""
        odd_W = np.concatenate(self.odd_W)
        for line in np.unique(np.searchsorted(self.first_L, odd_W, side="right") - 1).tolist():
            start, end = int(self.start_W[self.first_L[line]]), int(self.end_W[self.after_L[line] - 1])
            what = prose(self.joined[start:end])
            if not what or len(what) > end - start:
                self.to_do.add(int(np.searchsorted(self.begin_T, start, side="right")) - 1)
            self.kept[start:end] = self.dropped
            what = what[: end - start]
            self.kept[start : start + len(what)] = self._codes(what)

    def _codes(self, text: str) -> NDArray[np.uint8] | NDArray[np.uint32]:
        if self.code.dtype == np.uint8:
            return np.frombuffer(text.encode("ascii"), np.uint8)
        return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
