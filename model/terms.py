"""Answer text -> terms: the things that a VLM named, with the characters that spell them.

No grammar, only its cheap half: English names stand between words of closed classes (articles,
prepositions, auxiliaries) and lose what describes them (adjectives, participles). Other languages are
read as lists.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

MAX_TERMS = 50
MAX_LENGTH = 60  # characters of a term
MAX_WORDS = 4
MAX_HAN = 12  # characters of a term in Chinese or Japanese script; longer is a sentence


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Looked up as said and in the singular, so that the "s" of a verb needs no entry of its own.
_KINDS = {
    word: kind
    for kind, words in {
        "determiner": """a an the this these those its his her their my your our some any each every
            both all another other several many few multiple various more most one two three four five six
            seven eight nine ten eleven twelve ein eine der das un une le la les el los las una""",
        "function": """of in on at under with without near by behind beside between over above below
            from to into onto around across along through inside outside for off up down out like as within
            toward against among during next atop about than or but while where which what who that when if
            because so also too very well however only except such und et y и 및 i you he she it they we me
            him them us there here am be been being has have had do does did could may might must will
            would should yes sure certainly okay etc see seen say show shown contain include feature depict
            sit sat stood lie lay wear wore hold held carry ride rode eat ate make made give create add
            suggest indicate provide consist capture set follow hang hung identify detect describe help
            hope someone""",
        "is": "is are was were look appear seem",
        "and": "and",
        "negation": "no not cannot never nothing none unable sorry unfortunately please apologize ai let",
        "adjective": """red green blue yellow black white brown gray grey pink purple beige golden dark
            bright pale blond blonde large small big tiny huge little tall short long wide narrow thick
            thin old young new modern vintage round square flat empty full open closed clean dirty clear
            shiny fluffy furry busy calm cute cozy lush hot cold fresh dry wet sunny cloudy blurry rocky
            grassy snowy happy natural wooden metallic left right upper lower main central different
            similar single same first second third last whole entire overall visible blank broken male
            female""",
        # What things are made of: dropped before another noun only.
        "material": "glass stone brick metal wood concrete plastic leather steel orange silver gold light",
        # A verb where it agrees with the word before it: "men stand", "a man stands", but "a TV stand".
        "verb or noun": "stand walk run play fly rest lean drive jump sleep graze grow float smile present",
        # Names that end like participles or adverbs.
        "noun": """building painting railing ceiling awning crossing clothing earring legging dumpling
            string spring swing ring king wing thing icing family assembly hundred moped""",
    }.items()
    for word in words.split()
}
_SHAPES = [
    (re.compile(shape), kind)
    for shape, kind in (
        (r"\d.*|x\d.*|.*['’]s", "determiner"),
        (r"[\W_].*", "sign"),
        (r".*n['’]t|.*(?:抱歉|对不起|無法|无法|没有|沒有|ません|없습니다|죄송).*", "negation"),
        (r".*['’](?:m|re|ve|ll|d)|[a-z]|.*[有着了到]", "function"),
        (r"[a-z-]{3,}(?:ous|ful|less|-like|(?<!e)(?<!sl)(?<![^b]b)ed|[a-z](?<!f)ly)", "adjective"),
        (r"[a-z-]{2,}ing", "verb"),
        (r".*", "noun"),
    )
]
_COMPOUNDS = _set(
    """hot-dog hot-tub hot-air potted-plant stuffed-animal green-bean green-onion high-chair
    golden-retriever red-panda light-bulb light-switch light-pole orange-juice running-shoe sleeping-bag
    walking-stick playing-card"""
)
_STOPS = frozenset(".!?;。！？；…")
# Heads that name no thing, that measure what follows their "of", or whose "of" leads to no thing.
_EMPTY = _set(
    """object item thing image picture photo photograph close-up scene view background foreground side
    center centre middle top bottom front back corner edge part area section distance list answer name
    label type kind color colour size shape position location way addition total number count variety
    couple atmosphere moment day time sense feeling mood style setting detail element content subject pair
    set group piece caption description 物体 物品 图片 图像 照片 背景 旁边 물체"""
)
_MEASURES = _set("bunch slice row stack pile crowd herd flock sheet line bit body lot family")
_MADE = _set("made full sense feeling touch")
# What stands before a colon: things of a kind, listed after it, or a property, told after it.
_GROUPS = _set("animals vehicles people plants furniture food clothing accessories decor")
_PROPERTIES = _set("color colour size shape position location material action condition count number")
_NAME = frozenset({"noun", "material", "adjective", "determiner"})  # the kinds of word in a mere name
_KEYS = ("name", "label", "object", "item", "category", "class")

_IRREGULAR = {
    "mice": "mouse", "geese": "goose", "teeth": "tooth", "feet": "foot", "children": "child", "oxen": "ox",
    "people": "person", "cacti": "cactus", "octopi": "octopus", "axes": "axe", "taxis": "taxi", "tvs": "tv",
}  # fmt: skip
_UNCHANGED = _set(
    """glasses sunglasses scissors pants shorts jeans trousers goggles binoculars tongs pliers clothes
    series species news lens canvas atlas ananas glas gras"""
)
# What the end of a plural may stand for, likeliest first; the last three where no rule knows the word.
_PLURALS = [
    (re.compile(plural + "$"), end)
    for plural, end in (
        (r"(kni|wi|(?<!o)li)ves", r"\1fe"),
        (r"(lea|loa|hoo|thie|scar|wol|hel|cal|hal|sel|\bel)ves", r"\1f"),
        (r"(?<=..)(?<!ook)(?<!mov)(?<!ood)(?<!own)(?<!oth)(?<!omb)(?<!elf)ies", "y"),
        (r"(ss|[^o]us|lens|iris|nvas|tlas|x|sh|(?<!qui)(?<!sta)(?<!lan)(?<!ada)ch)es", r"\1"),
        (r"(?<!sh)(?<!\bt)(?<!\bh)(?<!can)oes", "o"),
        (r"s", ""),
        (r"ies", "y"),
        (r"ves", "f"),
        (r"ves", "fe"),
        (r"es", ""),
    )
]

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


def singulars(name: str) -> list[str]:
    """What an English name in lower case may be the plural of, likeliest first; itself where it is none."""
    head, space, word = name.rpartition(" ")
    if word in _IRREGULAR:
        forms = [_IRREGULAR[word]]
    elif re.fullmatch(r"(?:.*(?:wo|[^aio]))?men", word):
        forms = [word[:-2] + "an"]
    elif word == "dice":
        forms = [word, "die"]
    elif len(word) < 4 or not word.endswith("s") or re.search("[sui'’-]s$", word):
        forms = [word]
    else:
        forms = [plural.sub(end, word) for plural, end in _PLURALS if plural.search(word)]
        # One wears glasses, but drinks from a wine glass. Other languages end other words in "s".
        if (word in _UNCHANGED and not (head and word == "glasses")) or not word.isascii():
            forms.insert(0, word)
    return [f"{head}{space}{form}" for form in dict.fromkeys(forms)]


@lru_cache(maxsize=1024)
def singular(name: str) -> str:
    """The likeliest singular of an English name in lower case: "wine glasses" -> "wine glass"."""
    best = singulars(name)[0]
    return best if best == name else singular(best)


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
    return words, {_kind(words, i) for i in range(len(words))}


def _kind(words: list[str], i: int, run: str = "", told: bool = False) -> str:
    """What words[i] is, right after the noun `run` if not "", or after a word like "is" if `told`."""
    word, one = words[i], singular(words[i])
    before, after = words[i - 1] if i else "", words[i + 1] if i + 1 < len(words) else ""
    if f"{word}-{singular(after)}" in _COMPOUNDS:
        return "noun"
    kind = _KINDS.get(word) or _KINDS.get(one)
    if not kind:
        kind = next(k for shape, k in _SHAPES if shape.fullmatch(word) or shape.fullmatch(one))
    if kind == "verb" and not told and not run:
        stem = re.sub(r"(.)\1$", r"\1", one[:-3])  # sitting, riding, lying
        known = {_KINDS.get(verb) for verb in (one[:-3], stem, stem + "e", stem[:-1] + "ie")}
        return "adjective" if known & {"function", "is", "verb or noun"} else "noun"
    if kind == "verb or noun":
        return "verb" if run and (word == one) == (singular(run) != run) else "noun"
    if word == "can" and (before in ("i", "we", "you", "that") or after in ("be", "see", "also")):
        return "function"
    return kind


def _names(text: str, start: int, end: int) -> Iterator[Term]:
    """The names in some sentences: runs of nouns, without what is told of them or denied."""
    tokens = [*_TOKEN.finditer(text, start, end)]
    words = [*(token[0].lower() for token in tokens), "."]
    run: list[int] = []
    made = False  # the run is a material so far
    definite = False  # an article or adjective stands before it
    named = told = part = denied = False  # a thing was named, is told of, consists of, or is denied
    for i, word in enumerate(words):
        kind = _kind(words, i, words[run[-1]] if run and not made else "", told)
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
