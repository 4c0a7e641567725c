"""Prompts that ask nothing: a greeting, keys struck at random, a lone URL or number, signs alone.

Short is not empty: "Python?", "2+2" and "天气" ask something. In doubt a prompt is kept.

Shape legend: N texts, R rows of a table.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.stages.text.shingles import units

LOW_INFORMATION = "low_information"

_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_GREETINGS = frozenset(
    # English and what is written everywhere
    "hi hii hiii hey heya heyy hello helo hallo helloo yo sup howdy greetings there all everyone again ok okay k test "
    "testing tests thanks thank you thx ty bye goodbye good morning afternoon evening night day hmm hm lol yes no yep "
    # Spanish, Portuguese, Italian, French, German, Dutch, Turkish, Polish, Indonesian, Vietnamese
    "hola buenas buenos días dias tardes noches gracias prueba olá ola oi bom dia boa tarde noite obrigado obrigada teste "
    "ciao salve buongiorno buonasera grazie prova bonjour salut bonsoir coucou merci essai hallo moin servus guten tag "
    "morgen abend danke hoi goedemorgen bedankt merhaba selam teşekkürler cześć czesc dziękuję halo hai terima kasih "
    "chào xin bạn "
    # Russian, Ukrainian, Greek, Arabic, Persian, Hebrew, Hindi
    "привет здравствуйте здравствуй добрый день доброе утро вечер спасибо тест привіт дякую γεια σου ευχαριστώ مرحبا "
    "السلام عليكم اهلا أهلا شكرا سلام متشکرم שלום תודה".split()
)
_UNSPACED_GREETINGS = frozenset(
    "你好 您好 嗨 哈喽 哈啰 你好啊 你好呀 在吗 在么 测试 謝謝 谢谢 早上好 晚上好 早安 晚安 こんにちは こんばんは おはよう "
    "おはようございます やあ もしもし テスト ありがとう ありがとうございます 안녕 안녕하세요 안녕하십니까 감사합니다 테스트 สวัสดี "
    "สวัสดีครับ สวัสดีค่ะ ทดสอบ ขอบคุณ नमस्ते नमस्कार हैलो धन्यवाद".split()
)
_SAME = re.compile(r"(.{1,3}?)\1{2,}.?.?")
_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm", "йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю")
_NEIGHBOURS = frozenset(
    pair for row in _KEYBOARD for i in range(len(row) - 1) for pair in (row[i : i + 2], row[i : i + 2][::-1])
)
_WORDS_OF_NEIGHBOURS = frozenset("were tree trees power poor free fred weed wert ghost апрол".split())
_SIGNS = re.compile(r"[-+*/^=<>%√∑∫$€£]")


def asks_nothing(texts: Sequence[str], row_N: NDArray[np.int64], num_rows: int) -> NDArray[np.bool_]:
    """[R]: whether a row has texts, and none of them asks anything. Text i belongs to row `row_N[i]`."""
    asks_R = np.zeros(num_rows, np.int64)
    np.add.at(asks_R, row_N, [not is_low(text) for text in texts])
    is_low_R: NDArray[np.bool_] = (asks_R == 0) & (np.bincount(row_N, minlength=num_rows) > 0)
    return is_low_R


def is_low(text: str) -> bool:
    """Whether a text asks nothing."""
    if len(text) > 400:
        return False
    stripped = text.strip()
    if _URL.fullmatch(stripped):
        return True
    words = [unit for unit in units(stripped) if any(char.isalnum() for char in unit)]
    if not words:
        return not _SIGNS.search(stripped) or len(stripped) == 1
    joined = "".join(char for char in stripped if char.isalnum() or ord(char) > 0x900).strip("?!。！？，、~～…👋")
    if joined in _UNSPACED_GREETINGS or (all(word in _GREETINGS for word in words[:6]) and len(words) <= 6):
        return True
    if all(word.isdecimal() for word in words):
        return len(words) == 1 and not _SIGNS.search(stripped)
    return len(words) <= 3 and all(map(_is_struck, words))


def _is_struck(word: str) -> bool:
    """Whether a word is no word: one piece again and again, or neighbouring keys."""
    if len(word) < 4 or not word.isalpha() or word in _WORDS_OF_NEIGHBOURS:
        return False
    if _SAME.fullmatch(word):
        return True
    pairs = [word[i : i + 2] for i in range(len(word) - 1)]
    near = sum(pair in _NEIGHBOURS or pair[0] == pair[1] for pair in pairs)
    if near >= 0.75 * len(pairs):
        return True
    rows = [row for row in _KEYBOARD[:3] if set(word) <= set(row)]
    return len(word) >= 5 and bool(rows) and not set(word) & set("eiou")
