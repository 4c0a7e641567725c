"""Answers that refuse, and answers that hedge: talk of being an AI, of knowledge that ends, of seeing a professional.

Neither is a fault by itself: Gemma 2 kept some of both, so that the student does not make up what the teacher would not
say. A refusal is looked for where answers begin, a hedge anywhere; both in nine languages, not in quoted text.
"""

import re

from stillhouse.stages.filters.speech import unquoted

REFUSAL, HEDGE = "refusal", "hedge"

BEGINNING = 240
"""Characters in which an answer says that it refuses. One that says so later has answered first."""
_DO = (
    r"(?:help|assist|provide|fulfil?l|comply|do that|do this|answer|generate|create|write|give|offer|support|engage|"
    r"participate|share|discuss|continue|complete|respond|recommend|access|browse|open|recall|show|produce|tell|"
    r"make|condone|promote|encourage)"
)
_REFUSALS = re.compile(
    r"(?i)"
    rf"\bi(?:['’]m| am)? ?(?:can(?:no|['’])t|can not|won['’]t|will not|could not|couldn['’]t|am not able to|"
    rf"not able to|am unable to|unable to|"
    rf"am not comfortable|not going to|must decline to|have to decline to)(?: \w+ly|"
    rf" in good conscience)? {_DO}\b(?! but\b)|"
    r"\bi (?:must|have to|need to) (?:\w+ )?(?:decline|refuse)|\bi (?:decline|refuse) to|\bit (?:is|"
    r"would be) (?:inappropriate|unethical|not appropriate|"
    r"against my \w+) (?:for me )?to|\bagainst my (?:programming|guidelines|principles|policy)|\bi['’]m not allowed to|"
    r"\bas an ai[\w ]*,? i (?:do not|don['’]t) have (?:the ability|the capability|access)|"
    # Spanish, Portuguese
    r"\bno puedo (?:ayudar|cumplir|proporcionar|responder|asistir|ofrecer|generar|crear|escribir|hacer|dar|"
    r"participar|compartir|acceder)|"
    r"\bno me es posible|\bno estoy en condiciones|\bno podré ayudar|\bme niego a|"
    r"\bnão posso (?:ajudar|fornecer|cumprir|responder|atender|gerar|criar|escrever|fazer|dar|participar|"
    r"compartilhar|acessar)|"
    r"\bnão (?:consigo|sou capaz de) (?:ajudar|fornecer|atender|acessar|gerar|criar|responder)|\bnão me é possível|"
    # French, German, Italian
    r"\bje ne (?:peux|suis) (?:malheureusement )?pas (?:en mesure|vous (?:aider|fournir|donner)|t['’]aider|"
    r"répondre|fournir|aider|autorisé|accéder|satisfaire|"
    r"générer|créer|écrire|donner|faire)|\bje refuse de|\bil m['’]est impossible|"
    r"\bich kann (?:\w+ ){0,6}?(?:nicht|kein\w*) (?:\w+ ){0,6}?(?:helfen|beantworten|bereitstellen|erfüllen|"
    r"geben|erstellen|schreiben|unterstützen|zugreifen|nachkommen)|"
    r"\bich bin nicht in der lage|\bdabei kann ich (?:\w+ )?nicht|\bdas kann ich (?:\w+ )?nicht|"
    r"\bich darf (?:\w+ ){0,3}nicht|"
    r"\bnon posso (?:aiutar|fornir|risponder|soddisfar|generar|crear|scriver|far|dar|partecipar|condivider|"
    r"acceder)|\bnon sono in grado di|\bmi rifiuto|"
    # Russian
    r"(?<!\w)я (?:\w+ )?не могу (?:\w+ )?(?:помо|предостав|выполн|ответ|созда|написа|дать|сдела|участв|получи|"
    r"обсужда|поддерж)|(?<!\w)не могу (?:вам |тебе |с этим )?помочь|"
    r"(?<!\w)я не в состоянии|(?<!\w)вынужден\w* отказ|"
    # Chinese, Japanese, Korean
    r"我(?:无法|不能|没法|不可以|没有办法)(?:为您|为你|帮助|帮|提供|回答|满足|协助|完成|生成|参与|访问|继续|支持|给)|(?:抱歉|对不起)[，,]?(?:我|这|但我|"
    r"但)?[^。！\n]{0,10}(?:无法|不能)(?!再)|"
    r"(?:お手伝い|お答え|回答|提供|対応|協力|作成|お応え|支援|アクセス)(?:する)?(?:することは?|は|が)?(?:でき(?:ません|かねます)|致しかねます|いたしかねます)|"
    r"(?:도와드릴|제공(?:할|해 드릴)|답변(?:할|해 드릴|드릴)|도움을 드릴|응할|작성할|접근할) 수 ?(?:가|는)? ?없"
)
_HEDGES = re.compile(
    r"(?i)"
    r"\bas an? (?:\w+ )?(?:ai\b|artificial intelligence|(?:large )?language model|machine learning model)|"
    r"\bi(?:['’]m| am) (?:just |only |merely )?an ai\b(?! \w+ (?:engineer|researcher))|"
    r"\bi (?:do not|don['’]t) have (?:personal|real[- ]time|access to (?:real[- ]time|current)|feelings|emotions|"
    r"opinions|beliefs|consciousness)|"
    r"\b(?:my (?:knowledge|training)(?: data)?(?: cut-?off| only goes| ends| was last| is limited| is current)|"
    r"knowledge cut-?off|as of my last|my last (?:update|training))|"
    r"\b(?:consult|seek|speak (?:to|with)|talk to|see) (?:with )?(?:an? |your |advice from an? |"
    r"the advice of an? )?(?:\w+ ){0,3}?(?:doctor|physician|lawyer|attorney|"
    r"healthcare (?:professional|provider)|medical professional|financial advi[sz]or|professional|therapist|"
    r"legal advice|medical advice)\b|"
    r"\bthis is not (?:medical|legal|financial) advice|"
    # Spanish, Portuguese
    r"\bcomo (?:una? |modelo de )?(?:ia\b|inteligencia artificial|modelo de (?:lenguaje|ia)|lenguaje)|"
    r"\bmi (?:conocimiento|última actualización|fecha de corte)|"
    r"\bconsult[ae]r? (?:a|con) (?:una? |tu |su )?(?:\w+ )?(?:médico|abogado|profesional|especialista)|"
    r"\bno tengo (?:opiniones|sentimientos|acceso a información)|"
    r"\bcomo (?:uma? )?(?:ia\b|inteligência artificial|modelo de (?:linguagem|ia))|\bmeu conhecimento|"
    r"\bconsult[ea]r? (?:um|uma|seu) (?:\w+ )?(?:médico|advogado|profissional|especialista)|"
    r"\bnão tenho (?:opiniões|sentimentos|acesso a informações)|"
    # French, German, Italian
    r"\ben tant qu(?:e |['’])(?:ia\b|intelligence artificielle|assistante? (?:ia|virtuel)|modèle)|"
    r"\bmes connaissances s['’]arrêtent|\bconsulte[rz]? (?:un|une|votre) (?:\w+ )?(?:médecin|avocat|"
    r"professionnel|spécialiste)|"
    r"\bje n['’]ai pas (?:d['’]opinions?|de sentiments|d['’]émotions|accès à des informations)|"
    r"\bals (?:eine? )?(?:ki\b|künstliche intelligenz|ki-|(?:großes )?sprachmodell)|\bmein (?:wissensstand|"
    r"wissen endet|trainingsstand)|\b(?:arzt|anwalt|fachmann|fachperson)\w* (?:zu )?(?:konsultieren|aufsuchen|wenden)|"
    r"\bwenden sie sich (?:bitte )?an (?:einen|eine|ihren) (?:\w+ )?(?:arzt|anwalt|fach\w+)|"
    r"\bich habe keine (?:persönlichen|eigenen|gefühle|meinung)|"
    r"\bcome (?:un['’]? ?|una )?(?:ia\b|intelligenza artificiale|modello (?:linguistico|di linguaggio))|"
    r"\ble mie conoscenze|\bconsulta(?:re|te)? (?:un|il|una) (?:\w+ )?(?:medico|avvocato|professionista|specialista)|"
    # Russian
    r"(?<!\w)как (?:языковая модель|ии(?!\w)|искусственный интеллект|модель)|(?<!\w)мои знания (?:ограничен|"
    r"заканчива)|(?<!\w)(?:проконсультир|обратитесь|обратиться)\w* (?:\w+ ){0,2}?(?:врач|юрист|специалист)\w*|"
    r"(?<!\w)у меня нет (?:личн|собственн|чувств|мнени|доступа)|"
    # Chinese, Japanese, Korean
    r"作为(?:一个|一名|一种|一款)?(?:人工智能|AI|语言模型|大型语言模型|大语言模型)|我的知识(?:截止|库|更新)|(?:咨询|寻求|请教)[^。\n]{0,8}(?:医生|律师|专业人士|专家)|"
    r"我没有(?:个人|感情|情感|意识|实时)|"
    r"(?:AI|人工知能|言語モデル)(?:アシスタント)?(?:として|なので|ですので)|私の知識は|(?:医師|弁護士|専門家)に(?:ご)?相談|(?:個人的な|感情|"
    r"意見)[^。\n]{0,6}(?:持って(?:い|お)りません|持っていません|ありません)|"
    r"(?:AI|인공지능|언어 ?모델)(?:로서|이기 때문에|이므로)|제 지식은|(?:의사|변호사|전문가)(?:와|에게|의)? ?상담"
)

