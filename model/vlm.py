"""A vision-language model answers a question about an image, and says where it looked for each word."""

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
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

from model import attention, boxes, download, grids
from model.boxes import NamedBox
from model.profiles import Dtype, Quantization
from model.recipes import Recipe
from model.types import AttentionError, Image, ModelLoadError
from model.vision import tower_map

MAX_NEW_TOKENS = 256
MAX_BOX_TOKENS = 1024  # a box is some thirty tokens
PRESENCE_BATCH = 8
YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")


@dataclass(frozen=True, eq=False)
class Answer:
    text: str
    ends: tuple[int, ...]  # for each token of the answer, where its characters end in `text`
    first: int  # position of the answer's first token in the sequence
    grid: grids.Grid
    capture: attention.Capture
    hidden: tuple[torch.Tensor, ...] = ()  # (N, d) after each of the layers before the middle, if kept
    vision: NDArray[np.float32] | None = None  # (rows, columns): the vision tower's own map, if kept

    def rows(self, start: int, end: int) -> range:
        """Positions in the sequence of the tokens that spell the characters [start, end) of `text`."""
        begins = (0, *self.ends[:-1])
        hits = [i for i, (a, b) in enumerate(zip(begins, self.ends, strict=True)) if a < end and b > start]
        if not hits:
            raise AttentionError(f"no token spells characters {start} to {end} of the answer")
        return range(self.first + hits[0], self.first + hits[-1] + 1)


