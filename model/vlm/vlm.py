"""A vision-language model answers a question about an image, and says where it looked for each word."""

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
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PretrainedConfig,
)

from model.attention import attention_flow, capture_check, token_grids
from model.attention.baseline_maps import tower_map
from model.profiles import PIXELS, Dtype, Quantization
from model.recipes import Recipe
from model.types import AttentionError, Image, ModelLoadError, first_line, refused
from model.vlm import named_boxes, pixel_budget
from model.vlm.generation import Greedy, plain, settings_of
from model.vlm.named_boxes import NamedBox
from model.vlm.presence import Reading, Tokens, first_words, shared
from model.weights import FOLDER, hub
from model.weights.names import is_local
from model.weights.out_of_memory import out_of_memory

log = logging.getLogger(f"vlsam.{__name__}")

MAX_NEW_TOKENS = 256
MAX_BOX_TOKENS = 1024  # a box is some thirty tokens
LEAST_SAID = 0.05  # chance of "yes" and "no" together, of one name at least, where a model answers at all
TRIAL = np.linspace(0, 255, 224 * 224 * 3).astype(np.uint8).reshape(224, 224, 3)


@dataclass(frozen=True, eq=False)
class VLMAnswer:
    text: str  # without the last token of an answer that was cut: nothing says where the model looked for it
    starts: tuple[int, ...]  # for each token of the answer, where in `text` the characters begin
    ends: tuple[int, ...]  # and end that it spells; several may spell one
    first: int  # position of the answer's first token in the sequence
    grid: token_grids.Grid
    capture: attention_flow.Capture
    cut: bool = False  # at the most tokens, before the model came to an end
    hidden: tuple[torch.Tensor, ...] = ()  # (N, d) after each of the layers before the middle, if kept
    vision: NDArray[np.float32] | None = None  # (rows, columns): the vision tower's own map, if kept

    def rows(self, start: int, end: int) -> range:
        """Positions in the sequence of the tokens that spell the characters [start, end) of `text`."""
        spans = zip(self.starts, self.ends, strict=True)
        hits = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
        if not hits:
            raise AttentionError(f"no token spells characters {start} to {end} of the answer")
        return range(self.first + hits[0], self.first + hits[-1] + 1)


