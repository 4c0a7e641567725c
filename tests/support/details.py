"""Questions of 10 words and more in many languages that differ in one detail: a number, a name, a negation.

Written by hand for these tests. Of scripts without spaces a character counts as a word.
"""

import random
from typing import NamedTuple


class Details(NamedTuple):
    """A question as a form, and two values for each of its details: `{n}`, `{name}` and `{no}`."""

    form: str
    numbers: tuple[str, str]
    names: tuple[str, str]
    negations: tuple[str, str]
    """What is affirmed, what is denied."""


QUESTIONS = {
    "en": Details(
        "How many days does it take a letter from {name} to arrive if it is {no} sent by air and weighs {n} grams?",
        ("20", "200"), ("Austria", "Australia"), ("always", "not"),
    ),
    "de": Details(
        "Wie viele Tage braucht ein Brief aus {name}, wenn er {no} mit Luftpost geschickt wird und {n} Gramm wiegt?",
        ("20", "200"), ("Österreich", "Australien"), ("immer", "nicht"),
    ),
    "fr": Details(
        "Combien de jours faut-il à une lettre venue de {name} si elle {no} envoyée par avion et pèse {n} grammes ?",
        ("20", "200"), ("Vienne", "Sydney"), ("est", "n'est pas"),
    ),
    "es": Details(
        "¿Cuántos días tarda una carta desde {name} si {no} se envía por avión y pesa unos {n} gramos en total?",
        ("20", "200"), ("Austria", "Australia"), ("siempre", "no"),
    ),
    "pt": Details(
        "Quantos dias leva uma carta vinda de {name} se ela {no} for enviada por avião e pesar uns {n} gramas?",
        ("20", "200"), ("Viena", "Sydney"), ("sempre", "não"),
    ),
    "it": Details(
        "Quanti giorni impiega una lettera spedita da {name} se {no} viaggia per via aerea e pesa circa {n} grammi?",
        ("20", "200"), ("Vienna", "Sydney"), ("sempre", "non"),
    ),
    "tr": Details(
        "{name} kentinden gelen bir mektup uçakla {no} ve yaklaşık {n} gram ağırlığındaysa kaç günde yerine ulaşır?",
        ("20", "200"), ("Viyana", "Sidney"), ("gönderilirse", "gönderilmezse"),
    ),
    "ru": Details(
        "Сколько дней идёт письмо из города {name}, если его {no} отправили самолётом и оно весит ровно {n} граммов?",
        ("20", "200"), ("Вена", "Сидней"), ("всегда", "не"),
    ),
    "ar": Details(
        "كم يوما تستغرق رسالة قادمة من {name} إذا {no} ترسل بالطائرة وكان وزنها حوالي {n} غراما في المجموع؟",
        ("20", "200"), ("النمسا", "أستراليا"), ("كانت", "لم"),
    ),
    "hi": Details(
        "अगर {name} से आने वाली चिट्ठी हवाई डाक से {no} भेजी जाए और उसका वज़न {n} ग्राम हो तो कितने दिन लगेंगे?",
        ("20", "200"), ("ऑस्ट्रिया", "ऑस्ट्रेलिया"), ("ही", "नहीं"),
    ),
    "ko": Details(
        "{name} 에서 보낸 편지가 항공 우편으로 {no} 무게가 모두 합해서 {n} 그램이라면 도착할 때까지 며칠이나 걸리나요?",
        ("20", "200"), ("오스트리아", "오스트레일리아"), ("왔고", "오지 않았고"),
    ),
    "zh": Details(
        "从{name}寄来的一封信如果{no}走航空邮件，重量是{n}克，那么一共需要多少天才能送到收信人手里？",
        ("二十", "二百"), ("奥地利", "澳大利亚"), ("只", "不"),
    ),
    "ja": Details(
        "{name}から航空便で{no}手紙の重さがちょうど{n}グラムだった場合、相手に届くまでに何日ぐらいかかりますか。",
        ("二十", "二百"), ("オーストリア", "オーストラリア"), ("送られた", "送られなかった"),
    ),
    "th": Details(
        "จดหมายจาก{name}ที่{no}ส่งทางอากาศและมีน้ำหนัก{n}กรัมจะใช้เวลากี่วันจึงจะถึงมือผู้รับที่อยู่ปลายทาง",
        ("ยี่สิบ", "สองร้อย"), ("ออสเตรีย", "ออสเตรเลีย"), ("ได้", "ไม่"),
    ),
}  # fmt: skip

CODE = (
    (
        "Explain:\ndef add(values):\n    total = 0\n    for value in values:\n        total {} value\n    return total",
        ("+=", "-="),
    ),
    ("SELECT name, age FROM people WHERE age {} 30 AND city = 'Rome' ORDER BY age LIMIT 10;", (">", "<")),
    ("Why does `while (i {} n && a[i] != x) i++;` read one element too many at the end of my array here?", ("<", "<=")),
    (
        "Fix it: const sum = (a, b) => a {} b; console.log(sum(1, 2), sum(3, 4), sum(5, 6), 'done with all');",
        ("+", "-"),
    ),
)
"""Code that differs in an operator."""


def differing() -> list[tuple[str, str, str, str]]:
    """(language or code, detail, one question, the other)."""
    found = []
    for language, it in QUESTIONS.items():
        plain = {"n": it.numbers[0], "name": it.names[0], "no": it.negations[0]}
        one = it.form.format(**plain)
        for key, detail, values in (
            ("n", "number", it.numbers),
            ("name", "name", it.names),
            ("no", "negation", it.negations),
        ):
            found.append((language, detail, one, it.form.format(**(plain | {key: values[1]}))))
    found += [("code", "operator", form.replace("{}", one), form.replace("{}", other)) for form, (one, other) in CODE]
    return found


def passage(language: str, num_words: int, rng: random.Random) -> str:
    """A text of the language's words in any order; where it has no spaces, of runs of its characters."""
    form = QUESTIONS[language].form
    for key in ("{n}", "{name}", "{no}"):
        form = form.replace(key, " ")
    if language in ("zh", "ja", "th"):
        characters = [char for char in form if char.isalpha()]
        return "".join(rng.choice(characters) for _ in range(num_words))
    words = [word.strip("¿?,.") for word in form.split()]
    return " ".join(rng.choice([word for word in words if word]) for _ in range(num_words))
