"""Answers in which the teacher says that it is another model, or made by another company.

What counts is a sentence about the speaker, in ten languages: "I am ChatGPT", "as a model trained by OpenAI". Not text in
quotation marks, quoted lines or code, and nothing where the user asked for a part to be played or for text to be
written, translated or changed.
"""

import re
from collections.abc import Sequence

from stillhouse.schemas.config import IdentityConfig
from stillhouse.stages.filters.speech import unquoted

MISTAKEN_IDENTITY = "mistaken_identity"

MODELS = (
    "ChatGPT", "GPT", "GPT-3", "GPT-3.5", "GPT-4", "GPT-4o", "GPT-5", "InstructGPT", "Claude", "Bard", "Gemini", "PaLM",
    "LaMDA", "Gemma", "Llama", "LLaMA", "Llama 2", "Llama 3", "Meta AI", "Alpaca", "Vicuna", "Koala", "Mistral", "Mixtral",
    "Qwen", "Tongyi Qianwen", "通义千问", "DeepSeek", "DeepSeek-V3", "DeepSeek-R1", "ERNIE Bot", "文心一言", "Kimi", "Doubao",
    "豆包", "ChatGLM", "Baichuan", "Yi", "InternLM", "Grok", "Copilot", "Bing", "Bing Chat", "Cortana", "Siri", "Alexa",
    "Phi", "Falcon", "Dolly", "StableLM", "OpenAssistant", "Open Assistant", "Guanaco", "WizardLM", "Command R", "YandexGPT",
    "GigaChat", "Алиса", "HyperCLOVA", "Granite", "Nemotron", "Pi",
)  # fmt: skip
"""What a teacher may take itself for."""
MAKERS = (
    "OpenAI", "Open AI", "Anthropic", "Google", "Google DeepMind", "DeepMind", "Meta", "Meta AI", "Facebook", "Microsoft",
    "Mistral AI", "Alibaba", "Alibaba Cloud", "阿里巴巴", "阿里云", "Baidu", "百度", "Tencent", "腾讯", "ByteDance", "字节跳动",
    "Zhipu AI", "智谱AI", "清华大学", "Tsinghua University", "Moonshot AI", "月之暗面", "DeepSeek", "深度求索", "xAI", "Cohere",
    "LMSYS", "Large Model Systems Organization", "LAION", "Stability AI", "Databricks", "Hugging Face", "TII", "NVIDIA",
    "IBM", "Amazon", "Apple", "Yandex", "Яндекс", "Sber", "Сбер", "Naver", "네이버", "Kakao", "Stanford", "UC Berkeley",
    "Inflection AI", "AI21 Labs",
)  # fmt: skip
"""Whom it may take for its maker."""

