"""Parse the terms in a VLM's answer: the things that it names, with the characters that spell them.

Sentences are parsed in English (model/vlm/english.py); other languages are parsed as lists.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from model.vlm.english import kind_of, singular, word_set

MAX_TERMS = 50
MAX_LENGTH = 60  # characters of a term
MAX_WORDS = 4
MAX_HAN = 12  # characters of a term in Chinese or Japanese script; longer is a sentence


_STOPS = frozenset(".!?;。！？；…")
# Head nouns that name no thing, that measure what follows "of", or whose "of" leads to no thing.
_EMPTY = word_set(
    """object item thing image picture photo photograph close-up scene view background foreground side
    center centre middle top bottom front back corner edge part area section distance list answer name
    label type kind color colour size shape position location way addition total number count variety
    couple atmosphere moment day time sense feeling mood style setting detail element content subject pair
    set group piece caption description detection result annotation prediction instance output response
    assistant user 物体 物品 图片 图像 照片 背景 旁边 列表 物体列表 物品列表 答案 回答 输出 结果 助手 물체"""
)
_MEASURES = word_set("bunch slice row stack pile crowd herd flock sheet line bit body lot family")
_MADE = word_set("made full sense feeling touch")
# Words before a colon: groups, whose members follow, and properties, whose value follows.
_GROUPS = word_set("animals vehicles people plants furniture food clothing accessories decor")
_PROPERTIES = word_set("color colour size shape position location material action condition count number")
_NAME = frozenset({"noun", "material", "adjective", "determiner"})  # the kinds of word in a mere name
_KEYS = ("name", "label", "object", "item", "category", "class")
# Keys of counts, of places, and of other figures of an object.
_COUNTS = word_set("count number quantity amount total present presence visible detected exist found")
_PLACES = word_set("bbox box bounding-box coordinate point polygon segmentation mask position location")
_FIGURES = word_set("confidence score probability id index width height area size x y w h x1 y1 x2 y2 age")

# Accents and vowel signs, which `re` does not count as letters.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x3100)) if unicodedata.category(c)[0] == "M")
_TOKEN = re.compile(
    r"[xX]?\d+(?:[xX]|st|nd|rd|th)?(?![^\W\d_])|\d+|"
    rf"[^\W\d_](?:[^\W_]|[{_MARKS}]|['’-](?=[^\W\d_]))*|\t|[^\s_*`~]"
)
_OPEN = "".join(map(chr, range(0xAC00, 0xD7A4, 28)))  # Korean syllables without a final consonant
_HAN, _KATAKANA = "\u3400-\u9fff", "\u30a0-\u30ff"
# Text that is not part of a name: tags, remarks in brackets, questions; in scripts without spaces "the
# picture shows", "there is", places, counts with their measure word, colours, modifiers before 的, and "and"
# unless it may belong to a name (和服, 사과).
_ASIDE = re.compile(
    rf"""<[^<>\n]{{0,80}}> | (?<=\S)[ ]?[(（][^()（）\n]{{0,200}}[)）]
    | (?:^|(?<=[.!?]\s))[^.!?\n]{{1,200}}[?？]
    | [只仅僅]有
    | (?:[这這]|[图圖][中片像里]|画面|照片)\w{{0,8}}?(?:有|包括|包含|是|示了?) | 正?在[{_HAN}]{{1,40}} | \w着
    | (?:画像|写真)\w{{0,3}}?には? | が\w{{0,8}}ます | (?:이미지|사진)에는? | [이가][ ]\w{{1,4}}니다
    | (?:以及|还有|和|及|与)?(?:(?<=\d)|[一二两三四五六七八九十几多])
      [只隻个個条張张把辆輛台匹头頭棵朵座位名艘架件双群枚]の?(?=\w)
    | \w{{1,8}}的(?=\w) | [红黄蓝绿白黑灰棕]色 | (?<=[ぁ-ん{_KATAKANA}{_HAN}])(?:[^\S\r\n]|[_*`~])+(?=\w)
    | (?<=[{_HAN}])(?:(?<![共温饱])和(?![服尚平谐室])|与|(?<![埃普以])及)(?=[{_HAN}])
    | (?<=[{_KATAKANA}{_HAN}])[とや](?=[{_KATAKANA}{_HAN}])
    | (?:(?<=[{_OPEN}])와 | (?<=[가-힣])(?<![{_OPEN}])과)(?=[\s_*`~]+\w)""",
    re.VERBOSE | re.MULTILINE,
)
_REFERENCE = re.compile(r"<\|?(?:ref|object_ref_start|phrase|p)\|?>([^<\n]{1,200})")
_JSON = re.compile(r"[\[{]\s{0,40}[\[{\"']")
_JSON_DEPTH = 50  # of brackets in brackets
_JSON_TOKEN = re.compile(
    r"""(?P<sign>[\[\]{},:]) | "(?P<string>(?:[^"\\\n]|\\.){0,400})"
    | '(?P<quoted>[^\\\n]{0,60}?)'(?=\s{0,9}(?:[:,\]}]|$)) | (?P<scalar>[^\s\[\]{},:"']{1,400})
    | (?P<open>["'])""",
    re.VERBOSE,
)
# Also escapes that are escaped twice, as in JSON quoted in JSON.
_ESCAPE = re.compile(r"\\{1,2}u[dD][89abAB]\w\w\\{1,2}u[dD][c-fC-F]\w\w|\\{1,2}u\w{4}|\\.|.", re.DOTALL)
# Marks around a model's thoughts.
_THOUGHTS = re.compile(
    r"""[<\[◁][|｜]?(?P<end>/|end_(?:of_)?)?(?:\w{1,20}:|(?:begin|start)_(?:of_)?)?
      (?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad)(?:\s[\w="' -]{0,40}(?=>))?[|｜]?[>\]▷]
    | <unused9(?:4>(?:thought\b)?|(?P<unused>5>))
    | <\|channel\|>(?:analysis|(?P<final>final))(?:<\|message\|>)?""",
    re.VERBOSE | re.IGNORECASE,
)
# Words and signs that deny the name before them.
_ABSENT = (
    r"(?:(?:0+(?:\.0+)?(?![.\d]*\d)|zero\b)(?:[ ]?%|[ ](?!in\b)[^\W\d_]{1,20}\b)?|\[\s?\]|\{\s?\}|[❌✗✘]|"
    r"(?:false|null|nil|n/a|absent|missing|nein|non|нет)\b|"
    r"(?:no|not|none)(?:\s(?:present|visible|detected|found|seen|there|shown))?\b|没有|无|否|なし|いいえ|없음|아니요)"
)
_NOT_THERE = re.compile(rf"\s*{_ABSENT}[\s.!]*", re.IGNORECASE)
_THERE = re.compile(
    r"\s*(?:yes|true|present|visible|detected|found|[1-9]\d{0,5}|ja|oui|sí|да|有|是|はい|あり|있음|예)[\s.!]*",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[ \t]{0,9}[\w+-]{1,20}[ \t]{0,9}$", re.MULTILINE)  # its word is a language
_NUMBER = r"[(（]?(?:\d{1,3}|[一二三四五六七八九十]{1,3})[.):、．）：](?!\d)"
_BULLET = r"[-+•·▪◦●○■□–—・‣⁃►▶◆◇★☆※✓✔☑✅→➤]|\*(?=\s)"
# A denied name: "cat: 0", "cats (0)", "| cat | no |", "❌ cat", or under "Not visible:". Also the head of a
# table.
_DENIED = re.compile(
    rf"""(?:^|(?<=[\n,;|:，；：、]))[^\n,;|:，；：、()（）]{{1,80}}
    (?:[:：=|(（]|\s[-–—x×]\s?|\s(?=[0❌✗✘]|없음|なし))[\s*_`"']{{0,8}}{_ABSENT}
    (?=[\s*_`"']{{0,8}}(?:[-–—,.;|()（），；。、\n]|in\b|$))
    | ^[\s*-]{{0,8}}[❌✗✘][^\n,;|]{{1,80}}
    | ^[^\n,]{{1,80}},[ \t]*0[ \t]*$
    | (?:^[\s#*_>-]{{0,8}}|(?<=[.;]\s))(?:absent|missing|(?:objects?\s)?not\s(?:present|visible|detected|
      found|seen|there|shown|in\sthe\s(?:image|picture|photo|scene)))[\s*_]{{0,4}}[:：][^\n.;]*
      (?:\n[ \t]*(?:{_BULLET}|{_NUMBER})[^\n]*)*
    | ^[^\n|]{{0,80}}\|[^\n]{{1,300}}\n(?=[ \t]*\|?[ \t]*:?-{{2,}}:?[ \t]*\|)""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_DENYING = re.compile(r"(?i)(?:^|[\W_])(?:not|no|absent|missing|without|excluded)(?:$|[\W_])")  # JSON keys
# Marks that begin a list item even amid a line: circled numbers and the like (① ⑴ ❶ ㈠ Ⅰ 1️⃣), and 二、.
_NUMBERED = re.compile(
    "[\u2460-\u24ff\u2776-\u2793\u3220-\u3229\u3280-\u3289\u2160-\u217f]|\\d\ufe0f?\u20e3"
    "|[ \t\u3000](?=[一二三四五六七八九十]{1,3}、)"
)
_LETTER = r"(?:[ivxIVX]{1,4}|[^\W\d_])[.)．）](?=\s)"
_LINE_END = re.compile(
    r"[\n\r]+|(?<=\S)[ \t　]{1,4}(?=\d{1,2}[.)．）]\s|[・•●✓✔✅])"
    r"|[;；](?=\s{0,4}[^\W\d_][\w \t]{0,30}[:：]\s)"  # "Kitchen: stove; bedroom: bed"
)
_ITEM = re.compile(rf"([ \t　]*+)(?:[#*_>]\s?){{0,6}}(?:{_BULLET}|{_NUMBER}|{_LETTER})(?=[\s*_]*\w)")
_COMMAS = frozenset(",，;；،")  # not "、", which joins names that are denied together
_INSTEAD = word_set("but however only just instead")  # end a denial
_NUMBERS = word_set("a an one two three four five six seven eight nine ten several some many")
_OR = word_set("or nor oder ou или 或 或者 または")
_COLON = re.compile(r":(?=[\s*_]|$)(?!\s*\d)|：")
_DASH = re.compile(r"(?<=[\s*])[-–—]+\s|—")

# A sign or a whole word after a name, which show that the name is complete.
_ENDED = re.compile(r"""[,;.!?\n…、，；。！？"|)\]}>]|\w\W""")


@dataclass(frozen=True)
class Term:
    """A thing that an answer names."""

    text: str  # lower case, singular
    start: int  # characters [start, end) of the answer spell the name's first mention
    end: int


def parse(answer: str) -> list[Term]:
    """Return the unique terms of an answer in order: at most MAX_TERMS of at most MAX_LENGTH characters.

    The answer may be sentences, a list, JSON or grounding markup. Denied things are left out.
    """
    terms: dict[str, Term] = {}
    for term in _mentions(answer):
        # Drop a text that does not parse as itself when it stands alone.
        if term.text not in terms and [alone.text for alone in _mentions(term.text)] == [term.text]:
            terms[term.text] = term
        if len(terms) == MAX_TERMS:
            break
    return list(terms.values())


def bare(phrase: str) -> str:
    """Strip the article and punctuation from a user's phrase: "The red car!" -> "red car"."""
    return " ".join(re.sub(r"(?i)^\s*(?:the|an?)\s+", "", phrase).strip(" .,;:!?\t\r\n").split())


def named(phrase: str) -> list[Term]:
    """Return the terms in a user's phrase: "man" in "man with a hat". If none, the phrase is the term."""
    text = _barred(_ASIDE, phrase)
    return _label(text, 0, len(text)) or [Term(phrase.lower(), 0, len(phrase))]


def without_thoughts(answer: str) -> str:
    """Replace each character of a model's thoughts (<think>...</think>) by a line end.

    Without an end mark, the thoughts go on to the end of the text. Without a begin mark, they start with it.
    """
    begin: int | None = None
    for mark in _THOUGHTS.finditer(answer):
        if mark.lastgroup:
            begin = begin or 0
            answer = answer[:begin] + "\n" * (mark.end() - begin) + answer[mark.end() :]
            begin = None
        elif begin is None:
            begin = mark.start()
    return answer if begin is None else answer[:begin] + "\n" * (len(answer) - begin)


def without_cut_name(answer: str) -> str:
    """Drop the name at the end of a cut answer, which may be incomplete ("police" of "police officer")."""
    cuts = [term.start for term in _mentions(answer) if not _ENDED.search(answer, term.end)]
    if begin := _JSON.search(answer):
        quotes = (token for token in _JSON_TOKEN.finditer(answer, begin.start()) if token["open"])
        cuts += [quote.start() for quote in quotes if quote[0] not in answer[quote.end() :]]
        cuts += _open_key(answer, begin.start())
    return answer[: min([*cuts, len(answer)])]


def _open_key(answer: str, start: int) -> list[int]:
    """Return the start of a JSON object's last pair if its value is missing or may be cut, else []."""
    opened: list[str] = []
    pair: list[re.Match[str]] = []
    for token in _JSON_TOKEN.finditer(answer, start):
        sign = token["sign"]
        if sign in (None, ":"):
            pair.append(token)
            continue
        pair = []
        if sign in ("[", "{"):
            opened.append(sign)
        elif sign != "," and opened:
            opened.pop()
    if opened[-1:] != ["{"] or not pair or pair[0][0].strip("\"'") in _KEYS:
        return []
    word = pair[-1].end() == len(answer) and pair[-1][0].isalpha()
    return [pair[0].start()] if len(pair) < 3 or word or any(token["open"] for token in pair) else []


def _mentions(answer: str) -> Iterator[Term]:
    """Yield every mention of a thing in an answer, repeats included, except in thoughts."""
    text = without_thoughts(answer)
    if references := [match.span(1) for match in _REFERENCE.finditer(text)]:
        text = _barred(_ASIDE, text)
        return chain.from_iterable(_label(text, *span) for span in references)
    strings = _json(text)
    if strings is not None:
        return chain.from_iterable(map(_named_in, strings))
    text = _barred(_DENIED, _barred(_FENCE, text))
    text = _NUMBERED.sub(lambda match: "\n" + " " * (len(match[0]) - 1), text)
    return _lines(_barred(_ASIDE, text))


def _barred(pattern: re.Pattern[str], text: str) -> str:
    """Replace each character of each match by "|", which ends a name. The length stays the same."""
    return pattern.sub(lambda match: "|" * len(match[0]), text)


def _label(text: str, start: int, end: int) -> list[Term]:
    """Return the terms in a label, text[start:end]: all if it has a comma, else the first."""
    names = [*_names(text, start, end)]
    return names if "," in text[start:end] else names[:1]


@dataclass(frozen=True)
class _String:
    """A string in a JSON answer, with the position of each character."""

    value: str
    places: Sequence[int]  # in the answer: of each character, and of the end

    def __getitem__(self, part: slice) -> "_String":
        start, stop, _ = part.indices(len(self.value))
        return _String(self.value[start:stop], self.places[start : stop + 1])


_Container = list[tuple[_String | None, "_Node"]]  # a list, in which the keys are None, or an object
_Node = _String | _Container | str  # str: a number, true, false or null


def _named_in(string: _String) -> list[Term]:
    text, places = _barred(_ASIDE, string.value), string.places
    return [Term(t.text, places[t.start], places[t.end]) for t in _label(text, 0, len(text))]


def _json(text: str) -> list[_String] | None:
    """Return the strings that name things in a JSON answer, in order; None for an answer without JSON.

    Code fences, cut JSON, Python's quotes and one object per line are accepted. Python's `json` rejects
    these and gives no positions, so it only decodes the escapes.
    """
    root, at = _Container(), 0
    while begin := _JSON.search(text, at):
        value, at = _json_value(text, begin.start())
        root.append((None, value))
    if not _has_string(root):
        return None
    found: dict[str, list[_String]] = {}
    _sort(root, "", found, counting=True)
    return next((found[slot] for slot in (*_KEYS, "listed", "counted", "") if slot in found), [])


def _json_value(text: str, start: int) -> tuple[_Container, int]:
    """Return the JSON list or object that begins at `start`, and the position of its end or cut."""
    opened: list[_Container] = []
    key: _String | None = None
    for token in _JSON_TOKEN.finditer(text, start):
        sign = token["sign"]
        if token["open"]:
            continue
        if sign is None or sign in "[{":
            node: _Node = _Container() if sign else _scalar(token)
            if opened:
                opened[-1].append((key, node))
            key = None
            if isinstance(node, list):
                opened.append(node)
        elif sign == ":":
            last = opened[-1][-1:]
            if last and last[0][0] is None and isinstance(last[0][1], _String):
                key = last[0][1]
                opened[-1].pop()
        elif sign == ",":
            key = None
        else:
            top = opened.pop()
            if not opened:
                return top, token.end()
        if len(opened) > _JSON_DEPTH:
            break
    return opened[0], len(text)


def _scalar(token: re.Match[str]) -> _String | str:
    if token["scalar"] is not None:
        return token["scalar"]
    name = "quoted" if token["string"] is None else "string"
    start, end = token.span(name)
    if "\\" not in token[name]:
        return _String(token[name], range(start, end + 1))
    parts = [*_ESCAPE.finditer(token.string, start, end)]
    return _String("".join(map(_unescaped, parts)), [*(part.start() for part in parts), end])


def _unescaped(part: re.Match[str]) -> str:
    """Return the character of a JSON escape: its last character if invalid, a space if unprintable."""
    try:
        escape = part[0].replace("\\\\u", "\\u")
        character: str = json.loads(f'"{escape}"') if escape.startswith("\\") else escape
    except ValueError:
        character = part[0][-1]
    return character if len(character) == 1 and character >= " " else " "


def _has_string(node: _Node) -> bool:
    items = node if isinstance(node, list) else []
    return isinstance(node, _String) or any(key is not None or _has_string(value) for key, value in items)


def _sort(node: _Container, key: str, found: dict[str, list[_String]], *, counting: bool) -> None:
    """Add a container's strings to `found`, by kind. Skip those of things that are denied.

    The kinds are a key in _KEYS, "listed" (list items), "counted" (keys that name things) and "" (others).
    `key` is the nearest key above. Only with `counting` may keys name things.
    """
    items = [(_key(string) if string else key, string, value) for string, value in node]
    absent = any(name in _COUNTS | _PLACES and _is_absent(value) for name, _, value in items)
    for name, string, value in items:
        if string is None:
            if isinstance(value, _String):
                found.setdefault(name if name in _KEYS else "listed", []).append(value)
            elif isinstance(value, list):
                _sort(value, name, found, counting=counting)
            continue
        if _is_absent(value) or (absent and name in _KEYS) or _DENYING.search(string.value):
            continue
        counted = counting and name not in _FIGURES and _counts(name, value)
        if counted:
            found.setdefault("counted", []).append(_counted(string))
        if isinstance(value, list):
            named = counted and bool(_named_in(_counted(string)))
            _sort(value, name, found, counting=counting and not named)
        elif isinstance(value, _String) and not (counted and name not in _KEYS):
            found.setdefault(name if name in _KEYS else "", []).append(value)


def _key(name: _String) -> str:
    """Normalise a key: "bbox_2d" -> "bbox", "object_1" -> "object", "is_present" -> "present"."""
    return singular(re.sub(r"[_\d]+d?$", "", _counted(name).value.lower()).rpartition("_")[2])


def _counted(name: _String) -> _String:
    """Return the part of a key that names the object: "dog" of "num_dogs" and of "dog_count"."""
    match = re.fullmatch(r"(?i)(?:(?:num|number|count)_(?:of_)?)?(.*?)(?:_(?:count|number|num))?", name.value)
    return name[slice(*match.span(1))] if match else name


def _is_absent(value: _Node) -> bool:
    """Return whether a value means that the thing is absent: 0, false, null, [], {}, "No", {"count": 0}."""
    if isinstance(value, list):
        told = [(_key(key), item) for key, item in value if key is not None]
        # An object may be named "box" or "mask", so places count only among counts and figures.
        telling = _COUNTS if {name for name, _ in told} - _COUNTS - _PLACES - _FIGURES else _COUNTS | _PLACES
        return not value or any(name in telling and _is_absent(item) for name, item in told)
    text = value if isinstance(value, str) else value.value
    return not text.strip() or _NOT_THERE.fullmatch(text) is not None


def _counts(name: str, value: _Node) -> bool:
    """Return whether a value shows that its key names a thing: a number, true, "yes", boxes, properties."""
    if isinstance(value, str):
        return name not in _COUNTS
    if isinstance(value, _String):
        return name not in _COUNTS and _THERE.fullmatch(value.value) is not None
    if any(isinstance(item, _String) for key, item in value if key is None) or name in _PLACES:
        return False
    # An object of counts is a place or a kind, and its keys are the things.
    others = _COUNTS | _PLACES | _FIGURES | _PROPERTIES
    things = [item for key, item in value if key is not None and _key(key) not in others]
    return not (things and all(isinstance(item, str) for item in things))


def _lines(text: str) -> Iterator[Term]:
    """Yield the terms of each line: dog for "Dog: brown", dog and cat for "Animals: dog, cat"."""
    cuts = [0, *(at for match in _LINE_END.finditer(text) for at in match.span()), len(text)]
    lines = []
    for start, end in zip(cuts[::2], cuts[1::2], strict=True):
        item = _ITEM.match(text, start, end)
        title = text.startswith("#", start) or text[start:end].rstrip(" *_").endswith((":", "："))
        body = item.end() if item else end - len(text[start:end].lstrip("# "))
        lines.append((body, end, len(item[1]) if item else -2 if title else -1))
    heading: tuple[Term, int] | None = None  # a plural, which is not a term if things are listed under it
    for (start, end, depth), (_, _, below) in zip(lines, [*lines[1:], (0, 0, -3)], strict=True):
        if heading and depth <= heading[1]:
            yield heading[0]
            heading = None
        colon = _COLON.search(text, start, end)
        if not colon and (depth >= 0 or text.startswith("**", start)):
            colon = _DASH.search(text, start, end)
        stop, on = colon.span() if colon else (end, end)
        names = [*_names(text, start, stop)]
        words, kinds = _read(text, start, stop)
        if not words or kinds - _NAME or len(names) > 1:
            names += _names(text, on, end)
        elif colon and words[-1] in _PROPERTIES:
            names = []
        elif not names:
            names = [*_names(text, on, end)]
        else:
            several = words[-1] in _GROUPS or singular(words[-1]) != words[-1]
            told, kinds = [*_names(text, on, end)], _read(text, on, end)[1]
            listed = len(told) > 1 and names[0].text != told[0].text and not kinds - _NAME - {"sign", "and"}
            if not kinds and (depth == -2 or (several and below > depth)):
                heading, names = (names[0], depth), []
            elif kinds and (words[-1] in _GROUPS or listed):
                names = told
        if names:
            heading = None
        yield from names
    if heading:
        yield heading[0]


def _read(text: str, start: int, end: int) -> tuple[list[str], set[str]]:
    words = [token[0].lower() for token in _TOKEN.finditer(text, start, end)]
    return words, {kind_of(words, i) for i in range(len(words))}


def _names(text: str, start: int, end: int) -> Iterator[Term]:
    """Yield the terms in sentences: runs of nouns, without attributes and things that are denied."""
    tokens = [*_TOKEN.finditer(text, start, end)]
    words = [*(token[0].lower() for token in tokens), "."]
    run: list[int] = []
    made = False  # the run is only a material so far
    definite = False  # an article or adjective precedes the run
    # A thing was named; an attribute of it follows; a part or content of it follows; a denial is open.
    named = told = part = denied = False
    for i, word in enumerate(words):
        kind = kind_of(words, i, words[run[-1]] if run and not made else "", told)
        noun = kind in ("noun", "material")
        if noun and not (run and singular(words[run[-1]]) == singular(word)):  # "dog dogs dog" is one
            if made:
                run.clear()
            run.append(i)
            made = kind == "material" and len(run) == 1
            continue
        if run and kind == "determiner" and word.isalpha() and _tells(words, run, definite):
            run.pop()  # "a man rides a horse"
        if re.search("['’]s$", word) or (made and kind == "adjective"):
            run.clear()  # "a police man's hat", "a light blue car"
        term = _term([tokens[j] for j in run], word)
        if term and (denied or part or (told and singular(words[run[-1]]) == words[run[-1]])):
            term = None
        if term:
            named = True
            yield term
        part = part and not run
        run, made = [i] if noun else [], kind == "material"
        definite = kind in ("determiner", "adjective")
        denied = denied or kind == "negation"
        denied = denied and word not in _INSTEAD and _goes_on(words, i)
        if kind in ("function", "is", "sign", "verb"):
            # The content of a cup, a material or an attribute is not another thing.
            part = word == "without" or (word == "of" and (bool(term) or words[i - 1] in _MADE))
            told = kind == "is" and named and words[i - 1] not in ("there", "here")
            denied = denied and word not in _STOPS
            named = named and word not in _STOPS
        elif kind == "determiner":
            told = False


def _goes_on(words: list[str], i: int) -> bool:
    """Return whether a denial ("no") also applies to the words after words[i].

    It ends at "and" before a number. It ends at a comma, except in "no people, animals, or cars".
    """
    if words[i] == "and":
        return not words[i + 1].isdigit() and words[i + 1] not in _NUMBERS
    if words[i] not in _COMMAS:
        return True
    for word in words[i + 1 : i + 40]:
        if word in _OR:
            return True
        if word in _STOPS | _INSTEAD or kind_of([word], 0) in ("and", "is", "negation"):
            break
    return False


def _tells(words: list[str], run: list[int], definite: bool) -> bool:
    """Return whether the last word of a run of nouns is a verb, such as "rides" in "a man rides a horse"."""
    last, before = words[run[-1]], words[run[-1] - 1]
    base = singular(last) == last
    if len(run) > 1:
        return base == (singular(before) != before)
    return not definite and (not base or last.endswith("ing") or before == "to")


def _term(run: list[re.Match[str]], after: str) -> Term | None:
    """Return the term of a run of nouns; None if it is empty or too long, or its last noun is no thing."""
    if not 0 < len(run) <= MAX_WORDS:
        return None
    name = singular(" ".join(token[0].lower() for token in run))
    head = name.rpartition(" ")[2]
    empty = head in _EMPTY or (after == "of" and head in _MEASURES) or not any(map(str.isalpha, head))
    limit = MAX_HAN if re.search(f"[{_HAN}{_KATAKANA}]", name) else MAX_LENGTH
    return None if empty or len(name) > limit else Term(name, run[0].start(), run[-1].end())
