"""Heat maps over the patches of a picture: where a model finds each sentence of the caption.

Letters: S sentences, G rows and columns of the patch grid, N = G * G patches, T tokens, W text width, X side
of the view in pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goal import clip, text
from goal.cleaning import clean
from goal.model.network import Features, GoalClip
from goal.text.sentences import Sentence


@dataclass(frozen=True)
class Grounding:
    """The sentences of a caption on a picture; maps lie in the grid frame, row by row from the top.

    maps: cosine of each patch with each sentence; NaN for a sentence beyond the context.
    scores: cosine of each sentence with the whole picture; NaN for a sentence beyond the context.
    attention: what each patch receives from the others in the last layer, mean over heads and patches (the
    attention map of GOAL's release); its sum is 1 minus the attention to the CLS token.
    tokens: of the caption before truncation; read: how many of them the context holds.
    """

    sentences: list[Sentence]
    maps: Float[Tensor, "S G G"]
    scores: Float[Tensor, " S"]
    attention: Float[Tensor, "G G"]
    tokens: int
    read: int


@torch.inference_mode()
def ground(model: GoalClip, image: Image.Image, caption: str) -> Grounding:
    """Compare every sentence, encoded within its caption, with every patch of a picture (RGB, image frame).

    A sentence is the mean of its tokens. Sentences and patches are taken before the final layer norm and pass
    through the model's own norm and projection: TSL compares the same vectors (paper, section 3).
    """
    device = model.positional_embedding.device
    views = clip.preprocess(model.spec)(image)[None].to(device)
    caption = clean(caption)
    sentences = text.split_sentences(caption)
    uncut = text.tokenize(caption, [], None).ids
    tokens = text.tokenize(caption, sentences, model.spec.context_length)
    visual, attention = _image(model, views)
    textual = model.text_features(tokens.ids[None].to(device))
    means = [_mean(textual.tokens[0], span) for span in tokens.spans]
    vectors = F.normalize(model.project_tokens(torch.stack(means)), dim=1) if means else textual.pooled[:0]
    patches = F.normalize(model.project_patches(visual.tokens[0]), dim=1)
    grid = model.spec.image_size // model.spec.patch_size
    return Grounding(
        sentences=sentences,
        maps=(vectors @ patches.T).reshape(len(sentences), grid, grid).float().cpu(),
        scores=(vectors @ F.normalize(visual.pooled, dim=1)[0]).float().cpu(),
        attention=attention.reshape(grid, grid).float().cpu(),
        tokens=len(uncut),
        read=len(tokens.ids),
    )


def _mean(tokens: Float[Tensor, "T W"], span: tuple[int, int] | None) -> Float[Tensor, " W"]:
    if span is None:
        return torch.full_like(tokens[0], torch.nan)
    return tokens[slice(*span)].mean(0)


def _image(model: GoalClip, views: Float[Tensor, "1 3 X X"]) -> tuple[Features, Float[Tensor, " N"]]:
    """The picture's features, and the attention that each patch receives in the last layer."""
    attention = model.visual.transformer.resblocks[-1].attn
    caught: list[Tensor] = []
    hook = attention.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    try:
        features = model.image_features(views)
    finally:
        hook.remove()
    joint = F.linear(caught[0][0], attention.in_proj_weight, attention.in_proj_bias)
    query, key, _ = joint.unflatten(1, (3, attention.heads, -1)).unbind(1)
    scores = torch.einsum("ihd,jhd->hij", query, key) / query.shape[-1] ** 0.5
    # The first token is CLS.
    return features, scores.softmax(-1).mean(0)[1:, 1:].mean(0)