class VLM:
    """Any model of transformers' AutoModelForImageTextToText whose token grid is known (token_grids.py)."""

    def __init__(
        self, model: Any, processor: Any, on_cut: Callable[[], None] = lambda: None, pixels: int = PIXELS
    ) -> None:
        """`on_cut` is called whenever an answer has come to its most tokens before its end.

        `pixels` is the most that the model is shown of an image, in all views together.
        """
        token_grids.check_family(model.config.model_type)
        model.set_attn_implementation(attention_flow.implementations(model.config))
        self.model = model.eval()
        self._pixels = pixels
        self.processor = self._whole = pixel_budget.bounded(processor, model.config, pixels)
        self._generate = Greedy(model, processor.tokenizer)
        self._on_cut = on_cut
        self._shrink = 1  # sides of images are divided by this
        self.one_way = False  # whether no token of a prompt sees the text after it, as far as is known

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str,
        dtype: Dtype = "auto",
        quantization: Quantization = "none",
        folder: Path = FOLDER,
        on_cut: Callable[[], None] = lambda: None,
        pixels: int = PIXELS,
    ) -> "VLM":
        """Load a local folder, or a hub id, which is fetched into `folder` if need be.

        `device` is one of torch's, or a device map of transformers that spreads the model over several
        ("auto", "balanced"). Raises ModelLoadError with one sentence on what to do.
        """
        path = (
            Path(name).expanduser() if is_local(name) else hub.ensure(name, folder, token_grids.check_config)
        )
        if not path.is_dir():
            raise ModelLoadError(f"the VLM folder {name} does not exist")
        if dtype == "auto":
            # Half precision on a CPU is slower than single and some kernels lack it.
            dtype = "float32" if device == "cpu" else "bfloat16"
        quantized = None
        if quantization != "none":
            quantized = BitsAndBytesConfig(
                load_in_4bit=quantization == "4bit",
                load_in_8bit=quantization == "8bit",
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=dtype,
                # Only the decoder, which has nearly all of the weights. With the tower in 4 bit as well the
                # built-in model's maps moved ten times as far (correlation 0.992 instead of 0.9994).
                llm_int8_skip_modules=[r"(?!model\.(language_model|text_model)\.).*"],
            )
            # It says once per product that 8 bit computes in float16.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        try:
            # Read as plain JSON first: a family that needs code of its own would offer to run it.
            token_grids.check_family(PretrainedConfig.get_config_dict(path)[0].get("model_type", ""))
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            plain(config)
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            model = AutoModelForImageTextToText.from_pretrained(
                path,
                config=config,
                generation_config=settings_of(path, config),
                attn_implementation="eager",  # what every family knows; it is switched below
                dtype=dtype,
                device_map=device,
                quantization_config=quantized,
                use_safetensors=True,
            )
            vlm = cls(model, processor, on_cut, pixels)
            vlm._try()
        except ModelLoadError:
            raise
        except AttentionError as error:
            raise ModelLoadError(f"the VLM {name} cannot say where it looked: {error}") from error
        except Exception as error:
            raise ModelLoadError(f"the VLM {name} cannot be loaded: {first_line(error)}") from error
        if quantized:
            sizes = [(p.numel() * (1 + (p.dtype == torch.uint8)), p.dtype) for p in model.parameters()]
            small = sum(size for size, kind in sizes if kind in (torch.uint8, torch.int8))
            if not small:
                raise ModelLoadError(f"the VLM {name} has no layer that {quantization} applies to: use none")
            share = 100 * small // sum(size for size, _ in sizes)  # embeddings and experts stay as they are
            log.info("%d %% of the VLM's weights are in %s.", share, quantization)
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
        """Ask about an image (H, W, 3); greedy, so the same image gives the same answer.

        `said` is put into the model's mouth: it is the answer, word for word, and read token by token as the
        model's own would be. `hidden` keeps hidden states for the map of source "cosine", `vision` the
        tower's own map. Raises ImageRefused.
        """
        answer = self._answer(
            image,
            question,
            forced_answer=forced_answer,
            hidden=hidden,
            vision=vision,
            max_new_tokens=max_new_tokens,
        )
        if answer.cut:
            self._tell_cut(max_new_tokens)
        return answer

    def _tell_cut(self, limit: int) -> None:
        log.info("An answer was cut at %d tokens: what it named last may be missing.", limit)
        self._on_cut()

    def _answer(
        self,
        image: Image,
        question: str,
        *,
        forced_answer: str | None = None,
        hidden: bool = False,
        vision: bool = False,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> VLMAnswer:
        script = None
        if forced_answer is not None:
            script = self.processor.tokenizer(self._plain(forced_answer), add_special_tokens=False)[
                "input_ids"
            ]
        inputs = self.inputs(image, question)
        with attention_flow.capturing(vision=vision) as capture:
            generated = self._generate(inputs, max_new_tokens, script, hidden=hidden)
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

    def spelled(self, tokens: Sequence[int]) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
        """The text of some tokens, and of each the characters [start, end) that it spells, if only in part.

        A character outside ASCII may take several tokens, which read as replacement characters until it is
        complete.
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
    def _try(self) -> None:
        """Let the model say a few words about a small image, and compare what was captured with what it read.

        Raises AttentionError where they differ.
        """
        script = self.processor.tokenizer("a dog, a cat", add_special_tokens=False)["input_ids"]
        inputs = self.inputs(TRIAL, "List all objects in the image.")
        with attention_flow.capturing() as capture:
            tokens = self._generate(inputs, 0, script).tokens[:-1]
        with attention_flow.capturing() as plainly:
            self.model(**capture_check.longer(inputs, tokens), use_cache=False, logits_to_keep=1)
        first = inputs["input_ids"].shape[1]
        layers = self.model.config.get_text_config(decoder=True).num_hidden_layers
        capture_check.check(capture, plainly, layers, first, first + len(tokens))
        last = int(self._grid(inputs, TRIAL).tokens.max())
        self.one_way = capture_check.one_way(capture, first, last)

    def smaller(self) -> "VLM":
        """The same model, which sees images at half the size: for want of memory.

        That is a quarter of the tokens where the family's processor lets their number follow the image, or
        the number of its tiles.
        """
        other = copy.copy(self)
        other._shrink, other._pixels = 2 * self._shrink, self._pixels // 4
        other.processor = pixel_budget.bounded(self._whole, self.model.config, other._pixels)
        return other

    def _size(self, image: Image) -> pixel_budget.Size:
        """Of the image as it is given to the processor."""
        config, (height, width) = self.model.config, image.shape[:2]
        if self._shrink > 1:
            # Half of what the processor would make of it, which may be far less than half of the image.
            own = token_grids.reduction(config.model_type, self._whole, (width, height))
            height, width = (max(1, round(side / (own * self._shrink))) for side in (height, width))
        return pixel_budget.fitted(config, (height, width), self._pixels)

    def _reduced(self, image: Image) -> PILImage.Image:
        (height, width), picture = self._size(image), PILImage.fromarray(image)
        if picture.size == (width, height):
            return picture
        return picture.resize((width, height), PILImage.Resampling.BOX)

    def _grid(self, inputs: Any, image: Image) -> token_grids.Grid:
        return token_grids.grid_of(self.model, self.processor, inputs, self._size(image))

    def inputs(self, image: Image, question: str) -> Any:
        """The processor's tensors for a question about an image: one row.

        Raises ImageRefused where the processor does not take the image.
        """
        if not pixel_budget.takes(self.processor, image.shape[:2]):
            raise refused("the VLM", image, f"one side is more than {pixel_budget.RATIO} times the other")
        picture = self._reduced(image)
        try:
            if (
                self.processor.chat_template is None
            ):  # as PaliGemma: its prompt is the image and a line of text
                prompt = self.processor.image_token + self._plain(question)
                batch = self.processor(text=[prompt], images=[[picture]], return_tensors="pt")
            else:
                # Tokenized here and not as text, so that a beginning-of-text token is not put in twice.
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
        """A question about an image, for the processor's template."""
        image = {"type": "image"} if picture is None else {"type": "image", "image": picture}
        return [{"role": "user", "content": [image, {"type": "text", "text": self._plain(question)}]}]

    def _plain(self, text: str) -> str:
        """Text without the names of special tokens, which would be taken for them, nor halves of characters.

        It can hold what a person typed, and what a model said or read in a picture.
        """
        text = text.encode("utf-8", "replace").decode()
        added = self.processor.tokenizer.added_tokens_decoder.values()
        special = re.compile("|".join(re.escape(token.content) for token in added if token.special) or "(?!)")
        return special.sub(" ", text)

    @torch.inference_mode()
    def attention_maps(
        self, answer: VLMAnswer, spans: Sequence[tuple[int, int]], recipe: Recipe
    ) -> NDArray[np.float32]:
        """Attention of each span of the answer's characters to the image: float32 (n, rows, columns).

        The recipe's source, weights, rows and subtokens count here; contrast and what follows does not.
        Raises AttentionError where the answer lacks what the source needs.
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
        """Attention of a question about what is not named: (rows, columns). DecAF, arXiv 2510.19592."""
        question = f"Describe the background of the image, excluding any {', '.join(names)}."
        answer = self._answer(image, question, hidden=recipe.source == "cosine", max_new_tokens=1)
        found: NDArray[np.float32] = self._maps(answer, [[answer.first - 1]], recipe)[0]
        return found

    @torch.inference_mode()
    def presence(self, image: Image, names: Sequence[str]) -> NDArray[np.float32]:
        """How likely "yes" is against "no" as the first word, asked for each name: (n,) 0 to 1.

        POPE's question (arXiv 2305.10355). The image is read once for all names; but where its tokens see the
        question, as PaliGemma's do, once for each, one after the other. Raises AttentionError where the model
        says neither.
        """
        yes, no = first_words(self.processor.tokenizer)
        asked = [f"Is there a {name} in the image? VLMAnswer yes or no." for name in names]
        chances = [(read.chance(yes), read.chance(no)) for read in self._readings(image, asked)]
        both = np.array(chances, np.float32).reshape(-1, 2)
        if len(both) and both.sum(1).max() < LEAST_SAID:
            raise AttentionError(
                'the VLM answers neither "yes" nor "no", so it cannot check presence: switch the check off'
            )
        return np.asarray(both[:, 0] / both.sum(1), np.float32)

    def _readings(self, image: Image, questions: Sequence[str]) -> Iterator[Reading]:
        """The model after each question's prompt, one at a time."""
        inputs: Any = None
        if len(questions) > 1 and self.one_way and self.processor.chat_template is not None:
            inputs = self.inputs(image, questions[0])
            common, tails = self.parted(inputs, questions)
            if common > self._grid(inputs, image).tokens.max():
                start = Reading(self.model, capture_check.shorter(inputs, common))
                yield from (start.then(tail) for tail in tails)
                return
        for question in questions:
            yield Reading(self.model, self.inputs(image, question))

    def parted(self, inputs: Any, questions: Sequence[str]) -> tuple[int, list[Tokens]]:
        """How many tokens the prompts begin with alike, and the others of each; `inputs` are the first one's.

        The prompts are compared with an image in one token or a few, as their template has it; 0 where such
        a prompt does not end as the processor's does.
        """
        prompts = [
            self.processor.tokenizer(
                self.processor.apply_chat_template(
                    self._conversation(question), add_generation_prompt=True, tokenize=False
                ),
                add_special_tokens=False,
            )["input_ids"]
            for question in questions
        ]
        alike = min(shared(prompts[0], prompt[:-1]) for prompt in prompts)
        tails = [tuple(prompt[alike:]) for prompt in prompts]
        ids = inputs["input_ids"][0].tolist()
        common = len(ids) - len(tails[0])
        return (common if tuple(ids[common:]) == tails[0] else 0), tails

    @torch.inference_mode()
    def boxes(self, image: Image, terms: Sequence[str] = ()) -> tuple[str, list[NamedBox]]:
        """The answer to the family's question for boxes, of the terms or of everything, and its boxes.

        Raises GroundingError where the family cannot answer with boxes.
        """
        inputs = self.inputs(image, self.box_question(terms))
        said = self._generate(inputs, MAX_BOX_TOKENS)
        if said.cut:
            self._tell_cut(MAX_BOX_TOKENS)
        # Some families spell boxes in special tokens.
        text = self.processor.tokenizer.decode(said.tokens)
        seen = None
        if "image_grid_thw" in inputs:
            patch = self.model.config.vision_config.patch_size
            rows, columns = (int(n) * patch for n in inputs["image_grid_thw"][0, 1:])
            seen = (rows, columns)
        size = (image.shape[0], image.shape[1])
        return text, named_boxes.parse(text, self.model.config.model_type, size, seen, cut=said.cut)

    def box_question(self, terms: Sequence[str] = ()) -> str:
        """What this family is asked for boxes with. Raises GroundingError."""
        return named_boxes.question_for(self.model.config.model_type, terms)

    @torch.inference_mode()
    def embeddings(self, names: Sequence[str]) -> NDArray[np.float32]:
        """The mean of each name's token embeddings, of length 1: (n, d); 0 for one without tokens."""
        table = self.model.get_input_embeddings()
        found = []
        for name in names:
            # After a space, as in a sentence: there common words are one token.
            ids = self.processor.tokenizer(f" {name}", add_special_tokens=False, return_tensors="pt")
            vectors = table(ids["input_ids"].long().to(table.weight.device))[0].float()
            found.append(torch.nn.functional.normalize(vectors.sum(0), dim=0))
        return torch.stack(found).cpu().numpy() if found else np.zeros((0, table.embedding_dim), np.float32)

    @torch.inference_mode()
    def layer_maps(self, answer: VLMAnswer, spans: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """Each layer's attention of each span, mean over heads and tokens: (layers, n, rows, columns)."""
        each = [
            answer.grid.spread(attention_flow.per_layer(answer.capture, [row]).cpu().numpy().mean(1))
            for start, end in spans
            for row in [answer.rows(start, end)[-1]]
        ]
        return np.stack(each, 1)

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
        seen = self._seen(answer, unique, recipe).float().cpu().numpy()
        spread = answer.grid.spread(seen)
        place = {position: i for i, position in enumerate(unique)}
        pool = np.max if recipe.subtokens == "max" else np.mean
        return np.stack([pool(spread[[place[p] for p in rows]], axis=0) for rows in wanted])

    def _seen(self, answer: VLMAnswer, rows: Sequence[int], recipe: Recipe) -> torch.Tensor:
        """What the rows make of every token, by the recipe's source: (len(rows), N)."""
        capture = answer.capture
        if recipe.source == "flow":
            return attention_flow.flow(capture, rows, recipe, answer.grid.tokens.tolist())
        if recipe.source == "last-layer":
            return attention_flow.per_layer(capture, rows, last=True)[0]
        if recipe.source == "decoder-mean":
            return attention_flow.per_layer(capture, rows).mean(0)
        if recipe.source == "cosine":
            return _cosine(answer, rows)
        raise AttentionError(f"a VLM has no attention of source {recipe.source!r}")


def _before_the_middle(steps: Any) -> tuple[torch.Tensor, ...]:
    """Hidden states (N, d) after the layers from 0.22 to 0.41 of the depth: 7 to 13 of 32 (FSeg-LLaVA)."""
    depth = len(steps[0]) - 1
    chosen = range(max(1, round(0.22 * depth)), max(1, round(0.41 * depth)) + 1)
    return tuple(torch.cat([step[layer][0] for step in steps]) for layer in chosen)


def _cosine(answer: VLMAnswer, rows: Sequence[int]) -> torch.Tensor:
    """Mean over layers of the cosine between hidden states of the rows and of every token, from 0 up."""
    if not answer.hidden:
        raise AttentionError("the answer was given without keeping its hidden states")
    # Layers may lie on several devices.
    there = [states.to(answer.hidden[0].device) for states in answer.hidden]
    units = [torch.nn.functional.normalize(states.float(), dim=-1) for states in there]
    return torch.stack([unit[list(rows)] @ unit.T for unit in units]).mean(0).clamp(min=0)
