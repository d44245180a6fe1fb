"""A SAM of 0.8 million weights made of the package's classes, and how the weights beside it were trained.

`python -m benchmarks.small_sam` trains it anew on scenes with the losses of SAM's paper (arXiv 2304.02643,
section 3 and appendix A): a point in a thing or on the background, three masks, the best of them is trained.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional

from goal.datasets import scenes_layout, scenes_render

WEIGHTS = Path(__file__).with_name("small_sam.pth")
SIDE, WIDTH = 256, 64
STEPS, PICTURES, POINTS = 1800, 6, 8


def build() -> Sam:
    """The network, untrained: 256 px, patches of 16, masks of 64 x 64."""
    grid = SIDE // 16
    encoder = ImageEncoderViT(
        img_size=SIDE,
        embed_dim=96,
        depth=4,
        num_heads=4,
        out_chans=WIDTH,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=7,
        global_attn_indexes=(1, 3),
    )
    decoder = MaskDecoder(
        transformer_dim=WIDTH,
        transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, num_heads=4, mlp_dim=256),
        iou_head_hidden_dim=WIDTH,
    )
    prompts = PromptEncoder(WIDTH, (grid, grid), (SIDE, SIDE), mask_in_chans=16)
    return Sam(encoder, prompts, decoder).eval()


def picture(seed: int, index: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A scene (size, size, 3) uint8 and the masks of its things (things, size, size) bool."""
    rng = scenes_layout.stream(seed, "train", index, "layout")
    scene = scenes_layout.draw(rng, 3, 6)
    image, _ = scenes_render.render(scene, size)
    masks = []
    for thing in scene.things:
        inked = scenes_layout.Thing(thing.shape, "black", thing.size, "plain", thing.place, thing.jitter)
        alone, _ = scenes_render.render(scenes_layout.Scene((inked,), "white", "even"), size)
        masks.append(alone[..., 0] < 128)
    return image, np.stack(masks)


def train() -> None:
    """Train on fresh scenes and write WEIGHTS, in half precision."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sam = build().train()
    optimizer = torch.optim.AdamW(sam.parameters(), lr=8e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-4, STEPS, pct_start=0.05)
    for step in range(STEPS):
        loss, iou = _loss(sam, [picture(1, step * PICTURES + index) for index in range(PICTURES)], rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, IoU of the best mask {iou:.3f}", flush=True)
    torch.save({key: value.half() for key, value in sam.state_dict().items()}, WEIGHTS)


def _loss(
    sam: Sam, scenes: list[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> tuple[Tensor, float]:
    images = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _ in scenes]).float()
    images = functional.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True)
    embeddings = sam.image_encoder(sam.preprocess(images))
    losses, best_ious = [], []
    for embedding, (_, masks) in zip(embeddings, scenes, strict=True):
        masks = np.concatenate([masks, ~masks.any(axis=0, keepdims=True)])
        chosen = rng.integers(len(masks), size=POINTS)
        points = [np.argwhere(masks[one])[rng.integers(masks[one].sum())][::-1] for one in chosen]
        points = (torch.from_numpy(np.array(points)) + 0.5) * (SIDE / masks.shape[1])
        target = functional.interpolate(
            torch.from_numpy(masks[chosen]).float()[:, None], (64, 64), mode="area"
        )
        sparse, dense = sam.prompt_encoder((points[:, None], torch.ones(POINTS, 1)), None, None)
        logits, quality = sam.mask_decoder(
            embedding[None], sam.prompt_encoder.get_dense_pe(), sparse, dense, True
        )
        target = target.expand_as(logits)
        share = logits.sigmoid()
        cross = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        focal = (cross * (share - target) ** 2).mean(dim=(2, 3))
        overlap = (share * target).sum(dim=(2, 3))
        dice = 1 - (2 * overlap + 1) / ((share + target).sum(dim=(2, 3)) + 1)
        found, true = logits > 0, target > 0.5
        iou = (found & true).sum(dim=(2, 3)) / (found | true).sum(dim=(2, 3)).clamp(min=1)
        losses.append((20 * focal + dice).amin(dim=1).mean() + functional.mse_loss(quality, iou))
        best_ious.append(iou.amax(dim=1).mean().item())
    return torch.stack(losses).mean(), float(np.mean(best_ious))


if __name__ == "__main__":
    train()
