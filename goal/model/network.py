"""The two towers: open_clip's CLIP with one forward that returns named features.

Letters: B images or texts, S side of the view in pixels, N patches, T tokens of a padded text, V vision
width, W text width, D joint width.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from open_clip.model import CLIP
from torch import Tensor, nn

MAX_SCALE = 100.0
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Spec:
    """All that rebuilds a network and prepares its pictures; travels in the weights file."""

    name: str  # an open_clip name, scenes-vit, or custom
    image_size: int  # pixels, the view's side
    patch_size: int  # pixels
    embed_dim: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int  # hidden units
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp: int  # hidden units
    vocab_size: int
    context_length: int  # tokens, BOS and EOS included
    quick_gelu: bool
    view: Literal["center_crop", "squash"] = "center_crop"
    mean: tuple[float, float, float] = OPENAI_MEAN  # of the red, green and blue channel, 0 to 1
    std: tuple[float, float, float] = OPENAI_STD

    @property
    def config(self) -> dict[str, Any]:
        """The architecture in open_clip's terms."""
        # int(width * ratio) must be the hidden units again: the half keeps rounding out of it.
        return {
            "embed_dim": self.embed_dim,
            "quick_gelu": self.quick_gelu,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch_size,
                "width": self.vision_width,
                "layers": self.vision_layers,
                "head_width": self.vision_width // self.vision_heads,
                "mlp_ratio": _ratio(self.vision_mlp, self.vision_width),
            },
            "text_cfg": {
                "context_length": self.context_length,
                "vocab_size": self.vocab_size,
                "width": self.text_width,
                "heads": self.text_heads,
                "layers": self.text_layers,
                "mlp_ratio": _ratio(self.text_mlp, self.text_width),
            },
        }


def normalised(views: UInt8[Tensor, "B 3 S S"], spec: Spec) -> Float[Tensor, "B 3 S S"]:
    """Views as the image tower takes them: 0..1, the spec's mean taken off, divided by its deviation."""
    pixels = views.float().div_(255)
    # By numbers: tensors of them would have to be copied to the device, and waited for.
    for channel, mean, std in zip(pixels.unbind(1), spec.mean, spec.std, strict=True):
        channel.sub_(mean).div_(std)
    return pixels


def _ratio(hidden: int, width: int) -> float:
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


class Features(NamedTuple):
    """What a tower returns for its B inputs."""

    # Projected, NOT normalised.
    pooled: Float[Tensor, "B D"]
    # The last layer BEFORE the final layer norm: patches without CLS, or text tokens.
    tokens: Float[Tensor, "..."]


class Attention(nn.Module):
    """Self-attention over the parameters of another module.

    nn.MultiheadAttention would need the causal mask as a tensor, and has another kernel for evaluation.
    """

    def __init__(self, source: nn.MultiheadAttention, causal: bool) -> None:
        super().__init__()
        self.heads = source.num_heads
        self.causal = causal
        self.in_proj_weight = source.in_proj_weight
        self.in_proj_bias = source.in_proj_bias
        self.out_proj = source.out_proj

    def forward(self, values: Float[Tensor, "B T W"], *same: Tensor, **unused: None) -> tuple[Tensor]:
        """Called by open_clip's block, which passes the same values as query, key and value, and no mask."""
        joint = F.linear(values, self.in_proj_weight, self.in_proj_bias)
        q, k, v = joint.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return (self.out_proj(mixed.transpose(1, 2).flatten(2)),)


class GoalClip(CLIP):
    """open_clip's CLIP, its state dict unchanged, with named features and texts of any length that fits.

    Activation checkpointing: open_clip's `set_grad_checkpointing`.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(**spec.config)
        self.spec = spec
        # The towers' attention makes its own.
        self.attn_mask = None
        # The tower then returns its patches before the final layer norm, which is the same for the CLS token.
        self.visual.output_tokens = True
        self.visual.final_ln_after_pool = True
        for transformer, causal in ((self.visual.transformer, False), (self.transformer, True)):
            for block in transformer.resblocks:
                block.attn = Attention(block.attn, causal)

    def forward(self, images: Tensor, *texts: Tensor) -> tuple[Features, ...]:
        """Features of images and of each batch of texts; the only entry that training uses: DDP must see
        every call.
        """
        return self.image_features(images), *map(self.text_features, texts)

    def image_features(self, images: Float[Tensor, "B 3 S S"] | UInt8[Tensor, "B 3 S S"]) -> Features:
        """pooled (B, D); tokens (B, N, V), the patches row by row.

        Images: what clip.preprocess makes, or as bytes its views, which a quarter of the memory holds.
        """
        views = images if images.is_floating_point() else normalised(images, self.spec)
        return Features(*self.visual(views))

    def text_features(self, ids: Int[Tensor, "B T"]) -> Features:
        """pooled (B, D); tokens (B, T, W). Ids are zero padded, the EOS is the largest.

        Raises ValueError for texts that are longer than the context.
        """
        count, length = ids.shape
        if length > self.spec.context_length:
            raise ValueError(f"texts of {length} tokens do not fit the context of {self.spec.context_length}")
        embedded = self.token_embedding(ids) + self.positional_embedding[:length]
        # A causal tower: no token sees the padding after its text.
        tokens = self.transformer(embedded)
        last = tokens[torch.arange(count, device=ids.device), ids.argmax(-1)]
        return Features(self.project_tokens(last), tokens)

    def encode_images(
        self, images: Float[Tensor, "B 3 S S"] | UInt8[Tensor, "B 3 S S"], normalize: bool = False
    ) -> Float[Tensor, "B D"]:
        """Embeddings of images as `image_features` takes them."""
        pooled = self.image_features(images).pooled
        return F.normalize(pooled, dim=-1) if normalize else pooled

    def encode_texts(self, ids: Int[Tensor, "B T"], normalize: bool = False) -> Float[Tensor, "B D"]:
        """Embeddings of zero-padded texts, T at most the context."""
        pooled = self.text_features(ids).pooled
        return F.normalize(pooled, dim=-1) if normalize else pooled

    # open_clip's names, for code written for it.
    encode_image, encode_text = encode_images, encode_texts

    def project_patches(self, mean: Float[Tensor, "B V"]) -> Float[Tensor, "B D"]:
        """The model's own final layer norm and projection of pooled patches (paper, section 3, TSL)."""
        return self.visual.ln_post(mean) @ self.visual.proj

    def project_tokens(self, mean: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
        """The model's own final layer norm and projection of text tokens, or of their mean (TSL)."""
        return self.ln_final(mean) @ self.text_projection

    def scale(self) -> Float[Tensor, ""]:
        """The factor of cosines in the contrastive losses, at most 100 (paper, section 3)."""
        scale = self.logit_scale.exp()
        # Taken off as a constant: a clamp would cut the gradient, and OpenAI's scale starts a hair above 100.
        return scale - (scale.detach() - MAX_SCALE).clamp(min=0)
