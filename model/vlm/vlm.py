"""Ask a vision-language model about an image, and map its attention for each word of the answer."""

import copy
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PretrainedConfig

from model.attention import capture_check, token_grids
from model.attention.attention_flow import flow
from model.attention.baseline_maps import tower_map
from model.attention.capture import Capture, capturing, implementations
from model.attention.layer_attention import per_layer
from model.profiles import FOLDER, PIXELS
from model.recipes import Recipe
from model.types import AttentionError, Image, ModelLoadError, first_line, refused
from model.vlm import named_boxes, pixel_budget
from model.vlm.generation import Greedy, plain, settings_of
from model.vlm.named_boxes import NamedBox
from model.vlm.presence import Reading, Tokens, first_words, shared
from model.vlm.quantization import FULL, Precision
from model.weights import hub
from model.weights.names import is_local
from model.weights.out_of_memory import out_of_memory

log = logging.getLogger(f"vlsam.{__name__}")

MAX_NEW_TOKENS = 256
MAX_BOX_TOKENS = 1024  # a box takes some thirty
# Probability of "yes" and "no" together that a model must reach for one name, or else it answers neither.
LEAST_SAID = 0.05
TRIAL = np.linspace(0, 255, 224 * 224 * 3).astype(np.uint8).reshape(224, 224, 3)


@dataclass(frozen=True, eq=False)
class VLMAnswer:
    """A VLM's answer to a question about an image, with the captured data for its attention maps."""

    text: str  # without the last token of an answer that was cut, which has no attention
    starts: tuple[int, ...]  # token i of the answer spells the characters [starts[i], ends[i]) of `text`
    ends: tuple[int, ...]  # several tokens may spell one character
    first: int  # position of the answer's first token in the sequence
    grid: token_grids.Grid
    capture: Capture
    cut: bool = False  # the token limit came before the answer's end
    hidden: tuple[torch.Tensor, ...] = ()  # (N, d) after each layer just before the middle, if kept
    vision: NDArray[np.float32] | None = None  # (rows, columns): the vision tower's map, if kept

    def rows(self, start: int, end: int) -> range:
        """Return the sequence positions of text[start:end]. Raises AttentionError if no token spells it."""
        spans = zip(self.starts, self.ends, strict=True)
        hits = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
        if not hits:
            raise AttentionError(f"no token spells characters {start} to {end} of the answer")
        return range(self.first + hits[0], self.first + hits[-1] + 1)


