"""The plain step in the release's manner, with open_clip's modules: what ours is compared with.

Both towers run twice, wholes and crops each time; every text is padded to the context and tokenised in the
loop, each caption five times; patches and tokens are pooled sample by sample, which waits for the device.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from benchmarks.step_cases import CONTEXT, WEIGHTS
from goal import boxes
from goal.model.network import GoalClip, normalised
from goal.text import pad, tokenize

# Times that the release tokenises each caption in a step.
TOKENISED = 5


class Plain(nn.Module):
    """open_clip's network, its last layers before the final layer norms taken out."""

    def __init__(self, source: GoalClip) -> None:
        super().__init__()
        self.clip = CLIP(**source.spec.config)
        self.clip.load_state_dict(source.state_dict())
        self.clip.visual.output_tokens = True
        self.clip.visual.final_ln_after_pool = True

    def images(self, views: Tensor) -> tuple[Tensor, Tensor]:
        return self.clip.visual(views)

    def texts(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        clip = self.clip
        embedded = clip.token_embedding(ids) + clip.positional_embedding
        hidden = clip.transformer(embedded, attn_mask=clip.attn_mask)
        ends = hidden[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        return clip.ln_final(ends) @ clip.text_projection, hidden


def plain(source: GoalClip, pairs: list[dict[str, Any]], autocast: Callable) -> Callable[[], list[float]]:
    """A function that takes one step and returns the losses; the pictures lie ready on the host."""
    spec, device = source.spec, source.logit_scale.device
    model = Plain(source).to(device)
    clip = model.clip
    adamw = torch.optim.AdamW(model.parameters(), lr=5e-6, weight_decay=0.05)
    pictures = normalised(torch.stack([pair[part] for part in ("whole", "crop") for pair in pairs]), spec)
    pictures = pictures.pin_memory() if device.type == "cuda" else pictures

    def padded(texts: list[Tensor]) -> Tensor:
        return F.pad(pad(texts), (0, CONTEXT - max(map(len, texts)))).to(device)

    def similarity(mean: Tensor, target: Tensor) -> Tensor:
        return (1 - F.cosine_similarity(mean, target, dim=-1)) ** 2

    def take() -> list[float]:
        captions, sentences, spans = [], [], []
        for pair in pairs:
            for _ in range(TOKENISED):
                tokens = tokenize(pair["caption"], [pair["sentence"]], CONTEXT)
            captions.append(tokens.ids)
            sentences.append(tokenize(pair["sentence"].text, [], CONTEXT).ids)
            spans.append(tokens.spans[0])
        views = pictures.to(device, non_blocking=True)
        ids = padded(captions + sentences)
        with autocast():
            # As released: once for the embeddings and again for the tokens, wholes and crops each time.
            pooled, _ = model.images(views)
            written, _ = model.texts(ids)
            _, patches = model.images(views)
            _, tokens = model.texts(ids)
        image, region = pooled.float().chunk(2)
        text, sentence = written.float().chunk(2)
        seen, read = [], []
        for row, pair in enumerate(pairs):
            lit = boxes.patch_mask(pair["box"], spec.image_size, spec.patch_size).nonzero()[:, 0].tolist()
            mean = torch.stack([patches[row, place].float() for place in lit]).mean(0)
            seen.append(similarity(clip.visual.ln_post(mean) @ clip.visual.proj, region[row]))
            mean = torch.stack([tokens[row, place].float() for place in range(*spans[row])]).mean(0)
            read.append(similarity(clip.ln_final(mean) @ clip.text_projection, sentence[row]))
        target = torch.arange(len(pairs), device=device)
        values = []
        for left, right in ((image, text), (region, sentence)):
            logits = clip.logit_scale.exp() * F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).T
            values.append((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
        values += [torch.stack(seen).mean(), torch.stack(read).mean()]
        sum(weight * value for weight, value in zip(WEIGHTS.values(), values, strict=True)).backward()
        adamw.step()
        adamw.zero_grad()
        return [value.item() for value in values]

    return take
