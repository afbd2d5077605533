"""Three optimizer steps of ``TrainStep`` on the plain backend against the whole loss written by
hand.

The reference is one autograd graph in float64: the encoder sample by sample
(``tests/helpers/reference``), dense logits over all class rows, both sources' weighted means, one
clip by the global norm, and dense AdamW on everything.

Tolerances. Float32 against float64: forward errors of about 1e-6 relative, times the scale 10,
through three updates: 1e-5 for losses and norms. ``optim.eps`` is 1e-3 instead of 1e-8, so that
AdamW's update is a smooth function of the gradient: with 1e-8 a coordinate whose true gradient is
0 (the key biases) moves by +-lr on rounding noise alone. Parameters then agree to 1e-3 of the
largest possible change, 3 * lr.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ovtrain.config.train import TrainConfig
from ovtrain.data.batch import PackedBatch
from ovtrain.data.loader import Loader
from ovtrain.engine.build import build
from ovtrain.export.public_format import to_public
from ovtrain.optim.schedule import learning_rate
from tests.helpers import reference
from tests.helpers.training import typed_config, world

OVERRIDES = (
    "head.sample_rate=1.0",
    "head.bias=-1.5",
    "optim.eps=1e-3",
    "optim.weight_decay=0.2",
    "optim.warmup=0.3",
)
STEPS = 3


def weighted(config: TrainConfig) -> TrainConfig:
    """The video source counts half."""
    sources = [replace(config.data.sources[0], weight=0.5), *config.data.sources[1:]]
    return replace(config, data=replace(config.data, sources=sources))


class Dense:
    """Parameters, moments and the loss of the whole method, in float64."""

    def __init__(self, config: TrainConfig, encoder: dict[str, Tensor], rows: list[Tensor]) -> None:
        self.config = config
        self.encoder = {n: t.detach().double().requires_grad_() for n, t in encoder.items()}
        self.rows = [r.detach().double().requires_grad_() for r in rows]
        plain = [n for n, t in self.encoder.items() if t.ndim < 2 or n == "head.probe"]
        optim = config.optim
        groups = [
            {"params": [t for n, t in self.encoder.items() if n not in plain]},
            {"params": [self.encoder[n] for n in plain], "weight_decay": 0.0},
            {"params": self.rows},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, betas=(0.9, 0.999), eps=optim.eps, weight_decay=optim.weight_decay
        )

    def loss(self, batches: list[PackedBatch]) -> tuple[Tensor, list[Tensor]]:
        """The step's loss and its part per source."""
        public = to_public(self.encoder, self.config.model)
        per_source: list[list[Tensor]] = [[] for _ in self.rows]
        for batch in batches:
            for i in range(batch.samples):
                at = slice(int(batch.cu_seqlens[i]), int(batch.cu_seqlens[i + 1]))
                _, z = reference.encode(
                    public, self.config.model, batch.patches[at], batch.positions[at]
                )
                own = batch.labels[int(batch.label_offsets[i]) : int(batch.label_offsets[i + 1])]
                source = int(batch.source[i])
                per_source[source].append(self._sample(z, self.rows[source], own.long()))
        parts = [torch.stack(losses).mean() for losses in per_source]
        weights = [source.weight for source in self.config.data.sources]
        return sum(w * x for w, x in zip(weights, parts, strict=True)), parts  # type: ignore

    def _sample(self, z: Tensor, rows: Tensor, own: Tensor) -> Tensor:
        logits = 10.0 * (rows @ z) / (rows.norm(dim=1) * z.norm()) - 1.5
        sign = torch.full((len(rows),), -1.0, dtype=torch.float64)
        sign[own] = 1.0
        return torch.log1p(torch.exp(-sign * logits)).sum() / len(own)

    def update(self, loss: Tensor, step: int) -> float:
        every = [*self.encoder.values(), *self.rows]
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(every, self.config.optim.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optim, step, self.config.run.total_steps)
        self.optimizer.step()
        return norm.item()


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_three_steps_equal_the_dense_reference(
    setup_folder: Path, tmp_path: Path, micro_batch: int
):
    config = typed_config(
        setup_folder,
        *OVERRIDES,
        backend="ddp",
        global_batch=7,
        micro_batch=micro_batch,
        steps=STEPS,
        out=str(tmp_path),
    )
    config = weighted(config)
    parts = build(config, world())
    dense = Dense(config, parts.encoder.state_dict(), [h.head.rows for h in parts.heads])
    for step in range(STEPS):
        batch = next(parts.loader)
        assert len(batch.micro) == (1 if micro_batch == 0 else 3)
        found = parts.step.run(batch, step).metrics
        loss, per_source = dense.loss(batch.micro)
        norm = dense.update(loss, step)
        assert float(found["loss"]) == pytest.approx(loss.item(), rel=1e-5)
        assert float(found["loss/video"]) == pytest.approx(per_source[0].item(), rel=1e-5)
        assert float(found["loss/image"]) == pytest.approx(per_source[1].item(), rel=1e-5)
        assert float(found["grad_norm"]) == pytest.approx(norm, rel=1e-5)
        assert norm > config.optim.clip  # the clip is at work
    room = 1e-3 * STEPS * config.optim.lr
    for name, tensor in parts.encoder.state_dict().items():
        torch.testing.assert_close(tensor.double(), dense.encoder[name], rtol=0, atol=room)
    for head, rows in zip(parts.heads, dense.rows, strict=True):
        torch.testing.assert_close(head.head.rows.double(), rows, rtol=0, atol=room)
    parts.loader.close()


def test_a_sample_without_labels_takes_no_part(setup_folder: Path, tmp_path: Path):
    """Dropping a sample's labels leaves the mean over the others."""
    config = typed_config(
        setup_folder, *OVERRIDES, backend="ddp", steps=1, global_batch=8, out=str(tmp_path)
    )
    loader = Loader(config, world())
    batch = next(loader)
    (micro,) = batch.micro
    first = int(micro.label_offsets[1])
    micro.label_offsets[1:] -= first
    cut = PackedBatch(**(vars(micro) | {"labels": micro.labels[first:]}))
    batch.micro[0] = cut
    parts = build(config, world())
    dense = Dense(config, parts.encoder.state_dict(), [h.head.rows for h in parts.heads])
    found = parts.step.run(batch, 0).metrics
    keep = [i for i in range(cut.samples) if cut.label_offsets[i] < cut.label_offsets[i + 1]]
    assert len(keep) == 7
    public = to_public(dense.encoder, config.model)
    losses = []
    for i in (i for i in keep if cut.source[i] == 0):
        at = slice(int(cut.cu_seqlens[i]), int(cut.cu_seqlens[i + 1]))
        _, z = reference.encode(public, config.model, cut.patches[at], cut.positions[at])
        own = cut.labels[int(cut.label_offsets[i]) : int(cut.label_offsets[i + 1])].long()
        losses.append(dense._sample(z, dense.rows[0], own))
    assert len(losses) == 3
    assert float(found["loss/video"]) == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    loader.close()
    parts.loader.close()
