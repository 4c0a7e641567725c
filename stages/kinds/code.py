"""How much of a text is code: fenced blocks, and lines that only programs, markup, queries and shells have.

A prompt that asks for code in words holds none. In doubt a line is prose.
"""

import re

CODE = "code"

_FENCED = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)(?:^[ \t]*\1[^\n]*$|\Z)", re.DOTALL | re.MULTILINE)
_LINE = re.compile(
    r"""
      \s*(?:def|class|struct|enum|interface|trait|impl|fn|func|function|module|namespace)\s+[\w.<>*~]+\s*[({:<\[]
    | \s*(?:async\s+)?(?:def|function|fn|func)\s+\w+\s*\(
    | \s*(?:from\s+[\w.]+\s+import|import\s+[\w.]+(?:\s+as\s+\w+)?\s*(?:;|\#.*)?$|import\s+[\w{},\s*]+\s+from\s+["'])
    | \s*(?:using|package|require|use)\s+[\w.:\\{}, ]+;\s*$
    | \s*\#\s*(?:include\s*[<"]|define\s+\w|ifdef|ifndef|endif|pragma)
    | \s*(?:public|private|protected|static|final|const|let|var|val|void|int|float|double|char|bool|auto|String)\s
      (?=.*[=({;]).*[;{)]\s*$
    | \s*(?:if|else\ if|elif|for|while|switch|catch|until|foreach)\s*\(.*\)\s*[{:;]?\s*$
    | \s*(?:async\s+)?for\s+\(?\w+(?:,\s*\w+)*\)?\s+in\s+\S.*:\s*(?:\#.*)?$
    | \s*(?:if|elif|while|with|except|try|else)\b[^.?!]*:\s*(?:\#.*)?$
    | \s*(?:return|yield|throw|raise|break|continue)\b[^.?!,]*;\s*$
    | \s+(?:return|yield|raise)\b\s*[\w("'\[{-][^?!]*$
    | \s*(?:\w[\w.]*(?:\[[^\]]*\])?|\$\w+|@\w+)\s*(?:[-+*/|&^%.]|\?\?|//|<<|>>)?:?=\s*(?:[\w"'\[{($&*!-]).*$
    | \s*[})\]]+\s*[;,]?\s*(?:else\b.*\{|while\b.*)?\s*$
    | (?=.*(?:[()=\[\]<>{}]|\+\+|--|->|::)).*[)\w\]"'}+-]\s*;\s*(?://.*)?$
    | \s*[a-z-]+\s*:\s*[-\w#.,%()'" ]+;\s*$
    | .*[)=>]\s*\{\s*$
    | \s*</?[A-Za-z!][\w:-]*(?:\s+[\w:@-]+\s*=\s*["'{][^<>]*)?\s*/?>
    | (?i:\s*(?:select\s.+\sfrom\s|select\s+[*\w]|insert\s+into\s|update\s+\w+\s+set\s|delete\s+from\s|
        create\s+(?:or\s+replace\s+)?(?:table|index|view|database)\s|alter\s+table\s|
        (?:left\ |inner\ )?join\s+\w+.*\son\s))
      (?=.*[*,;=(_]|.*\bfrom\s+\w+(?:\s+where\b.*)?\s*;?$)
    | \s*(?:\$|>>>|PS[^>]*>|[\w.-]+@[\w.-]+:[^$\#]*[$\#])\ +\S
    | \s*(?:sudo|pip3?|npm|npx|yarn|git|docker|kubectl|apt|apt-get|brew|cargo|curl|wget|chmod|mkdir)\s+(?:-{1,2}\w|
        install|clone|commit|push|pull|run|build|get|apply|update|add|https?:|[\w./-]*/)
    | \s*[\w.]+\((?:[^()]|\([^()]*\))*\)\s*;?\s*(?:(?:\#|//).*)?$
    | \s*Traceback\ \(most\ recent\ call\ last\)|\s*File\ "[^"]+",\ line\ \d+|\s+at\ [\w.$<>]+\(
    | \s*(?:\w+\.)*\w*(?:Error|Exception):\s
    | \s*"[^"\n]+"\s*:\s*(?:["{\[\d-]|true|false|null)
    | \s*(?://|/\*)\s*\S | \s*--\s\w
    | \s*\\(?:begin|end|documentclass|usepackage)\{
    """,
    re.VERBOSE,
)
_LEAST_LINES = 2
_LEAST_SHARE = 0.5


def code_share(text: str) -> float:
    """The share of a text's characters that is code, 0 to 1; 0 where a single line is code, and that is less than half
    of the text: such a line may be a formula or a name."""
    if not text.strip():
        return 0.0
    fenced = sum(len(match[2].strip()) for match in _FENCED.finditer(text))
    said = _FENCED.sub("\n", text) if fenced else text
    lines = [line for line in said.splitlines() if line.strip()]
    # A line of more than this is a paragraph, or data; patterns stay quick.
    code = [line for line in lines if len(line) < 500 and _LINE.match(line)]
    in_lines = sum(len(line.strip()) for line in code)
    total = fenced + sum(len(line.strip()) for line in lines)
    if not fenced and len(code) < _LEAST_LINES and in_lines < _LEAST_SHARE * total:
        return 0.0
    return (fenced + in_lines) / max(total, 1)


def without_code(text: str) -> str:
    """The text without its fenced blocks and its lines of code."""
    lines = _FENCED.sub("\n", text).splitlines()
    return "\n".join(line for line in lines if len(line) >= 500 or not _LINE.match(line))
