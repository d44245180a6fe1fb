"""The other way to run the texts of a step: captions and sentences in a call each, padded to their longest.

It gets what padding is good for: where no texts share a row, the kernels' own causal mask serves.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goal.model.network import Features, GoalClip, Spec
from goal.model.packing import Packed
from goal.text import pad
from goal.training.batches import Batch, Collate
from goal.training.examples import Sample


class _Causal(nn.Module):
    """An attention of goal.model.network that needs no mask."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.heads = source.heads
        self.in_proj_weight = source.in_proj_weight
        self.in_proj_bias = source.in_proj_bias
        self.out_proj = source.out_proj

    def forward(self, values: Tensor, mask: None) -> Tensor:
        rows, length, width = values.shape
        joint = F.linear(values, self.in_proj_weight, self.in_proj_bias)
        q, k, v = joint.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(rows, length, width))


class PaddedClip(GoalClip):
    """Takes captions one a row, as `padded` lays them, and the sentences that belong to them beside."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.sentences: Tensor | None = None
        for block in self.transformer.resblocks:
            block.attn = _Causal(block.attn)

    def packed_text_features(self, texts: Packed) -> Features:
        pooled, tokens = self._read(texts.ids)
        sentences, _ = self._read(self.sentences)
        return Features(torch.cat([pooled, sentences]), tokens)

    def _read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.transformer(self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]])
        ends = tokens[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        return self.project_tokens(ends), tokens


def padded(model: PaddedClip, samples: Sequence[Sample]) -> Batch:
    """The samples, each with a pair, as one batch for `model`."""
    (batch,) = Collate(model.spec, 0)(samples).chunks()
    captions = [sample.caption for sample in samples]
    model.sentences = pad([sample.sentence for sample in samples]).to(model.logit_scale.device)
    lengths = torch.tensor([len(caption) for caption in captions])
    ids, nothing = pad(captions), torch.zeros(len(captions), dtype=torch.long)
    # Of the rest only where a text lies is read, for the spans.
    texts = Packed(ids, ids, ids, torch.arange(len(captions)), nothing, lengths, lengths - 1)
    return batch._replace(texts=texts)
