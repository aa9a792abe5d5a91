"""The runtime computes what the models of the `transformers` library compute.

Logits and gradients of every family, from the same weights: the reference that is not ours.
Differences are float32 rounding: 2e-5 of the largest logit, 1e-4 of a tensor's largest gradient.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from test_huggingface_weights import CONFIGS, SIZES, tiny_model
from torch import Tensor

from launch.runtime.huggingface import HfWeights
from launch.runtime.model import Stage
from profiler.model import ModelSpec

pytestmark = pytest.mark.distributed


def _ours(model: ModelSpec, folder: Path) -> Stage:
    stage = Stage(model, 0, len(model.blocks))
    if model.tie_embeddings:
        stage.tie()
    with HfWeights(folder, model) as weights, torch.no_grad():
        for name, parameter in stage.named_parameters():
            prefix, _, leaf = name.rpartition(".")
            if prefix.endswith(".ffn.experts"):
                for expert, part in enumerate(parameter):
                    part.copy_(weights.get(f"{prefix}.{expert}.{leaf}"))
            else:
                parameter.copy_(weights.get(name))
        for name, buffer in stage.named_buffers():
            buffer.copy_(weights.get(name))
    return stage


def _tokens() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, SIZES["vocab_size"], (2, 17), generator=generator)


def _gradient_norms(module: Any, logits: Tensor) -> Tensor:
    """Norm of the gradient of the embedding and of all parameters together."""
    loss = F.cross_entropy(logits.flatten(0, 1), _tokens()[:, 1:].flatten())
    loss.backward()
    embedding = next(p for p in module.parameters() if p.shape[0] == SIZES["vocab_size"])
    squares = [p.grad.square().sum() for p in module.parameters() if p.grad is not None]
    return torch.stack([loss.detach(), embedding.grad.norm(), torch.stack(squares).sum().sqrt()])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, theirs = tiny_model(name)
    theirs.save_pretrained(tmp_path / "hf")
    ours = _ours(model, tmp_path / "hf")
    tokens = _tokens()[:, :-1]
    wanted, got = theirs(tokens).logits, ours(tokens)
    assert (got - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    assert got.std() > 0.1
    torch.testing.assert_close(
        _gradient_norms(ours, got), _gradient_norms(theirs, wanted), rtol=1e-4, atol=0
    )
