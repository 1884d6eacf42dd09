import shutil
from pathlib import Path

import pytest
import torch

from model.profiles import BUILTIN
from model.segmentation.sam_families.family import Tokens
from model.segmentation.sam_families.segment_anything_sam import build_sam, decode, embed
from model.segmentation.segmenter import Segmenter
from model.training import segmenter
from model.types import ModelLoadError


def test_the_decoder_without_copies_equals_the_librarys() -> None:
    torch.manual_seed(0)
    sam = build_sam(segmenter.CONFIG)
    points, labels = torch.rand(3, 2, 2) * 256, torch.tensor([[1, -1], [0, -1], [1, -1]])
    image, position = torch.randn(1, 128, 32, 32), sam.prompt_encoder.get_dense_pe()
    masks = torch.randn(3, 1, 128, 128)
    with torch.inference_mode():
        sparse = embed(sam, Tokens(points, labels))
        for given in (None, masks):
            own_sparse, dense = sam.prompt_encoder((points[:, :1], labels[:, :1]), None, given)
            torch.testing.assert_close(sparse, own_sparse)
            ours = decode(sam, image + dense[: 3 if given is not None else 1], position, sparse)
            theirs = sam.mask_decoder.predict_masks(image, position, own_sparse, dense)
            torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_published_checkpoint_is_recognised_by_its_width(tmp_path: Path) -> None:
    """sam_vit_b_01ec64.pth is a plain state dict of ViT-B: ours is random, of the same shape."""
    config = {
        "image_size": 1024, "patch_size": 16, "window_size": 14, "use_rel_pos": True, "embed_dim": 768,
        "depth": 12, "num_heads": 12, "global_attn_indexes": [2, 5, 8, 11], "prompt_embed_dim": 256,
        "decoder_mlp_dim": 2048, "decoder_heads": 8, "iou_head_hidden_dim": 256,
    }  # fmt: skip
    torch.manual_seed(0)
    file = tmp_path / "sam_vit_b.pth"
    torch.save({k: v.half() for k, v in build_sam(config).state_dict().items()}, file)
    assert Segmenter.load(str(file), device="cpu").family.side == 1024


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": {"image_encoder.trunk": torch.zeros(2)}}, "SAM 2, SAM 3 and EdgeTAM are loaded by hub id"),
        ([torch.zeros(2)], "it has no image_encoder.patch_embed.proj.weight"),
        ({"image_encoder.patch_embed.proj.weight": torch.zeros(96, 3, 16, 16)}, "96 wide.* 768, 1024, 1280"),
        ({"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)}, "Missing key.*pos_embed"),
        ({"code": Path}, "or more than weights, such as code"),
    ],
    ids=["SAM 2", "a list", "another width", "a part", "code"],
)
def test_what_is_no_sam_is_told_in_a_sentence(tmp_path: Path, content: object, reason: str) -> None:
    torch.save(content, tmp_path / "own.pth")
    with pytest.raises(ModelLoadError, match=reason) as caught:
        Segmenter.load(str(tmp_path / "own.pth"), device="cpu")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_config_that_lacks_a_size_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"image_size": 256}')
    shutil.copy(BUILTIN / "segmenter" / "model.safetensors", tmp_path)
    with pytest.raises(ModelLoadError, match="it has no 'patch_size'"):
        Segmenter.load(str(tmp_path), device="cpu")
