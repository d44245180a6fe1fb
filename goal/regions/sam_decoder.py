"""SAM's mask decoder for many points of one picture: the package's weights and results, half its work.

What the package does anew for every point, and why it need not:
- In the first layer all points see the same patches: their keys, values and queries are projected once.
- An attention between a point's 7 tokens and 4,096 patches can leave the patches as they are: projecting the
  tokens backwards (q' = W_k^T q) gives the same logits, the projection of the weighted patches the same sum.
  In the other direction W_o is folded into the tokens' values in the same manner.
- The predicted quality depends on the tokens alone: a point whose masks all fail it is not upscaled.

Letters: P points, T tokens of a point, N = H W patches, C width, h heads, d width of a head, M masks a point.
"""

from typing import NamedTuple

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn
from torch.nn import functional


class Masks(NamedTuple):
    """K masks that passed the quality filter.

    logits (K, 4 H, 4 W), over SAM's padded input; quality (K,), the predicted IoU; point (K,), the row of the
    point that gave the mask.
    """

    logits: Tensor
    quality: Tensor
    point: Tensor


class Picture:
    """One picture out of the image encoder, ready to be asked about points."""

    def __init__(self, decoder: MaskDecoder, embedding: Tensor, positions: Tensor) -> None:
        """embedding (C, H, W): the encoder's plus the dense prompt; positions (C, H, W) of its patches."""
        self.decoder = decoder
        self.grid = embedding.shape[1:]
        self.patches = embedding.flatten(1).T
        self.positions = positions.flatten(1).T
        first, placed = decoder.transformer.layers[0], self.patches + self.positions
        read, write = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        self.keys = _split(read, read.k_proj(placed))
        self.values = _split(read, read.v_proj(self.patches))
        self.queries = _split(write, write.q_proj(placed))

    def masks(self, prompts: Tensor, min_quality: float) -> Masks:
        """Masks of a predicted IoU above min_quality; prompts (P, T, C), the tokens of P points."""
        decoder = self.decoder
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([outputs.expand(len(prompts), -1, -1), prompts], dim=1)
        tokens, patches = self._transform(tokens)
        # The first mask output is the package's answer where one mask is asked for; three are, as it does.
        quality = decoder.iou_prediction_head(tokens[:, 0])[:, 1:].float()
        # The package filters nothing at 0.
        keep = (quality > min_quality) | (min_quality == 0)
        point, output = keep.nonzero(as_tuple=True)
        some = keep.any(dim=1)
        heads = decoder.output_hypernetworks_mlps[1:]
        kernels = torch.stack([head(tokens[some, 2 + index]) for index, head in enumerate(heads)], dim=1)
        logits = self._upscale(patches[some], kernels)
        row = some.cumsum(0) - 1
        return Masks(logits[row[point], output].float(), quality[keep], point)

    def _transform(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """The two-way transformer: tokens (P, T, C), patches (P, N, C) from prompts (P, T, C)."""
        transformer = self.decoder.transformer
        first, *later = transformer.layers
        read, write = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        tokens = first.norm1(first.self_attn(prompts, prompts, prompts))
        queries = _split(read, read.q_proj(tokens + prompts))
        weights = _scaled(torch.einsum("phtd,hnd->phtn", queries, self.keys), read).softmax(dim=-1)
        tokens = tokens + _joined(read, torch.einsum("phtn,hnd->phtd", weights, self.values))
        tokens = _feed_forward(first, tokens)
        keys = _split(write, write.k_proj(tokens + prompts))
        logits = _scaled(torch.einsum("phtd,hnd->phtn", keys, self.queries), write)
        patches = first.norm4(_write(write, logits, tokens, self.patches.expand(len(tokens), -1, -1)))
        for layer in later:
            placed, asking = patches + self.positions, tokens + prompts
            tokens = layer.norm1(tokens + layer.self_attn(asking, asking, tokens))
            tokens = tokens + _read(layer.cross_attn_token_to_image, tokens + prompts, placed, patches)
            tokens = _feed_forward(layer, tokens)
            write = layer.cross_attn_image_to_token
            logits = _logits(write, write.k_proj(tokens + prompts), write.q_proj, placed)
            patches = layer.norm4(_write(write, logits, tokens, patches))
        last, placed = transformer.final_attn_token_to_image, patches + self.positions
        return transformer.norm_final_attn(tokens + _read(last, tokens + prompts, placed, patches)), patches

    def _upscale(self, patches: Tensor, kernels: Tensor) -> Tensor:
        """Mask logits (P, M, 4 H, 4 W) from patches (P, N, C) and kernels (P, M, C / 8).

        The package's two transposed convolutions have stride = size, so they are products of single patches.
        """
        widen, norm, activation, refine, last_activation = self.decoder.output_upscaling
        x = _by_patch(widen, patches)
        x = functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
        x = last_activation(_by_patch(refine, activation(x)))
        count, masks = kernels.shape[:2]
        height, width = self.grid
        logits = x.flatten(1, -2) @ kernels.transpose(1, 2)
        # Rows are made of H, then the first and the second division; columns likewise.
        logits = logits.view(count, height, width, 2, 2, 2, 2, masks)
        return logits.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(count, masks, 4 * height, 4 * width)


def _split(attention: Attention, x: Tensor) -> Tensor:
    """(..., L, h d) to (..., h, L, d)."""
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(-3, -2)


def _joined(attention: Attention, x: Tensor) -> Tensor:
    """(P, h, T, d) through the attention's last projection to (P, T, C)."""
    return attention.out_proj(x.transpose(1, 2).flatten(2))


def _scaled(logits: Tensor, attention: Attention) -> Tensor:
    return logits * (attention.internal_dim // attention.num_heads) ** -0.5


def _logits(attention: Attention, tokens: Tensor, projection: nn.Linear, patches: Tensor) -> Tensor:
    """Scaled products (P, h, T, N) of projected tokens (P, T, h d) with patches (P, N, C) to be projected."""
    heads, tokens = attention.num_heads, _split(attention, tokens)
    weight, bias = (values.unflatten(0, (heads, -1)) for values in (projection.weight, projection.bias))
    folded = torch.einsum("phtd,hdc->phtc", tokens, weight).flatten(1, 2)
    logits = (folded @ patches.transpose(1, 2)).unflatten(1, (heads, -1))
    return _scaled(logits + torch.einsum("phtd,hd->pht", tokens, bias)[..., None], attention)


def _read(attention: Attention, tokens: Tensor, placed: Tensor, patches: Tensor) -> Tensor:
    """What tokens (P, T, C) take from patches (P, N, C); placed: the patches with their positions."""
    heads = attention.num_heads
    weights = _logits(attention, attention.q_proj(tokens), attention.k_proj, placed).softmax(dim=-1)
    taken = (weights.flatten(1, 2) @ patches).unflatten(1, (heads, -1))
    values = torch.einsum("phtc,hdc->phtd", taken, attention.v_proj.weight.unflatten(0, (heads, -1)))
    return _joined(attention, values + attention.v_proj.bias.view(heads, 1, -1))


def _write(attention: Attention, logits: Tensor, tokens: Tensor, patches: Tensor) -> Tensor:
    """Patches (P, N, C) plus what they take from tokens (P, T, C); logits (P, h, T, N)."""
    heads = attention.num_heads
    values = _split(attention, attention.v_proj(tokens))
    values = torch.einsum("phtd,chd->phtc", values, attention.out_proj.weight.unflatten(1, (heads, -1)))
    # Each head's weights sum to 1, so each head brings its part of the bias.
    values = values + attention.out_proj.bias / heads
    weights = logits.softmax(dim=2).flatten(1, 2).transpose(1, 2)
    return torch.baddbmm(patches, weights, values.flatten(1, 2))


def _feed_forward(layer: TwoWayAttentionBlock, tokens: Tensor) -> Tensor:
    tokens = layer.norm2(tokens)
    return layer.norm3(tokens + layer.mlp(tokens))


def _by_patch(convolution: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution of stride 2 and size 2, from (..., C) to (..., 4, C'): a product a patch."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return (x @ weight + convolution.bias.repeat(4)).unflatten(-1, (4, -1))
