"""One training step up to the gradient: both towers, pooling by matrix products, objective, backward.

Letters: B pictures of a chunk, K local pairs of each at most, P local pairs that there are, N patches,
T tokens, W width of either, D joint width.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from goal import losses
from goal.losses import Embeddings
from goal.model.network import GoalClip
from goal.training.batches import Batch
from goal.training.distributed import Group
from goal.training.examples import Needs

# Fields of Embeddings: those gathered from all processes, all tensors, and masks.
COLUMNS = ("image", "text", "region", "sentence", "short", "attended", "grid", "words")
TENSORS = (*COLUMNS, "patches", "tokens")
MASKS = ("has_pair", "in_view", "in_context", "is_word")

Autocast = Callable[[], AbstractContextManager[None]]


def embed(model: nn.Module, batch: Batch, needs: Needs, autocast: Autocast) -> Embeddings:
    """Embeddings of a chunk, fp32 also under autocast. `model`: a GoalClip, or DDP or torch.compile of one.

    Wholes and crops go through the image tower in one call, texts through the text tower by groups of similar
    length.
    """
    with autocast():
        images, *groups = model(batch.images, *batch.texts)
    clip, (pictures, per_picture), pairs = unwrap(model), batch.has_pair.shape, len(batch.rows)
    image = at_least_fp32(images.pooled)
    text = at_least_fp32(torch.cat([group.pooled for group in groups]))[batch.places]
    captions = batch.places[:pictures]
    found: dict[str, Tensor] = {}

    def by_picture(values: Tensor) -> Tensor:
        return scatter_rows(values, batch.rows, pictures * per_picture).unflatten(0, (pictures, per_picture))

    if needs.crops:
        found["region"] = by_picture(image[pictures:])
        found["patches"] = clip.project_patches(masked_mean(images.tokens[:pictures], batch.patches))
    if needs.sentences:
        found["sentence"] = by_picture(text[pictures : pictures + pairs])
        spans = scatter_rows(batch.spans, captions, len(text)).split([len(ids) for ids in batch.texts])
        means = [span_mean(group.tokens, own) for group, own in zip(groups, spans, strict=True)]
        found["tokens"] = clip.project_tokens(torch.cat(means)[captions])
    if needs.attention or needs.tokens:
        found["grid"] = clip.project_patches(at_least_fp32(images.tokens[:pictures]))
    if needs.attention:
        found["attended"] = losses.attend(found["sentence"], found["grid"], needs.attention)
    if needs.tokens:
        length, ends = clip.spec.context_length, [ids.argmax(-1) for ids in batch.texts]
        padded = [functional.pad(group.tokens, (0, 0, 0, length - group.tokens.shape[1])) for group in groups]
        found["words"] = clip.project_tokens(at_least_fp32(torch.cat(padded)[captions]))
        place = torch.arange(length, device=text.device)
        found["is_word"] = (place > 0) & (place < torch.cat(ends)[captions][:, None])
    else:
        found.pop("grid", None)
    if needs.short:
        found["short"] = text[-pictures:]
    masks = {"has_pair": batch.has_pair, "in_view": batch.in_view, "in_context": batch.in_context}
    return Embeddings(image[:pictures], text[:pictures], **found, **masks)


def backward(
    model: nn.Module,
    chunks: Sequence[Batch],
    weights: Mapping[str, float],
    group: Group,
    autocast: Autocast,
    norms: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Add the gradient of the objective to the parameters; returns this process's share of each term.

    norms: filled with the norm of each weighted term's gradient at the embeddings of the whole batch.

    With several chunks the embeddings are computed first without a graph, the objective's gradient is
    taken on them, and each chunk is run again to carry it on: the gradient of the whole batch in the
    memory of a chunk (Gao et al. 2021, arXiv 2101.06983).
    """
    needs = Needs.of(weights)
    if len(chunks) == 1:
        own, scale = embed(model, chunks[0], needs, autocast), unwrap(model).scale()
        values = objective(own, scale, weights, group)
        if norms is not None:
            norms |= gradient_norms(values, weights, own, group)
        (losses.weighted(values, weights) + touch_all_params(own, scale)).backward()
        return {name: value.detach() for name, value in values.items()}
    with torch.no_grad():
        # Without a gradient there is nothing to synchronise; a compiled network stays compiled.
        alone = model.module if isinstance(model, DistributedDataParallel) else model
        own = _joined([embed(alone, chunk, needs, autocast) for chunk in chunks])
        scale = unwrap(model).scale()
    leaves = [getattr(own, name) for name in TENSORS if getattr(own, name) is not None] + [scale]
    for leaf in leaves:
        leaf.requires_grad_()
    values = objective(own, scale, weights, group)
    if norms is not None:
        norms |= gradient_norms(values, weights, own, group)
    losses.weighted(values, weights).backward()
    first = 0
    for chunk in chunks:
        rows = slice(first, first + len(chunk.has_pair))
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
                carried = carried + unwrap(model).scale() * scale.grad
            (carried + touch_all_params(again, unwrap(model).scale())).backward()
    return {name: value.detach() for name, value in values.items()}


