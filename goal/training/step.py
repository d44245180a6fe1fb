"""One training step up to the gradient: both towers once, pooling by matrix products, objective, backward.

Letters: B pairs of a chunk, P of them with a usable pair, N patches, D joint width.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from goal import losses
from goal.losses import Embeddings
from goal.model.network import GoalClip
from goal.model.packing import span_weights
from goal.training.batches import Batch
from goal.training.distributed import Group
from goal.training.examples import Needs

# Fields of Embeddings: what a process's rows meet of all processes, what only their own rows meet, and masks.
COLUMNS = ("image", "text", "region", "sentence", "short")
TENSORS = (*COLUMNS, "patches", "tokens")
MASKS = ("has_pair", "in_view", "in_context")

Autocast = Callable[[], AbstractContextManager[None]]


def embed(model: nn.Module, batch: Batch, needs: Needs, autocast: Autocast) -> Embeddings:
    """Embeddings of a chunk, fp32 also under autocast. `model`: a GoalClip, or DDP or torch.compile of one.

    Wholes and crops go through the image tower in one call, captions, sentences and short captions
    through the text tower in one.
    """
    with autocast():
        images, texts = model(batch.images, batch.texts)
    clip = bare(model)
    pairs, usable = len(batch.spans), len(batch.rows)
    image, text = _wide(images.pooled), _wide(texts.pooled)
    region = patches = sentence = tokens = short = None
    if needs.crops:
        region = _spread(image[pairs:], batch.rows, pairs)
        seen = _wide(images.tokens[:pairs])
        touched = batch.patches.to(seen.dtype)
        share = touched / touched.sum(1, keepdim=True).clamp(min=1)
        patches = clip.project_patches(torch.bmm(share[:, None], seen)[:, 0])
    if needs.sentences:
        sentence = _spread(text[pairs : pairs + usable], batch.rows, pairs)
        share = span_weights(batch.texts, torch.arange(pairs, device=text.device), batch.spans)
        read = _wide(texts.tokens).flatten(0, 1)
        tokens = clip.project_tokens(share.flatten(1).to(read.dtype) @ read)
    if needs.short:
        short = text[-pairs:]
    return Embeddings(
        image[:pairs], text[:pairs], region, sentence, patches, tokens, short,
        batch.has_pair, batch.in_view, batch.in_context,
    )  # fmt: skip


def backward(
    model: nn.Module,
    chunks: Sequence[Batch],
    weights: Mapping[str, float],
    group: Group,
    autocast: Autocast,
) -> dict[str, Tensor]:
    """Add the gradient of the objective to the parameters; returns this process's share of each term.

    With several chunks the embeddings are computed first without a graph, the objective's gradient is
    taken on them, and each chunk is run again to carry it on: the gradient of the whole batch in the
    memory of a chunk (Gao et al. 2021, arXiv 2101.06983).
    """
    needs = Needs.of(weights)
    if len(chunks) == 1:
        own, scale = embed(model, chunks[0], needs, autocast), bare(model).scale()
        values = objective(own, scale, weights, group)
        (losses.weighted(values, weights) + _nothing(own, scale)).backward()
        return {name: value.detach() for name, value in values.items()}
    with torch.no_grad():
        # Nothing to synchronise without a gradient; what is compiled stays compiled.
        alone = model.module if isinstance(model, DistributedDataParallel) else model
        own = _joined([embed(alone, chunk, needs, autocast) for chunk in chunks])
        scale = bare(model).scale()
    leaves = [getattr(own, name) for name in TENSORS if getattr(own, name) is not None] + [scale]
    for leaf in leaves:
        leaf.requires_grad_()
    values = objective(own, scale, weights, group)
    losses.weighted(values, weights).backward()
    first = 0
    for chunk in chunks:
        rows = slice(first, first + len(chunk.spans))
        first = rows.stop
        last = chunk is chunks[-1]
        with nullcontext() if last else _unsynchronised(model):
            again = embed(model, chunk, needs, autocast)
            carried = sum(
                (getattr(again, name) * getattr(own, name).grad[rows]).sum()
                for name in TENSORS
                if getattr(own, name) is not None and getattr(own, name).grad is not None
            )
            if last and scale.grad is not None:
                carried = carried + bare(model).scale() * scale.grad
            (carried + _nothing(again, bare(model).scale())).backward()
    return {name: value.detach() for name, value in values.items()}


def objective(
    own: Embeddings, scale: Tensor, weights: Mapping[str, float], group: Group
) -> dict[str, Tensor]:
    """The terms of this process's rows against the columns of all processes (goal.losses.terms)."""
    everyone = gathered(own, group)
    return losses.terms(own, scale, weights, everyone, group.rank * len(own.image))


def gathered(own: Embeddings, group: Group) -> Embeddings:
    """The embeddings of all processes, COLUMNS and masks, in two exchanges: one of tensors, one of masks."""
    if group.world == 1:
        return own
    names = [name for name in COLUMNS if getattr(own, name) is not None]
    joint = group.gather(torch.cat([getattr(own, name) for name in names], 1))
    masks = group.gather(torch.stack([getattr(own, name) for name in MASKS], 1).byte()).bool()
    tensors = dict(zip(names, joint.chunk(len(names), 1), strict=True))
    return Embeddings(**tensors, **dict(zip(MASKS, masks.unbind(1), strict=True)))


def wrapped(model: GoalClip, compiled: bool, group: Group) -> nn.Module:
    """The network as `backward` runs it: compiled where asked for, its gradients averaged over processes."""
    inner = torch.compile(model, dynamic=True) if compiled else model
    if group.world == 1:
        return inner
    own = [group.device] if group.device.type == "cuda" else None
    # Views: a bucket beside each gradient would take the memory of the weights once more.
    return DistributedDataParallel(inner, own, gradient_as_bucket_view=True)


def bare(model: nn.Module) -> GoalClip:
    """The network inside what DDP or torch.compile put around it."""
    while isinstance(model, DistributedDataParallel | torch._dynamo.OptimizedModule):
        model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
    return model


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _nothing(own: Embeddings, scale: Tensor) -> Tensor:
    # DDP waits for the gradient of every parameter, also where no term with a weight reaches one.
    return 0.0 * (own.image.sum() + own.text.sum() + scale)


def _unsynchronised(model: nn.Module) -> AbstractContextManager[None]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _spread(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """(P, D) to (B, D): row i of `values` becomes row rows[i]; the others are 0, the objective masks them."""
    return values.new_zeros(count, values.shape[1]).index_copy(0, rows, values)


def _joined(pieces: Sequence[Embeddings]) -> Embeddings:
    return Embeddings(
        *(None if parts[0] is None else torch.cat(parts) for parts in zip(*pieces, strict=True))
    )
