"""What the loops would otherwise repeat: an optimiser, a clipped step, batches in a seeded order."""

from collections.abc import Iterator

import torch

from minirlhf.loops.config import OptimiserConfig
from minirlhf.runtime import check


def make_optimizer(model: torch.nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW over what can be trained, fused into one kernel, no weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True
    )


def clipped_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> torch.Tensor:
    """Clip the gradient's norm, step, and clear. Returns the norm before clipping.

    Raises:
        FloatingPointError: the gradient is not finite; the weights are left as they were.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"The gradient's norm is {norm.item()}; lower lr or look at the last batch. "
            "This model's weights were left as they were."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def set_dropout(model: torch.nn.Module, p: float) -> None:
    """Training mode with dropout p everywhere. Policies in RL have it off: the ratio must be 1 at the first minibatch."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p


def shuffled_batches(n: int, batch_size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """`steps` batches of row numbers; each pass over the n rows is in a new order, batches cross passes.

    The order follows from the seed alone: a resumed run goes through the same batches.
    """
    generator = torch.Generator().manual_seed(seed)
    check("rows to train on", n, n >= 1, "at least 1")
    pool = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(pool) < batch_size:
            pool = torch.cat([pool, torch.randperm(n, generator=generator)])
        yield pool[:batch_size]
        pool = pool[batch_size:]


def linear_decay(
    optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int, warmup: int = 5
) -> None:
    """Warm up over a few steps, then go to 0 on a straight line."""
    factor = min(1.0, (step + 1) / warmup) * (1 - step / steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * factor
