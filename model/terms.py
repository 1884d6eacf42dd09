"""Answer text -> terms: the things that a VLM named, with the characters that spell them.

Sentences are read in English (model/english.py); other languages are read as lists.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from model.english import kind_of, singular, word_set

MAX_TERMS = 50
MAX_LENGTH = 60  # characters of a term
MAX_WORDS = 4
MAX_HAN = 12  # characters of a term in Chinese or Japanese script; longer is a sentence


_STOPS = frozenset(".!?;。！？；…")
# Heads that name no thing, that measure what follows their "of", or whose "of" leads to no thing.
_EMPTY = word_set(
    """object item thing image picture photo photograph close-up scene view background foreground side
    center centre middle top bottom front back corner edge part area section distance list answer name
    label type kind color colour size shape position location way addition total number count variety
    couple atmosphere moment day time sense feeling mood style setting detail element content subject pair
    set group piece caption description 物体 物品 图片 图像 照片 背景 旁边 물체"""
)
_MEASURES = word_set("bunch slice row stack pile crowd herd flock sheet line bit body lot family")
_MADE = word_set("made full sense feeling touch")
# What stands before a colon: things of a kind, listed after it, or a property, told after it.
_GROUPS = word_set("animals vehicles people plants furniture food clothing accessories decor")
_PROPERTIES = word_set("color colour size shape position location material action condition count number")
_NAME = frozenset({"noun", "material", "adjective", "determiner"})  # the kinds of word in a mere name
_KEYS = ("name", "label", "object", "item", "category", "class")

# Accents and vowel signs, which are no letters to `re`.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x3100)) if unicodedata.category(c)[0] == "M")
_TOKEN = re.compile(
    r"[xX]?\d+(?:[xX]|st|nd|rd|th)?(?![^\W\d_])|\d+|"
    rf"[^\W\d_](?:[^\W_]|[{_MARKS}]|['’-](?=[^\W\d_]))*|\t|[^\s_*`~]"
)
_OPEN = "".join(map(chr, range(0xAC00, 0xD7A4, 28)))  # Korean syllables without a final consonant
_HAN, _KATAKANA = "\u3400-\u9fff", "\u30a0-\u30ff"
# What is no part of a name: tags, remarks in brackets, questions; in scripts without spaces "the picture
# shows", "there is", where a thing is, its count with the measure word, its colour, what precedes 的, and
# "and" unless it may belong to a name (和服, 사과).
_ASIDE = re.compile(
    rf"""<[^<>\n]{{0,80}}> | (?<=\S)[ ]?[(（][^()（）\n]{{0,200}}[)）]
    | (?:^|(?<=[.!?]\s))[^.!?\n]{{1,200}}[?？]
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
_STRING = re.compile(
    r"""(:?)\s{0,9}(?:"([^"\\\n]{0,400})"|'([^\\\n]{0,60}?)')(?=\s{0,9}(?:(:)\s{0,9}([\d{]?)|[,\]}]|$))"""
)
_LINE_END = re.compile(r"[\n\r]+|(?<=\S)[ \t]{1,4}(?=\d{1,2}[.)]\s)")
_ITEM = re.compile(r"([ \t]*+)(?:[#*_>]\s?){0,6}(?:[-+•·▪◦●○■–—]|\*(?=\s)|\d{1,3}[.):、](?!\d))(?=[\s*_]*\w)")
_COLON = re.compile(r":(?=[\s*_]|$)(?!\s*\d)|：")
_DASH = re.compile(r"(?<=[\s*])[-–—]+\s|—")


@dataclass(frozen=True)
class Term:
    text: str  # lower case, singular
    start: int  # characters [start, end) of the answer: the name as first said
    end: int


def parse(answer: str) -> list[Term]:
    """The things that an answer names, in its order, each once: at most MAX_TERMS of MAX_LENGTH characters.

    Reads sentences, lists, JSON and grounding markup; what is denied or refused names nothing.
    """
    found: dict[str, Term] = {}
    for term in _mentions(answer):
        # A name reads as itself where it stands alone; nothing else is one.
        if term.text not in found and [alone.text for alone in _mentions(term.text)] == [term.text]:
            found[term.text] = term
        if len(found) == MAX_TERMS:
            break
    return list(found.values())


def bare(phrase: str) -> str:
    """A person's phrase without what leads it in or ends it: "The red car!" -> "red car"."""
    return " ".join(re.sub(r"(?i)^\s*(?:the|an?)\s+", "", phrase).strip(" .,;:!?\t\r\n").split())


def named(phrase: str) -> list[Term]:
    """What a person's phrase asks for: of "man with a hat" only the man, of "dog, cat" both.

    A phrase without a name is one, whole.
    """
    text = _ASIDE.sub(lambda match: "|" * len(match[0]), phrase)
    return _label(text, 0, len(text)) or [Term(phrase.lower(), 0, len(phrase))]