# Every hedge holds one of them, in lower case.
_HINTS = tuple(
    "as an|an ai|ai as|artificial intel|machine learning model|language model|have personal|real-time|real time|access to|feelings|"
    "emotions|opinions|beliefs|consciousness|my knowledge|my training|knowledge cut|my last|as of my|doctor|physician|lawyer|"
    "attorney|professional|provider|advisor|adviser|therapist|legal advice|medical advice|financial advice|"
    "como un|como um|como ia|como intel|como modelo|como lenguaje|mi conocimiento|última actualización|fecha de corte|no tengo|médico|"
    "abogado|especialista|profesional|profissional|meu conhecimento|não tenho|advogado|en tant qu|connaissances|je n'ai pas|"
    "je n’ai pas|médecin|avocat|professionnel|spécialiste|als ki|als eine|als künst|sprachmodell|mein wissen|trainingsstand|"
    "arzt|anwalt|fach|ich habe keine|come un|come ia|come intel|come modello|conoscenze|medico|avvocato|professionista|"
    "specialista|как язык|как ии|как искус|как модель|мои знания|проконсульт|обрат|у меня нет|作为|我的知识|咨询|寻求|请教|"
    "我没有|aiと|aiア|aiな|aiで|人工知能|言語モデル|知識|相談|持って|ありません|ai로|ai이|ai 로|인공지능|언어|제 지식|상담".split(
        "|"
    )
)


def _hints(line: str) -> bool:
    return any(word in line for word in _HINTS)


def kind(answer: str) -> str | None:
    """`refusal`, `hedge`, or None for an answer that is neither; a refusal that hedges is a refusal."""
    said = unquoted(answer).strip()
    if _REFUSALS.search(said[:BEGINNING]):
        return REFUSAL
    # Few lines hold one of these, and a search for words is a hundred times as fast as one for such a pattern.
    lines = (line for line in said.lower().splitlines() if _hints(line))
    return HEDGE if any(map(_HEDGES.search, lines)) else None