# {M} a model, {N} a model or a maker, {O} a model or an own name. The lead is in any case, names are not.
_SENTENCES = (
    # English
    r"(?i:\b(?:i am|i'm|i’m)(?: actually| indeed| simply| called| named| just| an? [\w ]{0,20}(?:called|"
    r"named))?) {M}(?!['’]s)",
    r"(?i:\b(?:my name is|call me|this is me,)) {M}(?! [A-Z][a-z])(?!['’]s)",
    r"(?i:\b(?:i am|i'm|i’m|as) (?:an?|the) [^.!?\n]{0,60}?\b(?:model|assistant|ai|chatbot|bot|program|llm|system)\b"
    r"(?: \w+){0,2},? ?[^.!?,\n]{0,30}?\b(?:created|developed|trained|made|built|designed|"
    r"provided) by(?: [\w']+){0,3}?) {N}",
    r"(?i:\b(?:i am|i'm|i’m|as) (?:an?|the) [^.!?,\n]{0,60}?\b(?:model|assistant|ai|chatbot|bot|"
    r"llm)\b,? (?:called|named|known as|from)) {N}",
    r"(?i:\b(?:i was|i am|i'm|i’m|i have been)(?: \w+ly)? (?:(?:created|developed|trained|made|built|"
    r"designed)(?: and \w+)? by|"
    r"based on|powered by|a version of|a product of)(?: [\w']+){0,3}?) {N}",
    r"(?i:\b(?:i am|i'm|i’m)) {O}, (?i:(?:an? [^.!?\n]{0,60}?)?\b(?:created|developed|trained|made|built) by(?: [\w']+){0,3}?) {N}",
    r"{N}(?i:(?: has| have)? (?:created|trained|developed|made|built|designed) me\b)",
    r"(?i:\bmy (?:creators?|developers?|makers?)(?: at|,| is| are)) {N}",
    # Spanish
    r"(?i:(?<!no )\bsoy|\bme llamo|(?<!no es )\bmi nombre es) {M}",
    r"(?i:(?<!no )\b(?:soy|como) (?:una? |el |la )?[^.!?\n]{0,50}?(?:modelo|asistente|ia|inteligencia artificial|"
    r"chatbot)\b[^.!?,\n]{0,40}?"
    r"(?:cread|desarrollad|entrenad|diseñad)[oa] por(?: \w+){0,2}?) {N}",
    r"(?i:(?<!no )\b(?:fui|he sido) (?:cread|desarrollad|entrenad|diseñad)[oa] por(?: \w+){0,2}?) {N}",
    # Portuguese
    r"(?i:(?<!não )\b(?:eu )?sou(?: o| a)?|\bme chamo|(?<!não é )\bmeu nome é) {M}",
    r"(?i:(?<!não )\b(?:sou|como) (?:uma? |o |a )?[^.!?\n]{0,50}?(?:modelo|assistente|ia|inteligência artificial|"
    r"chatbot)\b[^.!?,\n]{0,40}?"
    r"(?:criad|desenvolvid|treinad|projetad)[oa] (?:por|pela|pelo)(?: \w+){0,2}?) {N}",
    r"(?i:(?<!não )\bfui (?:criad|desenvolvid|treinad)[oa] (?:por|pela|pelo)(?: \w+){0,2}?) {N}",
    # French
    r"(?i:\bje suis|\bje m['’]appelle|\bmon nom est) {M}",
    r"(?i:\b(?:je suis|en tant qu[e'’]|comme) ?(?:une? |le |l['’])?[^.!?\n]{0,50}?(?:modèle|assistante?|ia|"
    r"intelligence artificielle|chatbot)\b"
    r"[^.!?,\n]{0,40}?(?:créé|développé|entraîné|conçu|formé)e? par(?: \w+){0,2}?) {N}",
    r"(?i:\bj['’]ai été (?:créé|développé|entraîné|conçu|formé)e? par(?: \w+){0,2}?) {N}",
    # German
    r"(?i:\bich bin|\bich heiße|\bmein name ist) {M}",
    r"(?i:\b(?:ich bin|als) [^.!?,\n]{0,40}?\bvon(?: \w+)?) {N} (?i:(?:\w+ )?(?:entwickelt|trainiert|erstellt|"
    r"geschaffen|erschaffen)\w*)",
    r"(?i:\b(?:ich bin|als) (?:ein|eine|das)\w* [^.!?,\n]{0,40}?(?:sprachmodell|modell|assistent|ki|"
    r"chatbot)\b,?[^.!?,\n]{0,30}?\bvon) {N}",
    r"(?i:\b(?:ich bin|als) [^.!?,\n]{0,40}?(?:sprachmodell|modell|assistent|ki|chatbot), d(?:as|er|ie) von) {N}",
    r"(?i:\bich wurde (?:\w+ )?von) {N} (?i:(?:\w+ ){0,2}(?:entwickelt|trainiert|erstellt|geschaffen|erschaffen))",
    # Italian
    r"(?i:(?<!non )\bsono|\bmi chiamo|\bil mio nome è) {M}",
    r"(?i:(?<!non )\b(?:sono|come) (?:un[ao']? ?|il |la )?[^.!?\n]{0,50}?(?:modello|assistente|ia|"
    r"intelligenza artificiale|chatbot)\b[^.!?,\n]{0,40}?"
    r"(?:creat|sviluppat|addestrat|progettat)[oa] da(?: \w+){0,2}?) {N}",
    r"(?i:(?<!non )\bsono stat[oa] (?:creat|sviluppat|addestrat)[oa] da(?: \w+){0,2}?) {N}",
    # Russian
    r"(?i:(?<!\w)я(?: ?[—–-])?|\bменя зовут|\bмо[её] имя ?[—–-]?) {M}",
    r"(?i:(?<!\w)(?:я|как)(?: ?[—–-])? [^.!?\n]{0,60}?(?:создан|разработан|обучен)\w*(?: \w+)?) {N}",
    r"(?i:(?<!\w)меня (?:создал|разработал|обучил)[аи]?(?: \w+)?) {N}",
    # Chinese
    r"(?<!不)我(?:就)?(?:是|叫|的名字是|的名字叫) ?{M}(?! ?的(?:用户|粉丝|忠实|使用))",
    r"(?:我是|作为|我)(?:一个|一款|一种|一名)?由? ?{N}(?:公司|团队)? ?(?:所)?(?:开发|训练|创建|研发|创造|推出|打造|设计)",
    r"(?:我是|作为)(?:一个|一款|一种|一名)?[^。！？，\n]{0,20}，?由 ?{N}(?:公司|团队)? ?(?:所)?(?:开发|训练|创建|研发|创造|推出|打造|设计)",
    # Japanese
    r"(?:私は|私の名前は|僕は)、?{M}(?:です|と申します|と言います|といいます|という|、)",
    r"(?:私は|私が)?、?{N}(?:社)?(?:によって|が|に|で)(?:開発|作成|訓練|トレーニング|設計|作ら)[^。\n]{0,12}(?:AI|モデル|アシスタント|れました|れた|"
    r"ています)(?:[^。\n]{0,12}(?:です|として))?",
    # Korean
    r"(?:저는|제 이름은|나는) {M}(?:입니다|이에요|예요|라고|이라고|이며|,)",
    r"(?:저는|나는) {N}(?:에서|가|이|에 의해|사가)? ?(?:개발|만든|만들|훈련|학습|제작)",
)
_OWN = "OwnName"
"""Stands for each name that the teacher may call itself by."""
_PART = re.compile(
    r"(?i)\b(?:act as|acting as|pretend|role.?play|play the (?:part|role)|imagine (?:that )?you|you are now|"
    r"from now on|persona|"
    r"in the (?:style|voice) of|impersonate|simulate|stay in character|speak as|answer as|respond as|"
    r"write (?:me )?(?:an? |the )?(?:[\w-]+ ){0,4}(?:story|dialogue|dialog|script|poem|letter|speech|scene|song|"
    r"essay|bio|"
    r"introduction|email|conversation|monologue|sentence|ad)|translate|rewrite|rephrase|paraphrase|proofread|"
    r"correct (?:the|this)|"
    r"summari[sz]e|repeat after|complete the (?:text|sentence)|"
    r"actúa como|finge|haz de|imagina que eres|traduce|escribe (?:una?|el) (?:\w+ ){0,3}(?:historia|cuento|"
    r"diálogo|carta|poema)|"
    r"finja|aja como|atue como|imagine que você|traduza|escreva (?:uma?|o) (?:\w+ ){0,3}(?:história|diálogo|"
    r"carta|poema)|"
    r"fais semblant|joue le rôle|imagine que tu|agis comme|tradui[st]|écris (?:une?|le) (?:\w+ ){0,3}(?:histoire|"
    r"dialogue|lettre|poème)|"
    r"tu so als|spiele? die rolle|stell dir vor|übersetze?|schreibe? (?:einen?|ein|"
    r"eine) (?:\w+ ){0,3}(?:geschichte|dialog|brief|gedicht)|"
    r"fingi|comportati come|immagina di|traduci|scrivi (?:una?|un) (?:\w+ ){0,3}(?:storia|dialogo|lettera|poesia)|"
    r"представь,? что|притвор|сыграй|веди себя как|перевед|напиши (?:\w+ ){0,3}(?:историю|рассказ|диалог|письмо|стих))"
    r"|假装|扮演|模仿|角色|翻译|假设你是|想象你是|写一(?:个|篇|首|封)|改写|ふりをして|役を演じ|なりきって|翻訳|として振る舞|書いて|"
    r"역할|인 척|번역|연기해|써 ?줘"
)