def _mentions(answer: str) -> Iterator[Term]:
    """Every name in an answer as often as it is said; a model's thoughts before the answer are left out."""
    thought, mark, _ = answer.rpartition("</think>")
    text = "\n" * len(thought + mark) + answer[len(thought + mark) :]
    labels = [match.span(1) for match in _REFERENCE.finditer(text)]
    text = _ASIDE.sub(lambda match: "|" * len(match[0]), text)
    labels = labels or _json(text)
    return chain.from_iterable(_label(text, *span) for span in labels) if labels else _lines(text)


def _label(text: str, start: int, end: int) -> list[Term]:
    """The names in a string that was marked as one: of "man with a hat" only the man."""
    names = [*_names(text, start, end)]
    return names if "," in text[start:end] else names[:1]


def _json(text: str) -> list[tuple[int, int]]:
    """Where the labels of a JSON answer stand, also if fenced, cut short or in Python's quotes."""
    begin = _JSON.search(text)
    found: dict[str, list[tuple[int, int]]] = {}
    key = ""
    for match in _STRING.finditer(text, begin.start()) if begin else ():
        group = 2 if match[2] is not None else 3
        if match[4]:
            key = singular(re.sub(r"[_\d]+$", "", match[group].lower()).rpartition("_")[2])
            slot = "counted" if match[5] else ""
        else:
            slot = key if key in _KEYS else "" if match[1] and key else "listed"
        found.setdefault(slot, []).append(match.span(group))
    return next((found[slot] for slot in (*_KEYS, "listed", "counted", "") if slot in found), [])


def _lines(text: str) -> Iterator[Term]:
    """The names line by line: of "Dog: brown, on the grass" the dog, of "Animals: dog, cat" those two."""
    cuts = [0, *(at for match in _LINE_END.finditer(text) for at in match.span()), len(text)]
    lines = []
    for start, end in zip(cuts[::2], cuts[1::2], strict=True):
        item = _ITEM.match(text, start, end)
        title = text.startswith("#", start) or text[start:end].rstrip(" *_").endswith((":", "："))
        body = item.end() if item else end - len(text[start:end].lstrip("# "))
        lines.append((body, end, len(item[1]) if item else -2 if title else -1))
    heading: tuple[Term, int] | None = None  # a plural, which is no term if things are listed under it
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
        elif words[-1] in _GROUPS or singular(words[-1]) != words[-1]:
            told, kinds = [*_names(text, on, end)], _read(text, on, end)[1]
            listed = len(told) > 1 and names[0].text != told[0].text and not kinds - _NAME - {"sign", "and"}
            if not kinds and (depth == -2 or below > depth):
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
    """The names in some sentences: runs of nouns, without what is told of them or denied."""
    tokens = [*_TOKEN.finditer(text, start, end)]
    words = [*(token[0].lower() for token in tokens), "."]
    run: list[int] = []
    made = False  # the run is a material so far
    definite = False  # an article or adjective stands before it
    named = told = part = denied = False  # a thing was named, is told of, consists of, or is denied
    for i, word in enumerate(words):
        kind = kind_of(words, i, words[run[-1]] if run and not made else "", told)
        noun = kind in ("noun", "material")
        if noun and not (run and singular(words[run[-1]]) == singular(word)):  # "dog dogs dog" is one
            if made:
                run.clear()
            run.append(i)
            made = kind == "material" and len(run) == 1
            continue
        if run and kind == "determiner" and word[0].isalpha() and _tells(words, run, definite):
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
        if kind in ("function", "is", "sign", "verb"):
            # What a cup is of, or a thing made of, is no other thing; neither is what a thing is.
            part = word == "without" or (word == "of" and (bool(term) or words[i - 1] in _MADE))
            told = kind == "is" and named and words[i - 1] not in ("there", "here")
            denied = denied and word not in _STOPS and word not in ("but", "however")
            named = named and word not in _STOPS
        elif kind == "determiner":
            told = False


def _tells(words: list[str], run: list[int], definite: bool) -> bool:
    """Whether the last word of a run, right before an article, is a verb: it agrees with the one before."""
    last, before = words[run[-1]], words[run[-1] - 1]
    base = singular(last) == last
    if len(run) > 1:
        return base == (singular(before) != before)
    return not definite and (not base or last.endswith("ing") or before == "to")


def _term(run: list[re.Match[str]], after: str) -> Term | None:
    """What a run of nouns names; None where it is too long or its head is no thing, or measures one."""
    if not 0 < len(run) <= MAX_WORDS:
        return None
    name = singular(" ".join(token[0].lower() for token in run))
    head = name.rpartition(" ")[2]
    empty = head in _EMPTY or (after == "of" and head in _MEASURES) or not any(map(str.isalpha, head))
    limit = MAX_HAN if re.search(f"[{_HAN}{_KATAKANA}]", name) else MAX_LENGTH
    return None if empty or len(name) > limit else Term(name, run[0].start(), run[-1].end())
