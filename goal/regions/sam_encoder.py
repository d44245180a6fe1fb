"""SAM's image encoder in little memory: the package's weights and results, without its attention matrices.

The package writes out every attention matrix of all heads (2.4 GB for one picture with vit_b); here the
position bias is made for a few heads at a time and torch's fused attention does the rest.

Letters: B pictures or windows, H and W patches a side, C width, h heads, d width of a head, N = H W tokens.
"""

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor
from torch.nn import functional

# Elements of the position bias held at once.
BIAS_ELEMENTS = 2**24


def save_memory(encoder: ImageEncoderViT) -> None:
    """Replace the attention of all blocks; the encoder's results stay the same."""
    for block in encoder.blocks:
        block.attn.forward = partial(attend, block.attn)


def attend(attention: Attention, x: Tensor) -> Tensor:
    """Attention with decomposed relative positions over x (B, H, W, C)."""
    batch, height, width, channels = x.shape
    heads, tokens = attention.num_heads, height * width
    qkv = attention.qkv(x).view(batch, tokens, 3, heads, -1)
    # (B h, N, d) each; heads of all pictures side by side, so that they can be taken a few at a time.
    q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, -1).unbind(0)
    del qkv
    step = max(1, BIAS_ELEMENTS // tokens**2)
    out = torch.empty_like(q)
    for start in range(0, batch * heads, step):
        part = slice(start, start + step)
        bias = _position_bias(attention, q[part], height, width)
        out[part] = functional.scaled_dot_product_attention(
            q[part][None], k[part][None], v[part][None], attn_mask=bias, scale=attention.scale
        )[0]
    out = out.view(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4)
    return attention.proj(out.reshape(batch, height, width, channels))


def _position_bias(attention: Attention, q: Tensor, height: int, width: int) -> Tensor:
    """What the package adds to the attention's logits: (1, B h, N, N) from q (B h, N, d)."""
    q = q.view(-1, height, width, q.shape[-1])
    rows = torch.einsum("bhwc,hkc->bhwk", q, get_rel_pos(height, height, attention.rel_pos_h))
    columns = torch.einsum("bhwc,wkc->bhwk", q, get_rel_pos(width, width, attention.rel_pos_w))
    # Contiguous while small: the sum takes over their order in memory.
    bias = rows.contiguous()[:, :, :, :, None] + columns.contiguous()[:, :, :, None, :]
    return bias.view(1, -1, height * width, height * width)
