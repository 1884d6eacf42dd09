"""Define the recipes: named settings of the steps from attention to masks, each with its source."""

from dataclasses import dataclass
from typing import Literal

Points = Literal["peak", "pair", "maxima", "kmeans"]  # see model/attention/point_prompts.py
Source = Literal["flow", "last-layer", "decoder-mean", "vision", "cosine", "vit-rollout"]


@dataclass(frozen=True)
class Recipe:
    """Settings of the steps from attention to masks. VL-SAM is arXiv 2410.05963, DecAF arXiv 2510.19592."""

    #: The source of a map. "flow": attention rolled out through the layers (VL-SAM equation 3).
    #: "last-layer" and "decoder-mean": attention of the last layer, or of all layers, mean over heads.
    #: "vision": attention that patches receive in the vision tower's last layer, one map for all terms.
    #: "cosine": cosine similarity of hidden states in the layers before the middle (FSeg-LLaVA, CVPR 2026).
    #: "vit-rollout": an image classifier's attention for the term's class (Chefer et al., arXiv 2103.15679).
    source: Source = "flow"
    #: Weights of heads: "max" is VL-SAM's equation 1; "vmax" looks at image columns only and scales the
    #: best head to 1 (DecAF).
    head_weights: Literal["none", "max", "vmax"] = "max"
    start_layer: float = 0.0  #: share of the layers left out at the bottom (DecAF: half)
    #: "paper": (I + S')(I + Sbar), a sum over all starts; "half": (I + S') / 2, one product (Abnar and
    #: Zuidema, arXiv 2005.00928; DecAF), which differs from the product of (I + S') by a factor alone;
    #: "depth": (I + S' / L), one product, in which all L layers together add as much as one in the others
    #: (ours; that a layer's attention adds less than half: Kobayashi et al., arXiv 2109.07152).
    residual: Literal["paper", "half", "depth"] = "paper"
    #: Where the columns' factors against the causal collapse apply: to S' before each product, or once at the
    #: end (VL-SAM 3.2 does not say).
    regularise: Literal["none", "before", "end"] = "before"
    #: The rows of a term: its own tokens (VL-SAM), or the position that predicts the first of them.
    row: Literal["own", "asking"] = "own"
    #: Of several tokens: the mean, the maximum per cell, or the last token's map (DecAF's appendix).
    subtokens: Literal["mean", "max", "last"] = "mean"
    #: The map to subtract: that of a question about the background (DecAF), or the mean of the other
    #: terms' maps (TAM, arXiv 2506.23270, regresses them out).
    contrast: Literal["none", "background", "terms"] = "none"
    sinks: bool = False  #: level cells that stand out in every map (RefAM, arXiv 2509.22650)
    cosine: bool = False  #: multiply by the cosine map (FSeg-LLaVA: the product was best)
    smooth: float = 0.0  #: sigma of a Gaussian over the map, in cells (DecAF: 1)
    points: Points = "pair"
    components: int = 1  #: areas of the map per round, largest first (FSeg-LLaVA)
    box: bool = False  #: the area's box joins the points (FSeg-LLaVA: points and box were best)
    logits: bool = False  #: the map as SAM's mask input (F-LMM, arXiv 2406.05821)
    refine: bool = True  #: PerSAM's cascade, and more instances from the rest of the map (VL-SAM 3.4)
    consistency: bool = True  #: agreement of mask and map counts in the score (DecAF)


RECIPES = {
    "naive": Recipe(source="last-layer", points="peak", refine=False, consistency=False),
    "paper": Recipe(),
    # The best on the built-in models among those that also work at real depth: docs/decisions/0008.
    "best": Recipe(residual="depth", regularise="none", smooth=0.7, logits=True),
    "decoder-mean": Recipe(source="decoder-mean"),
    "vision": Recipe(source="vision"),
    "cosine": Recipe(source="cosine"),
    "vit-rollout": Recipe(source="vit-rollout"),
}
