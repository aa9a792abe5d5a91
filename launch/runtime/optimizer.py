"""The optimizer of a recipe, and the learning rate of each step as closed formulas.

Where t counts steps from 0, W are warm-up steps, T those of the schedule, d those of its decay, and
m is the last learning rate over the highest, the learning rate of step t is `learning_rate` times

    (t + 1) / (W + 1)                                  t < W: linear warm-up
    1                                                  constant
    m + (1 - m) (1 + cos(pi (t - W) / (T - W))) / 2    cosine (Loshchilov and Hutter 2017,
                                                       arXiv:1608.03983, equation 5)
    1 until t = T - d, then 1 - (1 - m) sqrt(1 - (T - t) / d)
                                                       wsd (Hu et al. 2024, arXiv:2404.06395), with
                                                       the decay that Hägele et al. 2024
                                                       (arXiv:2405.18392) find better than linear
    m                                                  t >= T, cosine and wsd

The warm-up ends at step W and no step has a learning rate of 0 because of it.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from launch.recipe import Recipe


def lr_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step, counted from 0 over warm-up and timed steps."""
    return recipe.learning_rate * _factor(step, recipe)


def _factor(step: int, recipe: Recipe) -> float:
    warmup, total, least = recipe.lr_warmup_steps, recipe.lr_steps, recipe.min_lr_ratio
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.lr_schedule == "constant":
        return 1.0
    if step >= total:
        return least
    if recipe.lr_schedule == "cosine":
        done = (step - warmup) / (total - warmup)
        return least + (1.0 - least) * (1.0 + math.cos(math.pi * done)) / 2.0
    done = max(0.0, 1.0 - (total - step) / (total * recipe.wsd_decay_share))
    return 1.0 - (1.0 - least) * math.sqrt(done)


def make_adamw(recipe: Recipe) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Makes AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with two groups: matrices, which
    decay, then norms and biases, which do not.

    A rank may hold none of either: both groups are always there.
    """

    def make(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [
            {"params": [w for w in weights if w.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            groups,
            lr=lr_at(0, recipe),
            betas=(recipe.beta1, recipe.beta2),
            eps=recipe.epsilon,
            foreach=True,
        )

    return make


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate of its next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
