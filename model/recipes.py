"""Recipes: the switches from attention to masks, by name. Each switch names its source."""

from dataclasses import dataclass
from typing import Literal

Points = Literal["peak", "pair", "maxima", "kmeans"]  # see model/attention/point_prompts.py
Source = Literal["flow", "last-layer", "decoder-mean", "vision", "cosine", "vit-rollout"]


@dataclass(frozen=True)
class Recipe:
    """Switches from attention to prompts. VL-SAM is arXiv 2410.05963, DecAF is arXiv 2510.19592."""

    # What the map is of. "flow": attention rolled out through the layers (VL-SAM equation 3).
    # "last-layer" and "decoder-mean": mean over heads, of the last layer or of all (the naive way).
    # "vision": what patches get in the vision tower's last layer, the same for every term.
    # "cosine": likeness of hidden states in the layers before the middle (FSeg-LLaVA, CVPR 2026).
    # "vit-rollout": an image classifier's attention for the term's class (Chefer et al., arXiv 2103.15679).
    source: Source = "flow"
    # Weights of heads: "max" is VL-SAM's equation 1; "vmax" looks at image columns only and scales the
    # best head to 1 (DecAF).
    head_weights: Literal["none", "max", "vmax"] = "max"
    start_layer: float = 0.0  # share of the layers left out at the bottom (DecAF: half)
    # "paper": (I + S')(I + Sbar), a sum over all starts; "half": (I + S') / 2, one product (Abnar and
    # Zuidema, arXiv 2005.00928; DecAF), which differs from the product of (I + S') by a factor alone;
    # "depth": (I + S' / L), one product, in which the L layers together add as much as one does in the others
    # (ours; that a layer's attention adds less than half: Kobayashi et al., arXiv 2109.07152).
    residual: Literal["paper", "half", "depth"] = "paper"
    # Where the columns' factor against the causal collapse goes: into S' before each product, or once
    # into the end (VL-SAM 3.2 does not say).
    regularise: Literal["none", "before", "end"] = "before"
    # Whose rows are a term's: the tokens that spell it (VL-SAM), or the position that asked for them.
    row: Literal["own", "asking"] = "own"
    # Of a name in several tokens: the mean, the strongest per cell, or the last one's (DecAF's appendix).
    subtokens: Literal["mean", "max", "last"] = "mean"
    # What is subtracted: the map of a question about the background (DecAF), or the mean of the other
    # terms' maps (TAM, arXiv 2506.23270, regresses them out).
    contrast: Literal["none", "background", "terms"] = "none"
    sinks: bool = False  # level cells that stand out of every map alike (RefAM, arXiv 2509.22650)
    cosine: bool = False  # multiply by the cosine map (FSeg-LLaVA: the product was best)
    smooth: float = 0.0  # sigma of a Gaussian over the map, in cells (DecAF: 1)
    points: Points = "pair"
    components: int = 1  # areas of the map that are tried at once, largest first (FSeg-LLaVA)
    box: bool = False  # the area's box joins the points (FSeg-LLaVA: points and box were best)
    logits: bool = False  # the map as SAM's mask input (F-LMM, arXiv 2406.05821)
    refine: bool = True  # PerSAM's cascade and further instances from what is left (VL-SAM 3.4)
    consistency: bool = True  # agreement of mask and map counts in the score (DecAF)


RECIPES = {
    "naive": Recipe(source="last-layer", points="peak", refine=False, consistency=False),
    "paper": Recipe(),
    # Of what finds its thing at the depth of real models, the best on the built-in ones: docs/decisions/0008.
    "best": Recipe(residual="depth", regularise="none", smooth=0.7, logits=True),
    "decoder-mean": Recipe(source="decoder-mean"),
    "vision": Recipe(source="vision"),
    "cosine": Recipe(source="cosine"),
    "vit-rollout": Recipe(source="vit-rollout"),
}
