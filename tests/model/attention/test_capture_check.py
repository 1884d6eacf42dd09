from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from model.attention import capture_check
from model.attention.capture import Capture, Layer
from model.profiles import choose
from model.types import AttentionError, ModelLoadError
from model.vlm.vlm import VLM

Load = Callable[..., VLM]
FIRST, COUNT = 3, 5


def capture(*, count: int = COUNT, layers: int = 2) -> Capture:
    """A prompt of three tokens, read at once, and the others, read one by one."""
    made = Capture()
    for index in range(layers):
        layer = made.layers.setdefault(index, Layer(1.0))
        values = torch.arange(count * 2.0).reshape(1, count, 2) + index
        ends = torch.arange(count) + 1
        pieces = [slice(0, FIRST), *(slice(i, i + 1) for i in range(FIRST, count))]
        for piece in pieces:
            layer.queries.append(values[:, piece])
            layer.keys.append(values[:, piece])
            layer.spans.append(torch.stack([torch.zeros_like(ends[piece]), ends[piece]], 1))
    return made


def check(given: Capture, plain: Capture | None = None) -> None:
    capture_check.check(given, plain or capture(), 2, FIRST, COUNT)


def test_what_was_read_was_captured() -> None:
    check(capture())


def test_layers_that_are_missing_are_counted() -> None:
    with pytest.raises(AttentionError, match="attention of 1 of its 2 layers"):
        check(capture(layers=1))


def test_tokens_that_were_read_again_or_never_are_no_plain_cache() -> None:
    with pytest.raises(AttentionError, match="5 tokens were read and 6 captured"):
        check(capture(count=6))
    with pytest.raises(AttentionError, match="5 tokens were read and 4 captured"):
        check(capture(count=4))


def test_a_cache_that_is_longer_than_what_was_read_is_no_plain_one() -> None:
    given = capture()
    given.layers[1].spans[-1] = torch.tensor([[0, 64]])
    with pytest.raises(AttentionError, match="not plain"):
        check(given)
    given.layers[1].spans[-1] = torch.tensor([[-59, 5]])
    with pytest.raises(AttentionError, match="not plain"):
        check(given)


@pytest.mark.parametrize("part", ["queries", "keys"])
@pytest.mark.parametrize("wrong", [0.0, float("nan")])
def test_queries_and_keys_must_be_those_of_a_plain_pass(part: str, wrong: float) -> None:
    given = capture()
    getattr(given.layers[0], part)[-1] = torch.full((1, 1, 2), wrong)
    with pytest.raises(AttentionError, match="token by token it computes other values"):
        check(given)


def test_rounding_and_later_layers_may_differ() -> None:
    given = capture()
    given.layers[0].queries[-1] *= 1.01
    given.layers[1].queries[-1] *= 3
    check(given)


def test_text_that_the_image_sees_is_told() -> None:
    given = capture()
    assert capture_check.one_way(given, FIRST, 0)
    given.layers[1].spans[0] = torch.tensor([[0, 2], [0, 2], [0, 3]])  # an image of two tokens, and text
    assert capture_check.one_way(given, FIRST, 1)
    assert not capture_check.one_way(given, FIRST, 0)
    given.layers[1].spans[0] = torch.tensor([[0, 3], [0, 3], [0, 3]])
    assert not capture_check.one_way(given, FIRST, 1)


def test_the_images_of_all_families_but_paligemma_are_read_before_the_question(load: Load) -> None:
    assert load("gemma3").one_way
    assert load("qwen2_5_vl").one_way
    assert not load("paligemma").one_way
    assert not load("paligemma2").one_way


def test_f24_a_model_that_generates_without_a_cache_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self: Any, config: Any, *args: Any) -> None:
        config.use_cache = False

    monkeypatch.setattr("transformers.GenerationMixin._prepare_cache_for_generation", none)
    with pytest.raises(ModelLoadError, match=r"has no attention maps: .* use another VLM") as error:
        VLM.load(choose().vlm, device="cpu")
    assert "\n" not in str(error.value)


def test_f24_a_model_whose_cache_is_not_of_its_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = DynamicCache.update

    def shifted(self: Any, keys: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return real(self, keys.roll(1, -1) if keys.shape[2] == 1 else keys, *args, **kwargs)

    monkeypatch.setattr(DynamicCache, "update", shifted)
    with pytest.raises(ModelLoadError, match="token by token it computes other values"):
        VLM.load(choose().vlm, device="cpu")