class VLM:
    """Any model of transformers' AutoModelForImageTextToText whose token grid is known (model/grids.py)."""

    def __init__(self, model: Any, processor: Any) -> None:
        grids.check_family(model.config.model_type)
        model.set_attn_implementation(attention.implementations(model.config))
        self._model = model.eval()
        self._processor = processor
        self._shrink = 1  # sides of images are divided by this
        processor.tokenizer.padding_side = "left"  # so that the last position of a batch is a token

    @classmethod
    def load(
        cls,
        name: str,
        *,
        device: str,
        dtype: Dtype = "auto",
        quantization: Quantization = "none",
        folder: Path = download.FOLDER,
    ) -> "VLM":
        """Load a local folder, or a hub id, which is fetched into `folder` if need be.

        `device` is one of torch's, or a device map of transformers that spreads the model over several
        ("auto", "balanced"). Raises ModelLoadError with one sentence on what to do.
        """
        path = (
            Path(name).expanduser()
            if download.looks_local(name)
            else download.hub(name, folder, grids.check_config)
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
            grids.check_family(PretrainedConfig.get_config_dict(path)[0].get("model_type", ""))
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            model = AutoModelForImageTextToText.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                device_map=device,
                quantization_config=quantized,
                use_safetensors=True,
            )
            vlm = cls(model, processor)
            # One token shows before the first image whether all of it runs and the capture sees it.
            token = processor.tokenizer("a", return_tensors="pt")["input_ids"].to(model.device)
            with torch.inference_mode(), attention.capturing() as capture:
                model(input_ids=token)
        except ModelLoadError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelLoadError(f"the VLM {name} cannot be loaded: {reason}") from error
        layers = config.get_text_config(decoder=True).num_hidden_layers
        if len(capture.layers) < layers:
            raise ModelLoadError(
                f"the VLM {name} cannot say where it looked: transformers gives access to the attention of "
                f"{len(capture.layers)} of its {layers} layers; use another VLM"
            )
        if quantized:
            sizes = [(p.numel() * (1 + (p.dtype == torch.uint8)), p.dtype) for p in model.parameters()]
            small = sum(size for size, kind in sizes if kind in (torch.uint8, torch.int8))
            if not small:
                raise ModelLoadError(f"the VLM {name} has no layer that {quantization} applies to: use none")
            share = 100 * small // sum(size for size, _ in sizes)  # embeddings and experts stay as they are
            logging.getLogger(__name__).info("%d %% of the VLM's weights are in %s.", share, quantization)
        return vlm

    @torch.inference_mode()
    def answer(
        self,
        image: Image,
        question: str,
        *,
        said: str | None = None,
        hidden: bool = False,
        vision: bool = False,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> Answer:
        """Ask about an image (H, W, 3); greedy, so the same image gives the same answer.

        `said` is put into the model's mouth: it is the answer, word for word, and read token by token as the
        model's own would be. `hidden` keeps hidden states for the map of source "cosine", `vision` the
        tower's own map.
        """
        inputs = self._inputs(image, [question])
        first = inputs["input_ids"].shape[1]
        tokenizer = self._processor.tokenizer
        forced: dict[str, Any] = {}
        if said is not None:
            script = tokenizer(self._plain(said), add_special_tokens=False)["input_ids"]
            max_new_tokens = len(script) + 1  # the last token is never an input
            forced["prefix_allowed_tokens_fn"] = lambda _, seen: (
                script[len(seen) - first :][:1] or script[-1:] or [tokenizer.eos_token_id]
            )
        with attention.capturing(vision=vision) as capture:
            generated = self._model.generate(
                **inputs,
                **forced,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                output_hidden_states=hidden,
                return_dict_in_generate=True,
            )
        # The last token (the end, as a rule) was never an input, so it has no row.
        tokens = generated.sequences[0, first:].tolist()
        decoded = [tokenizer.decode(tokens[: i + 1], skip_special_tokens=True) for i in range(len(tokens))]
        grid = grids.grid_of(self._model, self._processor, inputs, self._reduced(image).size[::-1])
        whole = decoded if said is None else decoded[:-1]
        return Answer(
            text=whole[-1] if whole else "",
            ends=tuple(len(text) for text in decoded[:-1]),
            first=first,
            grid=grid,
            capture=capture,
            hidden=_before_the_middle(generated.hidden_states) if hidden else (),
            vision=tower_map(self._model, inputs, capture, grid) if vision else None,
        )

    def smaller(self) -> "VLM":
        """The same model, which sees images at half the size: for want of memory.

        That is a quarter of the tokens where the family's processor lets their number follow the image.
        """
        other = copy.copy(self)
        other._shrink = 2 * self._shrink
        return other

    def _reduced(self, image: Image) -> PILImage.Image:
        picture = PILImage.fromarray(image)
        return picture if self._shrink == 1 else picture.reduce(self._shrink)

    def _inputs(self, image: Image, questions: Sequence[str]) -> Any:
        """The processor's tensors for questions about one image, a row each."""
        picture, padding = self._reduced(image), len(questions) > 1
        questions = [self._plain(question) for question in questions]
        if self._processor.chat_template is None:  # as PaliGemma: its prompt is the image and a line of text
            prompts = [self._processor.image_token + question for question in questions]
            images = [[picture]] * len(prompts)
            batch = self._processor(text=prompts, images=images, return_tensors="pt", padding=padding)
        else:
            contents = [
                [{"type": "image", "image": picture}, {"type": "text", "text": question}]
                for question in questions
            ]
            # Tokenized here and not as text, so that a beginning-of-text token is not put in twice.
            batch = self._processor.apply_chat_template(
                [[{"role": "user", "content": content}] for content in contents],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": padding},
            )
        batch.pop("labels", None)  # PaliGemma's are for training, and would change its attention mask
        return batch.to(self._model.device)

    def _plain(self, text: str) -> str:
        """Text without the names of special tokens, which would be taken for them, nor halves of characters.

        It can hold what a person typed, and what a model said or read in a picture.
        """
        text = text.encode("utf-8", "replace").decode()
        added = self._processor.tokenizer.added_tokens_decoder.values()
        special = re.compile("|".join(re.escape(token.content) for token in added if token.special) or "(?!)")
        return special.sub(" ", text)

    @torch.inference_mode()
    def attention_maps(
        self, answer: Answer, spans: Sequence[tuple[int, int]], recipe: Recipe
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

    def background_map(self, image: Image, names: Sequence[str], recipe: Recipe) -> NDArray[np.float32]:
        """Attention of a question about what is not named: (rows, columns). DecAF, arXiv 2510.19592."""
        question = f"Describe the background of the image, excluding any {', '.join(names)}."
        answer = self.answer(image, question, hidden=recipe.source == "cosine", max_new_tokens=1)
        found: NDArray[np.float32] = self._maps(answer, [[answer.first - 1]], recipe)[0]
        return found

    @torch.inference_mode()
    def presence(self, image: Image, names: Sequence[str]) -> NDArray[np.float32]:
        """How likely "yes" is against "no" as the first token, asked for each name: (n,) 0 to 1.

        POPE's question (arXiv 2305.10355). Raises AttentionError where the model says neither.
        """
        tokenizer = self._processor.tokenizer
        yes, no = (
            sorted({tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in forms})
            for forms in (YES, NO)
        )
        found = []
        for start in range(0, len(names), PRESENCE_BATCH):
            asked = [
                f"Is there a {name} in the image? Answer yes or no."
                for name in names[start : start + PRESENCE_BATCH]
            ]
            logits = self._model(**self._inputs(image, asked), logits_to_keep=1).logits[:, -1].float()
            chances = logits.softmax(-1)
            found.append(torch.stack([chances[:, yes].sum(1), chances[:, no].sum(1)], 1))
        both = torch.cat(found).cpu().numpy()
        if set(yes) & set(no) or both.sum(1).max() < 0.05:
            raise AttentionError(
                'the VLM answers neither "yes" nor "no", so it cannot check presence: switch the check off'
            )
        return np.asarray(both[:, 0] / both.sum(1), np.float32)

    @torch.inference_mode()
    def boxes(self, image: Image, terms: Sequence[str] = ()) -> tuple[str, list[NamedBox]]:
        """The answer to the family's question for boxes, of the terms or of everything, and its boxes.

        Raises GroundingError where the family cannot answer with boxes.
        """
        inputs = self._inputs(image, [self.box_question(terms)])
        said = self._model.generate(**inputs, max_new_tokens=MAX_BOX_TOKENS, do_sample=False)
        # Some families spell boxes in special tokens.
        text = self._processor.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :])
        seen = None
        if "image_grid_thw" in inputs:
            patch = self._model.config.vision_config.patch_size
            rows, columns = (int(n) * patch for n in inputs["image_grid_thw"][0, 1:])
            seen = (rows, columns)
        return text, boxes.parse(text, self._model.config.model_type, (image.shape[0], image.shape[1]), seen)

    def box_question(self, terms: Sequence[str] = ()) -> str:
        """What this family is asked for boxes with. Raises GroundingError."""
        return boxes.question_for(self._model.config.model_type, terms)

    @torch.inference_mode()
    def embeddings(self, names: Sequence[str]) -> NDArray[np.float32]:
        """The mean of each name's token embeddings, of length 1: (n, d); 0 for one without tokens."""
        table = self._model.get_input_embeddings()
        found = []
        for name in names:
            # After a space, as in a sentence: there common words are one token.
            ids = self._processor.tokenizer(f" {name}", add_special_tokens=False, return_tensors="pt")
            vectors = table(ids["input_ids"].long().to(table.weight.device))[0].float()
            found.append(torch.nn.functional.normalize(vectors.sum(0), dim=0))
        return torch.stack(found).cpu().numpy() if found else np.zeros((0, table.embedding_dim), np.float32)

    @torch.inference_mode()
    def layer_maps(self, answer: Answer, spans: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """Each layer's attention of each span, mean over heads and tokens: (layers, n, rows, columns)."""
        each = [
            answer.grid.spread(attention.per_layer(answer.capture, [row]).cpu().numpy().mean(1))
            for start, end in spans
            for row in [answer.rows(start, end)[-1]]
        ]
        return np.stack(each, 1)

    def _maps(self, answer: Answer, wanted: Sequence[Sequence[int]], recipe: Recipe) -> NDArray[np.float32]:
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

    def _seen(self, answer: Answer, rows: Sequence[int], recipe: Recipe) -> torch.Tensor:
        """What the rows make of every token, by the recipe's source: (len(rows), N)."""
        capture = answer.capture
        if recipe.source == "flow":
            return attention.flow(capture, rows, recipe, answer.grid.tokens.tolist())
        if recipe.source == "last-layer":
            return attention.per_layer(capture, rows, last=True)[0]
        if recipe.source == "decoder-mean":
            return attention.per_layer(capture, rows).mean(0)
        if recipe.source == "cosine":
            return _cosine(answer, rows)
        raise AttentionError(f"a VLM has no attention of source {recipe.source!r}")


def _before_the_middle(steps: Any) -> tuple[torch.Tensor, ...]:
    """Hidden states (N, d) after the layers from 0.22 to 0.41 of the depth: 7 to 13 of 32 (FSeg-LLaVA)."""
    depth = len(steps[0]) - 1
    chosen = range(max(1, round(0.22 * depth)), max(1, round(0.41 * depth)) + 1)
    return tuple(torch.cat([step[layer][0] for step in steps]) for layer in chosen)


def _cosine(answer: Answer, rows: Sequence[int]) -> torch.Tensor:
    """Mean over layers of the cosine between hidden states of the rows and of every token, from 0 up."""
    if not answer.hidden:
        raise AttentionError("the answer was given without keeping its hidden states")
    # Layers may lie on several devices.
    there = [states.to(answer.hidden[0].device) for states in answer.hidden]
    units = [torch.nn.functional.normalize(states.float(), dim=-1) for states in there]
    return torch.stack([unit[list(rows)] @ unit.T for unit in units]).mean(0).clamp(min=0)
