"""The training loop: epochs of packed batches, a learning rate that falls to nothing, the best weights kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headwater.learning.sequence.ages import Births, age_logits
from headwater.learning.sequence.checkpoint import Standing, load_checkpoint, save_checkpoint
from headwater.learning.sequence.losses import full_softmax, sampled_softmax
from headwater.learning.sequence.model import TwoTower
from headwater.learning.sequence.packing import Batch, Tokens, batch_of, epoch
from headwater.learning.sequence.validation import Questions, validate
from headwater.schema.models import SequenceModel

Progress = Callable[[int, int, float | None], None]

_WARM_UP = 100  # steps, at most a tenth of all
_MEASURED = 20  # steps after which the speed is known well enough to plan by
_CLIP = 1.0


class Facts(NamedTuple):
    """What is known of the vocabulary: ``content`` (v, c), ``price`` (v, 1), ``described`` bool (v,), ``counts`` float (v,).

    ``births``: for a model with ``item_age``.
    """

    content: Tensor
    price: Tensor
    described: Tensor
    counts: Tensor
    births: Births | None = None


class Trained(NamedTuple):
    """The end of a training; the model holds the best weights. ``resumed`` is the epoch it went on from."""

    standing: Standing
    resumed: int
    why: str


class Trainer:
    """One training of ``model``. Epoch ``e`` draws from ``(seed, e)`` only, so a resumed training goes the same way."""

    def __init__(
        self, model: TwoTower, facts: Facts, tokens: Tokens, questions: Questions, params: SequenceModel, *, seed: int,
        fingerprint: str, clock: Callable[[], float], bf16: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.facts, self.tokens, self.questions, self.params = model, facts, tokens, questions, params
        self.seed, self.clock, self.bf16 = seed, clock, bf16
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=params.learning_rate, betas=(0.9, 0.98), weight_decay=params.weight_decay, fused=True
        )
        self.best = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.standing = Standing(fingerprint=fingerprint, rate=params.learning_rate)

    def run(self, checkpoint: Path | None, progress: Progress | None) -> Trained:
        """Train to the end, from ``checkpoint`` on if it is of this training."""
        resumed = 0
        if checkpoint is not None:
            found = load_checkpoint(checkpoint, self.standing.fingerprint, self.model, self.best, self.optimizer)
            if found is not None:
                self.standing, resumed = found, found.epoch
        why, before, began = "epochs", self.standing.seconds, self.clock()
        while why == "epochs" and self.standing.epoch < self.params.epochs:
            if self._epoch(before, began):
                why = "time"
            quality = self._judge()
            self.standing.seconds = before + self.clock() - began
            if self.standing.epoch - self.standing.best_epoch >= self.params.patience:
                why = "patience"
            if progress is not None:
                progress(self.standing.epoch, self.params.epochs, quality)
            if checkpoint is not None:
                save_checkpoint(checkpoint, self.standing, self.model, self.best, self.optimizer)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self.best[name])
        return Trained(self.standing, resumed, why)

    def _epoch(self, before: float, began: float) -> bool:
        """Train one epoch; true when the time was up before its end."""
        standing, params = self.standing, self.params
        random = np.random.default_rng([self.seed, standing.epoch])
        plan = epoch(self.tokens, params.length, params.batch_tokens, random)
        left = ahead = len(plan) * (params.epochs - standing.epoch)
        self.model.train()
        done, started = 0, self.clock()
        torch.manual_seed(int(random.integers(2**63)))
        for start, size in plan:
            now = self.clock()
            rest = 60.0 * params.most_minutes - (before + now - began)
            if rest <= 0.0 and done:
                break
            if done >= _MEASURED:  # the rate falls to nothing by the end, be it that of the epochs or that of the time
                ahead = min(left, max(2, int(rest * done / (now - started))))
            self._step(batch_of(self.tokens, start, size), random, min(_WARM_UP, 1 + (standing.steps + left) // 10))
            standing.rate *= (ahead - 1) / ahead
            done, left = done + 1, left - 1
            ahead = left
        standing.epoch += 1
        return done < len(plan) or 60.0 * params.most_minutes <= before + self.clock() - began

    def _step(self, batch: Batch, random: np.random.Generator, warm_up: int) -> None:
        standing = self.standing
        for group in self.optimizer.param_groups:
            group["lr"] = standing.rate * min(1.0, (standing.steps + 1) / warm_up)
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(batch, random).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        self.optimizer.step()
        standing.steps += 1

    def _loss(self, batch: Batch, random: np.random.Generator) -> Tensor:
        facts, params = self.facts, self.params
        device = facts.content.device
        hidden = torch.from_numpy(random.random(len(facts.content)) < params.id_dropout).to(device) & facts.described
        vectors = self.model.items(facts.content, facts.price, hidden)
        rows, types, gaps, idle, targets, asked, moment_s = (torch.from_numpy(part).to(device) for part in batch)
        seen = nn.functional.embedding(rows, vectors)
        users, wanted, moment_s = self.model.encoder(seen, types, gaps, idle)[asked], targets[asked], moment_s[asked]
        aged = None if self.model.ages is None else age_logits(users, self.model.ages)
        births = facts.births
        if params.loss == "full" or params.negatives >= len(vectors):
            if aged is None or births is None:
                return full_softmax(users, vectors, wanted, bf16=self.bf16)
            ordered, runs = vectors[births.order], births.lengths(moment_s)
            return full_softmax(users, ordered, births.place[wanted], aged, runs, bf16=self.bf16)
        share = facts.counts / facts.counts.sum()
        drawn = torch.multinomial(share, params.negatives, replacement=True)
        extra = None
        if aged is not None and births is not None:
            own, others = (births.columns(rows, moment_s[:, None]) for rows in (wanted[:, None], drawn))
            extra = aged.gather(1, own), aged.gather(1, others)
        return sampled_softmax(users, vectors, wanted, drawn, params.negatives * share, extra)

    def _judge(self) -> float | None:
        """Measure, and keep the weights when they are the best so far (without questions: always)."""
        standing = self.standing
        quality = None
        if len(self.questions.user):
            self.model.eval()
            with torch.inference_mode():
                vectors = self.model.items(self.facts.content, self.facts.price)
                quality = validate(
                    self.model, vectors, self.tokens, self.questions, self.params.length, self.facts.births
                )
            if quality.ndcg <= standing.best_ndcg:
                return quality.ndcg
            standing.best_ndcg, standing.best_hr = quality.ndcg, quality.hr
        standing.best_epoch = standing.epoch
        for name, value in self.model.named_parameters():
            self.best[name] = value.detach().clone()
        return quality.ndcg if quality else None


def float_tensor(values: npt.NDArray[np.float32], device: torch.device) -> Tensor:
    """A copy on ``device``."""
    return torch.tensor(values, dtype=torch.float32, device=device)