def objective(
    own: Embeddings, scale: Tensor, weights: Mapping[str, float], group: Group
) -> dict[str, Tensor]:
    """The terms of this process's rows against the columns of all processes (goal.losses.terms)."""
    return losses.terms(own, scale, weights, gathered(own, group), group.rank * len(own.image))


def gradient_norms(
    values: Mapping[str, Tensor], weights: Mapping[str, float], own: Embeddings, group: Group
) -> dict[str, Tensor]:
    """The norm of each weighted term's gradient at the embeddings, over all processes; keeps the graph."""
    inputs = [value for name in TENSORS if (value := getattr(own, name)) is not None]
    squares = []
    for name, value in values.items():
        found = torch.autograd.grad(weights[name] * value, inputs, retain_graph=True, allow_unused=True)
        squares.append(sum(gradient.square().sum() for gradient in found if gradient is not None))
    return dict(zip(values, group.mean(torch.stack(squares)).sqrt(), strict=True))


def gathered(own: Embeddings, group: Group) -> Embeddings:
    """The embeddings of all processes, COLUMNS and masks, in two exchanges: one of tensors, one of masks."""
    if group.world == 1:
        return own

    def all_ranks(names: Sequence[str], prepared: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        fields = {name: value for name in names if (value := getattr(own, name)) is not None}
        flat = [prepared(value).flatten(1) for value in fields.values()]
        parts = group.gather(torch.cat(flat, 1)).split([part.shape[1] for part in flat], 1)
        return {
            name: part.unflatten(1, value.shape[1:])
            for (name, value), part in zip(fields.items(), parts, strict=True)
        }

    tensors = all_ranks(COLUMNS, lambda values: values)
    masks = all_ranks(MASKS, lambda mask: mask.byte())
    return Embeddings(**tensors, **{name: mask.bool() for name, mask in masks.items()})


def wrapped(model: GoalClip, compiled: bool, group: Group) -> nn.Module:
    """The network as `backward` runs it: compiled where asked for, its gradients averaged over processes."""
    inner = torch.compile(model, dynamic=True) if compiled else model
    if group.world == 1:
        return inner
    own = [group.device] if group.device.type == "cuda" else None
    # Views: a bucket beside each gradient would take the memory of the weights once more.
    return DistributedDataParallel(inner, own, gradient_as_bucket_view=True)


def unwrap(model: nn.Module) -> GoalClip:
    """The network inside what DDP or torch.compile put around it."""
    while isinstance(model, DistributedDataParallel | torch._dynamo.OptimizedModule):
        model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
    return model


def at_least_fp32(values: Tensor) -> Tensor:
    """The values in fp32, or in fp64 where they have it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def touch_all_params(own: Embeddings, scale: Tensor) -> Tensor:
    """0, with a gradient of 0 for every parameter: DDP waits for each, also where no term reaches one."""
    return 0.0 * (own.image.sum() + own.text.sum() + scale)


def _unsynchronised(model: nn.Module) -> AbstractContextManager[None]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def masked_mean(tokens: Float[Tensor, "B N W"], mask: Bool[Tensor, "B K N"]) -> Float[Tensor, "B K W"]:
    """The means of the tokens that each mask marks, 0 where it marks none (paper, section 3, TSL)."""
    tokens = at_least_fp32(tokens)
    return torch.bmm(mask.to(tokens.dtype) / mask.sum(-1, keepdim=True).clamp(min=1), tokens)


def span_mean(tokens: Float[Tensor, "B T W"], spans: Int[Tensor, "B K 2"]) -> Float[Tensor, "B K W"]:
    """The means of each row's tokens in its half-open spans, 0 for an empty span."""
    place = torch.arange(tokens.shape[1], device=tokens.device)
    return masked_mean(tokens, (place >= spans[..., :1]) & (place < spans[..., 1:]))


def scatter_rows(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """(P, ...) to (count, ...): row i becomes row rows[i]; the others are 0, the objective masks them."""
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, rows, values)


def _joined(pieces: Sequence[Embeddings]) -> Embeddings:
    return Embeddings(
        *(None if parts[0] is None else torch.cat(parts) for parts in zip(*pieces, strict=True))
    )