class VLM:
    """A vision-language model of transformers, of any family in the table of token_grids.py."""

    def __init__(
        self, model: Any, processor: Any, on_cut: Callable[[], None] = lambda: None, pixels: int = PIXELS
    ) -> None:
        """Wrap a model of transformers and its processor.

        `on_cut` is called whenever an answer is cut at the token limit. `pixels` is the most pixels of a
        model's input: the views of the image (tiles and the whole) together. Raises ModelLoadError.
        """
        token_grids.check_config({"model_type": model.config.model_type})
        model.set_attn_implementation(implementations(model.config))
        self.model = model.eval()
        self._pixels = pixels
        self.processor = self._whole = pixel_budget.bounded(processor, model.config, pixels)
        self.generate = Greedy(model, processor.tokenizer, on_cut)
        self._shrink = 1  # divides the sides of images
        self.one_way = False  # whether no token of a prompt sees the text after it; checked at load

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str,
        precision: Precision = FULL,
        folder: Path = FOLDER,
        on_cut: Callable[[], None] = lambda: None,
        pixels: int = PIXELS,
    ) -> "VLM":
        """Load a VLM by local folder or hub id. Download missing files to `folder`. Raises ModelLoadError.

        `device` is a torch device, or a device map of transformers ("auto", "balanced"), which spreads the
        model over several devices. For `on_cut` and `pixels` see `__init__`.
        """
        path = Path(name).expanduser()
        if not is_local(name):
            path = hub.ensure(name, folder, token_grids.check_config)
        if not path.is_dir():
            raise ModelLoadError(f"the VLM folder {name} does not exist")
        try:
            # Plain JSON first: AutoConfig would offer to run the code that some families bring.
            token_grids.check_config(PretrainedConfig.get_config_dict(path)[0])
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            plain(config)
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            model = AutoModelForImageTextToText.from_pretrained(
                path,
                config=config,
                generation_config=settings_of(path, config),
                attn_implementation="eager",  # every family has it; `__init__` switches to the capturing one
                dtype=precision.torch_dtype(device),
                device_map=device,
                quantization_config=precision.config(device),
                use_safetensors=True,
            )
            vlm = cls(model, processor, on_cut, pixels)
            vlm._check_capture()
        except ModelLoadError:
            raise
        except AttentionError as error:
            raise ModelLoadError(f"the VLM {name} has no attention maps: {error}") from error
        except Exception as error:
            raise ModelLoadError(f"the VLM {name} cannot be loaded: {first_line(error)}") from error
        precision.check(model, name)
        return vlm

    @torch.inference_mode()
    def answer(
        self,
        image: Image,
        question: str,
        *,
        forced_answer: str | None = None,
        hidden: bool = False,
        vision: bool = False,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> VLMAnswer:
        """Ask a question about an image, uint8 (H, W, 3). Decoding is greedy, so answers repeat.

        `forced_answer` is used as the answer in place of generated text (teacher forcing). With `hidden` the
        answer keeps the hidden states for the recipe source "cosine". With `vision` it keeps the vision
        tower's map. Raises ImageRefused.
        """
        script = None if forced_answer is None else self._tokens(self._plain(forced_answer))
        inputs = self.inputs(image, question)
        with capturing(vision=vision) as capture:
            generated = self.generate(inputs, max_new_tokens, script, hidden=hidden)
        text, starts, ends = self.spelled(generated.tokens[:-1])
        grid = self._grid(inputs, image)
        return VLMAnswer(
            text=text,
            starts=starts,
            ends=ends,
            first=inputs["input_ids"].shape[1],
            grid=grid,
            capture=capture,
            cut=generated.cut,
            hidden=_before_the_middle(generated.hidden) if hidden else (),
            vision=tower_map(self.model, inputs, capture, grid) if vision else None,
        )

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def spelled(self, tokens: Sequence[int]) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """Return the text of tokens, each token's first character in it, and each token's end (exclusive).

        One character may take several tokens; each of them then has that character.
        """
        texts = [
            self.processor.tokenizer.decode(
                tokens[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for count in range(len(tokens) + 1)
        ]
        text = texts[-1]
        # A tokenizer may take back characters that were complete while bytes after them are not.
        whole = [*accumulate((shared(each, text) for each in texts), max)]
        ends = [min(n + (each != text[:n]), len(text)) for n, each in zip(whole, texts, strict=True)]
        return text, tuple(whole[:-1]), tuple(ends[1:])

    @torch.inference_mode()
    def _check_capture(self) -> None:
        """Set `one_way`. Raises AttentionError if captures by generation and by one forward pass differ."""
        script = self._tokens("a dog, a cat")
        inputs = self.inputs(TRIAL, "List all objects in the image.")
        with capturing() as capture:
            tokens = self.generate(inputs, 0, script).tokens[:-1]
        with capturing() as plainly:
            self.model(**capture_check.longer(inputs, tokens), use_cache=False, logits_to_keep=1)
        first = inputs["input_ids"].shape[1]
        layers = self.model.config.get_text_config(decoder=True).num_hidden_layers
        capture_check.check(capture, plainly, layers, first, first + len(tokens))
        last = int(self._grid(inputs, TRIAL).tokens.max())
        self.one_way = capture_check.one_way(capture, first, last)

    def smaller(self) -> "VLM":
        """Return this VLM with the sides of its input images halved, which saves memory."""
        other = copy.copy(self)
        other._shrink, other._pixels = 2 * self._shrink, self._pixels // 4
        other.processor = pixel_budget.bounded(self._whole, self.model.config, other._pixels)
        return other

    def _size(self, image: Image) -> pixel_budget.Size:
        """Return the (height, width) to which an image is resized before the processor."""
        config, (height, width) = self.model.config, image.shape[:2]
        if self._shrink > 1:
            # Half of what the processor would make of it, which may be far less than half of the image.
            own = token_grids.reduction(config.model_type, self._whole, (width, height))
            height, width = (max(1, round(side / (own * self._shrink))) for side in (height, width))
        return pixel_budget.fitted(config, (height, width), self._pixels)

    def _grid(self, inputs: Any, image: Image) -> token_grids.Grid:
        return token_grids.grid_of(self.model, self.processor, inputs, self._size(image))

    def inputs(self, image: Image, question: str) -> Any:
        """Return the processor's tensors for a question about an image: batch of 1. Raises ImageRefused."""
        if not pixel_budget.takes(self.processor, image.shape[:2]):
            raise refused("the VLM", image, f"one side is more than {pixel_budget.RATIO} times the other")
        picture = PILImage.fromarray(image).resize(self._size(image)[::-1], PILImage.Resampling.BOX)
        try:
            if self.processor.chat_template is None:  # PaliGemma: the prompt is the image and a line of text
                prompt = self.processor.image_token + self._plain(question)
                batch = self.processor(text=[prompt], images=[[picture]], return_tensors="pt")
            else:
                # Tokenized here, for a template's text would get a second beginning-of-text token.
                batch = self.processor.apply_chat_template(
                    [self._conversation(question, picture)],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                )
        except Exception as error:
            if out_of_memory(error):
                raise
            raise refused("the VLM", image, first_line(error)) from error
        batch.pop("labels", None)  # PaliGemma's are for training, and would change its attention mask
        return batch.to(self.model.device)

    def _conversation(self, question: str, picture: PILImage.Image | None = None) -> list[dict[str, Any]]:
        """Return a question as messages for the chat template, with `picture` or an image placeholder."""
        image = {"type": "image"} if picture is None else {"type": "image", "image": picture}
        return [{"role": "user", "content": [image, {"type": "text", "text": self._plain(question)}]}]

    def _plain(self, text: str) -> str:
        """Replace text that would be read as a special token by a space, and lone surrogates by "?"."""
        text = text.encode("utf-8", "replace").decode()
        added = self.processor.tokenizer.added_tokens_decoder.values()
        special = re.compile("|".join(re.escape(token.content) for token in added if token.special) or "(?!)")
        return special.sub(" ", text)

    @torch.inference_mode()
    def attention_maps(
        self, answer: VLMAnswer, spans: Sequence[tuple[int, int]], recipe: Recipe
    ) -> NDArray[np.float32]:
        """Return the attention map of each span [start, end) of the answer's characters.

        The maps are float32 (n, rows, columns). Of the recipe only the switches from `source` to `subtokens`
        apply. Raises AttentionError if the answer lacks data that the source needs, or a span has no token.
        """
        wanted: list[list[int]] = []
        for start, end in spans:
            rows = list(answer.rows(start, end))
            if recipe.row == "asking":
                rows = [rows[0] - 1]
            wanted.append(rows[-1:] if recipe.subtokens == "last" else rows)
        return self._maps(answer, wanted, recipe)

    @torch.inference_mode()
    def background_map(self, image: Image, names: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        """Return DecAF's background map, of a question about all but `names`: float32 (rows, columns)."""
        question = f"Describe the background of the image, excluding any {', '.join(names)}."
        answer = self.answer(image, question, forced_answer="", hidden=recipe.source == "cosine")
        found: NDArray[np.float32] = self._maps(answer, [[answer.first - 1]], recipe)[0]
        return found

    @torch.inference_mode()
    def presence(self, image: Image, names: Sequence[str]) -> NDArray[np.float32]:
        """Return p(yes) / (p(yes) + p(no)) for the question whether each name is in the image: float32 (n,).

        The question is POPE's (arXiv 2305.10355). The image is processed once for all names, or once per
        name if its tokens attend to the question. Raises AttentionError if both probabilities are near 0.
        """
        yes, no = first_words(self.processor.tokenizer)
        asked = [f"Is there a {name} in the image? Answer yes or no." for name in names]
        chances = [(read.chance(yes), read.chance(no)) for read in self._readings(image, asked)]
        both = np.array(chances, np.float32).reshape(-1, 2)
        if len(both) and both.sum(1).max() < LEAST_SAID:
            raise AttentionError(
                'the VLM answers neither "yes" nor "no", so it cannot check presence: switch the check off'
            )
        return np.asarray(both[:, 0] / both.sum(1), np.float32)

    def _readings(self, image: Image, questions: Sequence[str]) -> Iterator[Reading]:
        """Yield for each question the model's state after its prompt, one at a time to save memory."""
        inputs: Any = None
        if len(questions) > 1 and self.one_way and self.processor.chat_template is not None:
            inputs = self.inputs(image, questions[0])
            common, tails = self.common_prefix(inputs, questions)
            if common > self._grid(inputs, image).tokens.max():
                start = Reading(self.model, capture_check.shorter(inputs, common))
                yield from (start.then(tail) for tail in tails)
                return
        for question in questions:
            yield Reading(self.model, self.inputs(image, question))

    def common_prefix(self, inputs: Any, questions: Sequence[str]) -> tuple[int, list[Tokens]]:
        """Return the length in tokens of the questions' common prompt prefix, and each prompt's other tokens.

        `inputs` are the processor's tensors for the first question. The prompts are compared as text of the
        chat template. The length is 0 if that text's tokens do not match the end of `inputs`.
        """
        prompts = [
            self._tokens(
                self.processor.apply_chat_template(
                    self._conversation(question), add_generation_prompt=True, tokenize=False
                )
            )
            for question in questions
        ]
        alike = min(shared(prompts[0], prompt[:-1]) for prompt in prompts)
        tails = [tuple(prompt[alike:]) for prompt in prompts]
        ids = inputs["input_ids"][0].tolist()
        common = len(ids) - len(tails[0])
        return (common if tuple(ids[common:]) == tails[0] else 0), tails

    @torch.inference_mode()
    def boxes(self, image: Image, terms: Sequence[str] = ()) -> tuple[str, list[NamedBox]]:
        """Ask for boxes of `terms`, or of all objects. Return answer and boxes. Raises GroundingError."""
        inputs = self.inputs(image, self.box_question(terms))
        generated = self.generate(inputs, MAX_BOX_TOKENS)
        # Some families spell boxes in special tokens.
        text = self.processor.tokenizer.decode(generated.tokens)
        config, size = self.model.config, (image.shape[0], image.shape[1])
        input_size: tuple[int, int] | None = None
        if "image_grid_thw" in inputs:
            rows, columns = (inputs["image_grid_thw"][0, 1:] * config.vision_config.patch_size).tolist()
            input_size = (rows, columns)
        return text, named_boxes.parse(text, config.model_type, size, input_size, cut=generated.cut)

    def box_question(self, terms: Sequence[str] = ()) -> str:
        """Return the family's question for boxes of `terms`, or of all objects. Raises GroundingError."""
        return named_boxes.question_for(self.model.config.model_type, terms)

    @torch.inference_mode()
    def embeddings(self, names: Sequence[str]) -> NDArray[np.float32]:
        """Return each name's mean input embedding, of length 1, or 0 without tokens: float32 (n, d)."""
        table = self.model.get_input_embeddings()
        found = []
        for name in names:
            # After a space, where common words are one token, as in a sentence.
            ids = self.processor.tokenizer(f" {name}", add_special_tokens=False, return_tensors="pt")
            vectors = table(ids["input_ids"].long().to(table.weight.device))[0].float()
            found.append(torch.nn.functional.normalize(vectors.sum(0), dim=0))
        return torch.stack(found).cpu().numpy() if found else np.zeros((0, table.embedding_dim), np.float32)

    @torch.inference_mode()
    def layer_maps(self, answer: VLMAnswer, spans: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """Return each layer's map of each span's last token, mean over heads: (layers, n, rows, columns)."""
        maps = [
            answer.grid.spread(per_layer(answer.capture, [row]).cpu().numpy().mean(1))
            for start, end in spans
            for row in [answer.rows(start, end)[-1]]
        ]
        return np.stack(maps, 1)

    def _maps(
        self, answer: VLMAnswer, wanted: Sequence[Sequence[int]], recipe: Recipe
    ) -> NDArray[np.float32]:
        unique = sorted({position for rows in wanted for position in rows})
        if not unique:
            return np.zeros((0, *answer.grid.shape), np.float32)
        if recipe.source == "vision":
            if answer.vision is None:
                raise AttentionError("the answer was given without keeping the vision tower's attention")
            return np.repeat(answer.vision[None], len(wanted), 0)
        attention = self._token_attention(answer, unique, recipe).float().cpu().numpy()
        spread = answer.grid.spread(attention)
        place = {position: i for i, position in enumerate(unique)}
        pool = np.max if recipe.subtokens == "max" else np.mean
        return np.stack([pool(spread[[place[p] for p in rows]], axis=0) for rows in wanted])

    def _token_attention(self, answer: VLMAnswer, rows: Sequence[int], recipe: Recipe) -> torch.Tensor:
        """Return the attention of tokens `rows` to all N tokens, by `recipe.source`: (len(rows), N)."""
        capture = answer.capture
        if recipe.source == "flow":
            return flow(capture, rows, recipe, answer.grid.tokens.tolist())
        if recipe.source == "last-layer":
            return per_layer(capture, rows, last=True)[0]
        if recipe.source == "decoder-mean":
            return per_layer(capture, rows).mean(0)
        if recipe.source != "cosine":
            raise AttentionError(f"a VLM has no attention of source {recipe.source!r}")
        # The mean over layers of the cosine of the rows' and every token's hidden states.
        if not answer.hidden:
            raise AttentionError("the answer was given without keeping its hidden states")
        # Layers may lie on several devices.
        there = [states.to(answer.hidden[0].device) for states in answer.hidden]
        units = [torch.nn.functional.normalize(states.float(), dim=-1) for states in there]
        return torch.stack([unit[list(rows)] @ unit.T for unit in units]).mean(0).clamp(min=0)


def _before_the_middle(steps: Any) -> tuple[torch.Tensor, ...]:
    """Return the hidden states (N, d) of the layers at 22 to 41 % of the depth, as in FSeg-LLaVA."""
    depth = len(steps[0]) - 1
    chosen = range(max(1, round(0.22 * depth)), max(1, round(0.41 * depth)) + 1)
    return tuple(torch.cat([step[layer][0] for step in steps]) for layer in chosen)
