"""SAM's mask decoder for many points of one picture: the package's weights and results, half its work.

What the package does anew for every point, and why it need not:
- In the first layer all points see the same patches: their keys, values and queries are projected once.
- An attention between a point's 7 tokens and 4,096 patches can leave the patches as they are: projecting the
  tokens backwards (q' = W_k^T q) gives the same logits, the projection of the weighted patches the same sum.
  In the other direction W_o is folded into the tokens' values in the same manner.
- The predicted quality depends on the tokens alone: a point whose masks all fail it is not upscaled.

Letters: P points, T tokens of a point, N = H W patches, C width, h heads, d width of a head, M masks a point.
"""

from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Masks:
    """K masks that passed the quality filter.

    logits (K, 4 H, 4 W), over SAM's padded input; quality (K,), the predicted IoU; point (K,), the row of the
    point that gave the mask.
    """

    logits: Tensor
    quality: Tensor
    point: Tensor


class Picture:
    """One picture out of the image encoder, ready to be asked about points."""

    def __init__(self, sam: Sam, embedding: Tensor) -> None:
        """embedding: (C, H, W), in the precision of the decoder's weights; prompts stay fp32."""
        self.sam = sam
        self.grid = embedding.shape[1:]
        # A mask prompt is never given, its stand-in is the same for every point.
        self.patches = embedding.flatten(1).T + sam.prompt_encoder.no_mask_embed.weight.to(embedding.dtype)
        positions = sam.prompt_encoder.get_dense_pe()[0].flatten(1).T.to(embedding.dtype)
        first, *later = sam.mask_decoder.transformer.layers
        read, write = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        placed = self.patches + positions
        self._keys = _split(read, read.k_proj(placed))
        self._values = _split(read, read.v_proj(self.patches))
        self._queries = _split(write, write.q_proj(placed))
        reads = [layer.cross_attn_token_to_image for layer in later]
        reads.append(sam.mask_decoder.transformer.final_attn_token_to_image)
        self._key_positions = [_split(read, read.k_proj(positions)) for read in reads]
        writes = [layer.cross_attn_image_to_token for layer in later]
        self._query_positions = [_split(write, write.q_proj(positions)) for write in writes]

    def masks(self, points: Tensor, min_quality: float) -> Masks:
        """Masks of a predicted IoU above min_quality; points (P, 2), x and y in pixels of SAM's input."""
        decoder = self.sam.mask_decoder
        labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        prompts, _ = self.sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([outputs.expand(len(points), -1, -1), prompts.to(outputs.dtype)], dim=1)
        tokens, patches = self._transform(tokens)
        # The first mask output is the package's answer where one mask is asked for; three are, as it does.
        quality = decoder.iou_prediction_head(tokens[:, 0])[:, 1:].float()
        # The package filters nothing at 0.
        keep = (quality > min_quality) | (min_quality == 0)
        point, output = keep.nonzero(as_tuple=True)
        some = keep.any(dim=1)
        heads = list(enumerate(decoder.output_hypernetworks_mlps))[1:]
        kernels = torch.stack([head(tokens[some, 1 + index]) for index, head in heads], dim=1)
        logits = self._upscale(patches[some], kernels)
        row = some.cumsum(0) - 1
        return Masks(logits[row[point], output].float(), quality[keep], point)

    def _transform(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """The two-way transformer: tokens (P, T, C), patches (P, N, C) from prompts (P, T, C)."""
        transformer = self.sam.mask_decoder.transformer
        first, *later = transformer.layers
        read, write = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        queries = first.norm1(first.self_attn(prompts, prompts, prompts))
        weights = torch.einsum("phtd,hnd->phtn", _query(read, queries + prompts), self._keys).softmax(dim=-1)
        queries = queries + _project(read, torch.einsum("phtn,hnd->phtd", weights, self._values))
        queries = _feed_forward(first, queries)
        logits = torch.einsum("phtd,hnd->phtn", _key(write, queries + prompts), self._queries)
        patches = first.norm4(_write(write, self.patches, logits, queries))
        for index, layer in enumerate(later):
            write = layer.cross_attn_image_to_token
            placed = queries + prompts
            queries = layer.norm1(queries + layer.self_attn(placed, placed, queries))
            queries = queries + _read(
                layer.cross_attn_token_to_image, queries + prompts, patches, self._key_positions[index]
            )
            queries = _feed_forward(layer, queries)
            key = _key(write, queries + prompts)
            logits = _logits(key, write.q_proj.weight, patches, self._query_positions[index])
            patches = layer.norm4(_write(write, patches, logits, queries))
        queries = queries + _read(
            transformer.final_attn_token_to_image, queries + prompts, patches, self._key_positions[-1]
        )
        return transformer.norm_final_attn(queries), patches

    def _upscale(self, patches: Tensor, kernels: Tensor) -> Tensor:
        """Mask logits (P, M, 4 H, 4 W) from patches (P, N, C) and kernels (P, M, C / 8).

        The package's two transposed convolutions have stride = size, so they are products of single patches.
        """
        widen, norm, activation, refine, last_activation = self.sam.mask_decoder.output_upscaling
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


def _query(attention: Attention, tokens: Tensor) -> Tensor:
    """Tokens as scaled queries (P, h, T, d)."""
    queries = _split(attention, attention.q_proj(tokens))
    return queries * queries.shape[-1] ** -0.5


def _key(attention: Attention, tokens: Tensor) -> Tensor:
    """Tokens as scaled keys (P, h, T, d)."""
    keys = _split(attention, attention.k_proj(tokens))
    return keys * keys.shape[-1] ** -0.5


def _project(attention: Attention, x: Tensor) -> Tensor:
    """(P, h, T, d) through the attention's last projection to (P, T, C)."""
    return attention.out_proj(x.transpose(1, 2).flatten(2))


def _logits(tokens: Tensor, weight: Tensor, patches: Tensor, positions: Tensor) -> Tensor:
    """Products (P, h, T, N) of tokens (P, h, T, d) with weight (h d, C) applied to patches (P, N, C).

    positions (h, N, d): the same weight (and its bias) applied to the patches' positions.
    """
    heads, count = tokens.shape[1:3]
    folded = torch.einsum("phtd,hdc->phtc", tokens, weight.unflatten(0, (heads, -1)))
    logits = (folded.flatten(1, 2) @ patches.transpose(1, 2)).unflatten(1, (heads, count))
    return logits + torch.einsum("phtd,hnd->phtn", tokens, positions)


def _read(attention: Attention, tokens: Tensor, patches: Tensor, positions: Tensor) -> Tensor:
    """What tokens (P, T, C) take from patches (P, N, C); positions as in _logits."""
    heads = attention.num_heads
    logits = _logits(_query(attention, tokens), attention.k_proj.weight, patches, positions)
    taken = (logits.softmax(dim=-1).flatten(1, 2) @ patches).unflatten(1, (heads, -1))
    weight = attention.v_proj.weight.unflatten(0, (heads, -1))
    values = torch.einsum("phtc,hdc->phtd", taken, weight)
    return _project(attention, values + attention.v_proj.bias.view(heads, 1, -1))


def _write(attention: Attention, patches: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
    """Patches (P, N, C) or (N, C) plus what they take from tokens (P, T, C); logits (P, h, T, N)."""
    heads = attention.num_heads
    values = _split(attention, attention.v_proj(tokens))
    values = torch.einsum("phtd,chd->phtc", values, attention.out_proj.weight.unflatten(1, (heads, -1)))
    # Each head's weights sum to 1, so each head brings its part of the bias.
    values = values + attention.out_proj.bias / heads
    weights = logits.softmax(dim=2).flatten(1, 2).transpose(1, 2)
    return torch.baddbmm(patches.expand(len(tokens), -1, -1), weights, values.flatten(1, 2))


def _feed_forward(layer: TwoWayAttentionBlock, queries: Tensor) -> Tensor:
    queries = layer.norm2(queries)
    return layer.norm3(queries + layer.mlp(queries))


def _by_patch(convolution: torch.nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A transposed convolution of stride 2 and size 2, from (..., C) to (..., 4, C'): a product a patch."""
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return (x @ weight + convolution.bias.repeat(4)).unflatten(-1, (4, -1))
