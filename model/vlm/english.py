"""Tag English words by rules, find singulars, and look up synonyms (synonyms.txt).

The tagger has lists of the closed word classes (articles, prepositions, auxiliaries) and suffixes of the open
ones. Plurals have rules of their own, since inflect 7.6 changes 14 of the 24 singular names in the tests
(bus -> bu, lens -> len, gas -> ga).
"""

import re
from functools import lru_cache
from pathlib import Path


def word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Looked up as written and in the singular, so that the "s" of a verb needs no entry of its own.
_KINDS = {
    word: kind
    for kind, words in {
        "determiner": """a an the this these those its his her their my your our some any each every
            both all another other several many few multiple various more most one two three four five six
            seven eight nine ten eleven twelve ein eine der das un une le la les el los las una""",
        "function": """of in on at under with without near by behind beside between over above below
            from to into onto around across along through inside outside for off up down out like as within
            toward against among during next atop about than or but while where which what who that when if
            because so also too very well however only just except such und et y и 및 i you he she it they we
            me him them us there here am be been being has have had do does did could may might must will
            would should yes sure certainly okay etc see seen say show shown contain include feature depict
            sit sat stood lie lay wear wore hold held carry ride rode eat ate make made give create add
            suggest indicate provide consist capture set follow hang hung identify detect describe help
            hope someone""",
        "is": "is are was were look appear seem",
        "and": "and",
        "negation": """no not cannot never neither nor nothing none zero 0 unable sorry unfortunately
            please apologize ai let kein keine keinen aucun aucune ningún ninguna nessun nessuna нет""",
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
_COMPOUNDS = word_set(
    """hot-dog hot-tub hot-air potted-plant stuffed-animal green-bean green-onion high-chair
    golden-retriever red-panda light-bulb light-switch light-pole orange-juice running-shoe sleeping-bag
    walking-stick playing-card"""
)
_IRREGULAR = {
    "mice": "mouse", "geese": "goose", "teeth": "tooth", "feet": "foot", "children": "child", "oxen": "ox",
    "people": "person", "cacti": "cactus", "octopi": "octopus", "axes": "axe", "taxis": "taxi", "tvs": "tv",
}  # fmt: skip
_UNCHANGED = word_set(
    """glasses sunglasses eyeglasses spectacles rhinoceros scissors pants shorts jeans trousers goggles
    binoculars tongs pliers clothes series species news lens canvas atlas ananas glas gras"""
)
SYNONYMS = {
    name: group
    for line in Path(__file__).with_name("synonyms.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
    for group in [frozenset(line.split(", "))]
    for name in group
}
# Endings of plurals and their singulars, likeliest first; the last three are for words without a rule.
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


def singulars(name: str) -> list[str]:
    """Return the possible singulars of an English name in lower case, likeliest first."""
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
        # One wears glasses, but drinks from a wine glass. Other languages end singulars in "s".
        if (word in _UNCHANGED and not (head and word == "glasses")) or not word.isascii():
            forms.insert(0, word)
    return [f"{head}{space}{form}" for form in dict.fromkeys(forms)]


@lru_cache(maxsize=1024)
def singular(name: str) -> str:
    """Return the likeliest singular of an English name in lower case: "wine glasses" -> "wine glass"."""
    best = singulars(name)[0]
    return best if best == name else singular(best)


def synonyms(name: str) -> frozenset[str]:
    """Return the synonyms of an English name in lower case, and the name itself."""
    return SYNONYMS.get(name, frozenset((name,)))


def kind_of(words: list[str], i: int, run: str = "", told: bool = False) -> str:
    """Return the word class of words[i]: a key of the table of kinds, "verb" or "sign" (punctuation).

    `run` is the noun right before it, or "". `told` is true after a form of "be", as in "a dog is sitting".
    """
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
