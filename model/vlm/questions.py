"""Choose the questions about an image, with the project's label names as a hint if the options say so."""

from collections.abc import Callable, Sequence

from model.deadline import NEVER, Deadline
from model.options import ASK, Options
from model.types import AttentionError, Image
from model.vlm.remote_vlm import RemoteVLM

# VL-SAM section 3.6, word for word.
ASK_FOR_QUESTIONS = (
    "If we want you to list all possible objects in the given image, what questions should we ask? "
    "Please give 10 questions you prefer."
)
MAX_NAMES, MAX_NAME = 200, 60  # names of a vocabulary, and characters of each
_HINT = " Name only these, where they are there: {}."

# A question, and a remote VLM's answer to it. None: the local VLM answers.
RemoteAnswer = tuple[str, str | None]


def questions(ask: Callable[[str], str], options: Options, vocabulary: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the questions to ask about an image, as `options` define them.

    `vocabulary` holds label names, which some options add to the questions. `ask` sends a question about
    the image to a VLM. It is called only if the VLM is to propose the questions. Raises AttentionError if
    the VLM proposes none.
    """
    plain = options.questions
    if plain == ASK:
        lines = ask(ASK_FOR_QUESTIONS).splitlines()
        plain = tuple(line.lstrip("0123456789.)-* ") for line in lines if line.rstrip().endswith("?"))[:10]
        if not plain:
            raise AttentionError("the VLM was asked for questions and proposed none: give questions yourself")
    short = (" ".join(name.split())[:MAX_NAME] for name in vocabulary)
    printable = dict.fromkeys("".join(c for c in name if c.isprintable()) for name in short)
    names = [name for name in printable if name][:MAX_NAMES]
    if options.vocabulary == "open" or not names:
        return plain
    hinted = tuple(question + _HINT.format(", ".join(names)) for question in plain)
    return hinted if options.vocabulary == "project" else plain + hinted


def ask_remote(
    remote_vlm: RemoteVLM,
    image: Image,
    options: Options,
    vocabulary: Sequence[str] = (),
    deadline: Deadline = NEVER,
) -> list[RemoteAnswer]:
    """Return pairs of question and remote VLM's answer. Raises RemoteVLMError, also after `deadline`."""

    def ask(question: str) -> str:
        return remote_vlm.answer(image, question, deadline)

    return [(question, ask(question)) for question in questions(ask, options, vocabulary)]