class Identity:
    """Whether an answer is another model's, by its own words. `own` names are the teacher's."""

    def __init__(self, config: IdentityConfig) -> None:
        own = {name.casefold() for name in config.own}
        models, everybody = (
            sorted({name for name in names if name.casefold() not in own}, key=lambda name: (-len(name), name))
            for names in ([*MODELS, *config.others], [*MODELS, *MAKERS, *config.others])
        )
        # Own names are out of the way first: "Google" is not to be found in an own "Google DeepMind".
        self._own = re.compile(f"(?i){_any(sorted(config.own, key=len, reverse=True))}") if config.own else None
        names = {"{M}": _any(models), "{N}": _any(everybody), "{O}": _any([*models, _OWN])}
        patterns = [re.sub(r"\{[MNO]\}", lambda match: names[match[0]], sentence) for sentence in _SENTENCES]
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._names = re.compile(_any(everybody))

    def is_mistaken(self, answer: str, asked: str) -> bool:
        """`asked`: what users and the system prompt said."""
        # Most answers name nobody.
        if not self._names.search(answer) or _PART.search(asked):
            return False
        said = unquoted(answer)
        if self._own is not None:
            said = self._own.sub(_OWN, said)
        found = any(pattern.search(said) for pattern in self._patterns)
        # "You are Claude", and text that the user gave.
        return found and not any(pattern.search(asked) for pattern in self._patterns) and not self._is_told(asked)

    def _is_told(self, asked: str) -> bool:
        return any(
            re.search(
                r"(?i:you are|you're|your name is|eres|tu es|du bist|sei|você é|ты|你是|あなたは|당신은)[^.?!\n]{0,30}$",
                asked[: name.start()],
            )
            and not _is_question(asked, name.end())
            for name in self._names.finditer(asked)
        )


def _is_question(text: str, end: int) -> bool:
    """Whether the sentence around a place is a question: "You are ChatGPT, right?"."""
    rest = re.search(r"[.!?。？！\n؟]", text[end:])
    return rest is not None and rest[0] in "?？؟"


def _any(names: Sequence[str]) -> str:
    """A pattern of any of the names, not inside of a longer word; a version may follow."""
    every = "|".join(re.escape(name) for name in names)
    return rf"(?<![A-Za-zА-Яа-я])(?:{every})(?:[- ]?[vV]?\d[\w.-]*)?(?![A-Za-zА-Яа-я])"
