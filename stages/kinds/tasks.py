"""What a prompt asks for, in one of nine kinds, told by the verbs and question words of ten languages.

Read are the beginning and the end of a prompt, where people say what they want. What is told by no word is `other`, as is
everything in other languages but for code, formulas and question marks.
"""

import re

from stillhouse.stages.kinds.code import code_share

TASKS = ("translate", "summarize", "rewrite", "code", "math", "ideas", "write", "question", "other")
"""In the order in which they are tried: "write a summary" is `summarize`."""
_EDGE = 300
"""Characters at either end of a prompt."""

_WORDS = {
    "translate": r"\b(?:translat(?:e|ion)|traduc(?:e|ir|ción|ime|eme|elo)|tradu(?:za|zir|z|ção)|tradui(?:s|re|sez)|traduction|"
    r"übersetz\w*|tradu(?:ci|rre|zione)\w*)\b|переве(?:ди|сти|дите)|перевод(?!ной)|翻译|翻譯|译成|翻訳|訳して|번역",
    "summarize": r"\b(?:summar(?:ize|ise|y|ies)|tl;?dr|key (?:points|takeaways)|resum(?:e|en|ir|ime|a|o)|resúme\w*|sintetiza|"
    r"résum(?:e|é|er|ez)|zusammenfass\w*|riassu(?:mi|nto|mere)\w*|sintesi)\b|\bfass\w*\b.{1,60}\bzusammen\b|кратко излож|"
    r"сократи|(?:сделай|напиши) (?:краткое|резюме)|перескаж|总结|總結|概括|摘要|要約|まとめて|요약",
    "rewrite": r"\b(?:rewrite|rephrase|paraphrase|proofread|reword|(?:fix|correct|check|improve) (?:\w+ ){0,3}(?:grammar|spelling|"
    r"text|sentence|paragraph|essay|english|writing)|make (?:this|it) (?:sound |more )|reescrib\w*|corrige\w*|parafrase\w*|"
    r"reescrev\w*|corrij\w*|réécri\w*|reformul\w*|umschreib\w*|umformulier\w*|korrigier\w*|riscriv\w*|correggi\w*|riformul\w*)\b|"
    r"\bschreib\w*\b.{1,60}\bum\b|перепиши|перефразируй|исправь|улучши текст|改写|改寫|润色|潤色|修改(?:一下)?(?:这|下面)|校对|改成|"
    r"書き直|言い換え|校正|添削|고쳐 ?(?:줘|주세요|써)|다듬어|바꿔 ?써",
    "code": r"\b(?:python|javascript|typescript|java|c\+\+|c#|golang|rust|php|ruby|kotlin|swift|sql|html|css|react|django|pandas|"
    r"bash|powershell|regex|api|algorithm|algoritmo|algorithme|algorithmus|docker|arduino|excel (?:formula|macro)|vba|"
    r"unit tests?|debug|compile|refactor|script|código|code|codice|programm(?:a|ing|iere\w*)?|função|función|fonction|"
    r"funktion|funzione)\b|(?<!\w)(?:код|алгоритм|программу|скрипт)(?!\w)|代码|程式碼|编程|算法|脚本|函数|コード|プログラム|アルゴリズム|関数|코드|"
    r"프로그램|알고리즘|함수",
    "math": r"\b(?:solve|calculate|compute|derivative|integral|equation|probability|prove that|simplify|factor(?:ize|ise)|"
    r"calcul(?:a|ar|ate|e|er|ez)|resuelve|ecuación|resolva|equação|résou\w+|équation|berechne\w*|gleichung|risolvi|calcola|"
    r"equazione)\b|\d\s*[-+*/×÷^=]\s*\d|(?<!\w)(?:реши|вычисли|посчитай|уравнение)|计算|求解|方程|解方程|計算|方程式|解いて|계산|방정식|풀어",
    "ideas": r"\b(?:ideas?|suggest(?:ions?)?|brainstorm|recommend(?:ations?)?|tips|(?:make|give|create|write|show)?(?: me)?(?: an?| the)? "
    r"?list (?:of|all)|list \w+ \w+|names? for|ways to|lista|sugerencias|recomienda|recomendaciones|ideias|sugestões|recomende|idées|"
    r"liste|suggestions|conseils|ideen|vorschläge|liste|empfiehl|tipps|idee|elenco|suggeriment\w+|consigli\w*)\b|"
    r"(?<!\w)(?:иде[ийюя]|список|посоветуй|предложи|варианты)(?!\w)|主意|建议|推荐|列出|列举|点子|建議|推薦|アイデア|アイディア|提案|おすすめ|リスト|"
    r"挙げて|아이디어|추천|목록|나열",
    "write": r"\b(?:write|draft|compose|generate|create|tell me a (?:story|joke)|story|poem|essay|e-?mail|letter|lyrics|"
    r"escrib\w*|redacta\w*|poema|cuento|escrev\w*|redija|crie|conto|écri(?:s|vez|re)|rédige\w*|poème|histoire|schreib\w*|"
    r"verfass\w*|gedicht|geschichte|scriv\w*|poesia|racconto|lettera)\b|(?<!\w)(?:напиши|сочини|составь|придумай|стих|рассказ|письмо)|"
    r"写(?:一|个|篇|封|首|出)|寫(?:一|個|篇|封|首)|作文|故事|诗|詩|書いて|作って|作成|物語|써 ?줘|써 ?주세요|작성|지어 ?줘|이야기",
    "question": r"[?？؟;]\s*$|\b(?:what|who|whom|whose|where|when|why|which|how|explain|describe|compare|define|is|are|can|does|do|should|"
    r"qué|quién|cuál|cuándo|cómo|dónde|por qué|explica\w*|que|quem|qual|quando|como|onde|explique|quel(?:le)?s?|qui|où|quand|"
    r"comment|pourquoi|combien|expliqu\w+|was|wer|wo|wann|wie|warum|welche\w*|wieso|erklär\w*|che|chi|quale?|come|dove|perché|"
    r"cosa|spiega\w*)\b|(?<!\w)(?:что|кто|где|когда|почему|зачем|как|какой|какая|какие|сколько|объясни|расскажи|чему)(?!\w)|什么|什麼|谁|哪|怎么|"
    r"怎麼|如何|为什么|為什麼|多少|吗|嗎|解释|解釋|介绍|何(?:です|が|を|の|で)|誰|どこ|いつ|なぜ|どう|どの|ですか|ますか|教えて|説明|무엇|누구|어디|언제|왜|어떻게|"
    r"나요|까요|인가요|설명|알려",
}
_PATTERNS = {task: re.compile(words, re.IGNORECASE) for task, words in _WORDS.items()}


def task(text: str) -> str:
    """One of `TASKS`."""
    text = text.strip()
    ends = text if len(text) <= 2 * _EDGE else f"{text[:_EDGE]}\n{text[-_EDGE:]}"
    for name in TASKS[:3]:
        if _PATTERNS[name].search(ends):
            return name
    if code_share(text) > 0:
        return "code"
    return next((name for name in TASKS[3:-1] if _PATTERNS[name].search(ends)), "other")
