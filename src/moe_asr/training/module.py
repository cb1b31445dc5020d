"""The LightningModule: one optimiser step, one validation, and what is written down about them."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.utils.data import DataLoader

from moe_asr.analysis.evaluation import error_units
from moe_asr.analysis.load import load_metrics, loads, measured
from moe_asr.config.placement import MoESite
from moe_asr.config.program import TrainConfig
from moe_asr.data.batches import EvaluationBatches, LoadedBatch, PlannedBatch, TrainingBatches, checksum
from moe_asr.data.epoch_plan import EpochPlan, group_sizes
from moe_asr.data.manifest import Problem, describe
from moe_asr.data.selection import target_text
from moe_asr.decoding.ctc_greedy import ctc_greedy
from moe_asr.errors import JobError
from moe_asr.features.tokenizer import Tokenizer
from moe_asr.measure.errors import EditCounts, edit_counts, total
from moe_asr.measure.expert_use import Watch
from moe_asr.measure.normalize import normalizer
from moe_asr.models.u2pp import AsrModel, draw_chunking
from moe_asr.modules.moe.routing import Side
from moe_asr.modules.moe.statistics import RoutingSums, over_ranks
from moe_asr.randomness import key_seed, torch_rng
from moe_asr.runs.directory import AppendLog
from moe_asr.tensors import Chunking
from moe_asr.training.logs import Log
from moe_asr.training.optimisation import (
    expert_gradients,
    gradient_norms,
    make_optimizer,
    router_gradients,
    set_learning_rate,
)
from moe_asr.training.ranks import gathered
from moe_asr.training.schedule import Segment

ROUTER = "grad_norm/routers/"
"""What the names of the routers' gradient norms begin with."""


@dataclass(frozen=True)
class TrainingData:
    """Usable training utterances with their tokens, their plan, and the dev utterances."""

    cuts: Sequence[Cut]
    tokens: Sequence[Sequence[int]]
    plan: EpochPlan
    dev: Sequence[Cut]
    corpus: str
    """Hash of the options that made the corpus."""


class AsrTraining(pl.LightningModule):
    """Trains an AsrModel over `segments`; Lightning's epoch counter is the index of the segment.

    ledger: receives a line per batch with its utterances, the checksum of its features and its chunking: the proof
    that a resumed run, or another model of the same seed, saw the same data. Of several processes only the first has
    it, and loggers; but after each optimiser step and each validation all know what any of them saw.
    """

    def __init__(
        self,
        model: AsrModel,
        tokenizer: Tokenizer,
        config: TrainConfig,
        data: TrainingData,
        segments: Sequence[Segment],
        ledger: AppendLog | None,
        optimizer_state: dict[str, Any] | None,
        watch: Watch,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config, self.data = model, tokenizer, config, data
        self.segments, self.ledger, self.optimizer_state, self.watch = segments, ledger, optimizer_state, watch
        self.model.encoder.checkpointed = config.trainer.checkpoint_activations
        self.normalize = normalizer(config.data.normalizer)
        self.units = error_units(config)
        self.references = {cut.id: target_text(describe(cut), tokenizer.unit) for cut in data.dev}
        self.step = 0
        self.last_loss: float | None = None
        self.dev_error = float("inf")
        self.validation_line = ""
        self.problems: list[Problem] = []

    @property
    def segment(self) -> Segment:
        return self.segments[self.trainer.current_epoch]

    # Data

    def train_dataloader(self) -> DataLoader[LoadedBatch]:
        segment, batch = self.segment, self.config.batch
        planned, ranks = self.data.plan.batches(segment.epoch), self.trainer.world_size
        groups = group_sizes(planned, self.config.trainer.accumulate * ranks)
        own = range(segment.start * ranks + self.trainer.global_rank, segment.stop * ranks, ranks)
        plans = [PlannedBatch(segment.epoch, i, planned[i], groups[i]) for i in own]
        dataset = TrainingBatches(
            self.data.cuts,
            self.data.tokens,
            plans,
            self.config.features,
            self.config.augment,
            self.config.seed,
        )
        return DataLoader(dataset, batch_size=None, num_workers=batch.workers)

    def val_dataloader(self) -> list[DataLoader[LoadedBatch]]:
        if not self.segment.validate:
            return []
        decode = self.config.decode
        dataset = EvaluationBatches(
            self.data.dev,
            self.config.features,
            decode.batch,
            decode.batch_seconds,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return [DataLoader(dataset, batch_size=None, num_workers=self.config.batch.workers)]

    # Training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.model, self.config.optim)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        return optimizer

    def on_train_epoch_start(self) -> None:
        self.step = self.segment.first_step
        self.parts: dict[str, Tensor] = {}
        self.unrouted = self.no_routing(self.model.trained_sites())
        self.step_routing = self.row_routing = self.unrouted
        """Those of the optimiser step, and those since the last row of metrics or the beginning of the segment."""
        self.tried: list[tuple[str, Tensor]] = []
        """What to call each micro-batch of the optimiser step, and its loss."""
        self.lines: list[dict[str, Any]] = []
        """Of the ledger, for each micro-batch of the optimiser step."""

    def training_step(self, loaded: LoadedBatch, batch_idx: int) -> dict[str, Any]:
        plan, batch = loaded.plan, loaded.batch
        assert plan is not None
        self.problems += loaded.problems
        if not self.lines:
            self.buffers_before = [buffer.clone() for buffer in self.model.buffers()]
        if batch is None:
            self.lines.append({"epoch": plan.epoch, "batch": plan.index, "utterances": []})
            return {
                "loss": self.model.idle_loss(),
                "routing": (),
            }
        place = (self.config.seed, plan.epoch, plan.index)
        frames = int(self.model.encoder.frame_lengths(batch.feature_lengths).max())
        chunking = draw_chunking(frames, self.config.chunk, torch_rng("chunk", *place))
        torch.manual_seed(key_seed("dropout", *place))
        keys = [key_seed("routing", self.config.seed, plan.epoch, utterance) for utterance in batch.ids]
        losses, routing = self.model(batch, chunking, Side(keys=torch.tensor(keys, device=self.device)))
        self.step_routing = measured(routing, self.step_routing)
        self.tried.append((f"epoch {plan.epoch}, batch {plan.index}: {', '.join(batch.ids)}", losses.total.detach()))
        # Every utterance of the optimiser step weighs the same, however its group was cut into micro-batches.
        share = len(batch.ids) / plan.group_utterances
        for name, value in {
            "loss": losses.total,
            **{f"loss_{n}": v for n, v in losses.parts.items()},
        }.items():
            self.parts[name] = self.parts.get(name, torch.zeros((), device=value.device)) + value.detach() * share
        self.lines.append(
            {
                "epoch": plan.epoch,
                "batch": plan.index,
                "utterances": batch.ids,
                "features": checksum(batch.features.cpu()),
                "chunk": chunking.size,
                "left": chunking.left,
            }
        )
        # Lightning divides by the micro-batches of a step, and DDP by the processes.
        scale = share * self.config.trainer.accumulate * self.trainer.world_size
        return {"loss": losses.total * scale, "routing": routing}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        """Sets the learning rate, logs, clips; a step whose loss or gradient is not finite changes nothing."""
        self.step += 1
        self.pool()
        lr = set_learning_rate(optimizer, self.config.optim, self.step, self.segments[-1].last_step)
        due = self.step % self.config.logger.every == 0 or self.step == 1
        row = self.gradient_figures() if due else {}  # before they are clipped
        total = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.clip)
        finite = torch.stack([total, *(loss for _, loss in self.tried)]).isfinite().all()
        self.last_loss = float(self.parts["loss"]) if "loss" in self.parts else None
        if self.trainer.strategy.reduce_boolean_decision(bool(finite)):
            self.watch = replace(self.watch, skipped=0)
            if self.step_routing is not None and self.row_routing is not None:
                self.row_routing = self.row_routing + self.step_routing
                if self.model.routers.bias is not None:
                    self.model.routers.rebalance(over_ranks(self.step_routing))
            if due:
                self.log_row(row | {"train/lr": lr, "grad_norm/all": float(total)})
        else:
            optimizer.zero_grad(set_to_none=True)
            self.skip_step()
        self.parts, self.step_routing, self.tried, self.lines = {}, self.unrouted, [], []

    def pool(self) -> None:
        """Puts together what all processes saw in this optimiser step; the first writes the ledger."""
        lines = [self.lines]
        if self.trainer.world_size > 1:
            losses = {name: float(value) for name, value in self.parts.items()}
            tried = [(name, loss.cpu()) for name, loss in self.tried]
            parts, trials, lines, problems = zip(*gathered((losses, tried, self.lines, self.problems)), strict=True)
            names = dict.fromkeys(name for each in parts for name in each)
            self.parts = {name: torch.tensor(sum(each.get(name, 0.0) for each in parts)) for name in names}
            self.tried = [(name, loss.to(self.device)) for each in trials for name, loss in each]
            self.found(problems)
        if self.ledger is not None:
            for line in (line for at_once in zip(*lines, strict=True) for line in at_once):
                self.ledger.write_json(line)

    def found(self, problems: Iterable[list[Problem]]) -> None:
        """The first process keeps the problems of all."""
        self.problems = [problem for own in problems for problem in own] if self.trainer.is_global_zero else []

    def no_routing(self, sites: Sequence[MoESite]) -> RoutingSums | None:
        """The sums of no position yet, so that processes without audio take part; None for a dense model."""
        return measured(self.model.idle_trace(sites, torch.zeros((), device=self.device)))

    def gradient_figures(self) -> dict[str, float]:
        """Gradient norms of the parts of the model, and of each router and expert."""
        sites = self.step_routing.sites if self.step_routing is not None else ()
        return (
            {f"grad_norm/{name}": float(norm) for name, norm in gradient_norms(self.model).items()}
            | {ROUTER + number: norm for number, norm in router_gradients(self.model.routers, sites).items()}
            | {f"train/routing/{name}": norm for name, norm in expert_gradients(self.model).items()}
        )

    def log_row(self, row: dict[str, float]) -> None:
        """Everything that is logged every `logger.every` steps; row: what is not about losses and loads."""
        routed = None if self.row_routing is None else over_ranks(self.row_routing)
        losses = {f"train/{name}": float(value) for name, value in self.parts.items()}
        self.log_metrics(losses | row | load_metrics(routed, "train/routing"))
        self.row_routing = self.unrouted
        if row["grad_norm/all"] > 0:  # else no audio of the step could be read
            routers = {name.removeprefix(ROUTER): norm for name, norm in row.items() if name.startswith(ROUTER)}
            self.heed(self.watch.learnt(self.step, routers))

    def heed(self, watch: Watch) -> None:
        """Takes a new watch over and makes its new alarms known."""
        for alarm in watch.alarms[len(self.watch.alarms) :] if self.trainer.is_global_zero else ():
            print(f"Alarm, {alarm}", file=sys.stderr, flush=True)
            for log in self.loggers:
                cast(Log, log).alert(alarm)
        self.watch = watch

    def skip_step(self) -> None:
        """Undoes what the forward passes changed, and says which utterances did it. Raises JobError if this goes on."""
        for buffer, before in zip(self.model.buffers(), self.buffers_before, strict=True):
            buffer.copy_(before)
        self.watch = replace(self.watch, skipped=self.watch.skipped + 1, skipped_in_all=self.watch.skipped_in_all + 1)
        self.log_metrics({"train/skipped_step": 1.0})
        infinite = [name for name, loss in self.tried if not loss.isfinite()]
        culprits = "; ".join(infinite or [name for name, _ in self.tried])
        what = f"The {'loss' if infinite else 'gradient'} of step {self.step} is not finite ({culprits})"
        if self.watch.skipped >= self.config.trainer.max_skipped:
            raise JobError(
                f"{what}, and {self.watch.skipped} steps running were skipped: lower optim.lr, or look "
                "at the audio and texts of these utterances."
            )
        if self.trainer.is_global_zero:
            print(f"{what}; the step is skipped.", file=sys.stderr, flush=True)

    def log_metrics(self, metrics: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.step)

    # Validation

    def on_validation_epoch_start(self) -> None:
        self.edits = {(size, unit): EditCounts() for size in self.chunk_sizes for unit in self.units}
        self.routed = self.no_routing(self.model.routers.sites)

    @property
    def chunk_sizes(self) -> tuple[int | None, ...]:
        """What a validation reports: the chunk size of decoding, and the further ones."""
        return tuple(dict.fromkeys([self.config.decode.chunk, *self.config.decode.chunks]))

    def validation_step(self, loaded: LoadedBatch, batch_idx: int) -> None:
        self.problems += loaded.problems
        batch = loaded.batch
        ids = [problem.id for problem in loaded.problems] + list(batch.ids if batch is not None else ())
        references = [self.normalize(self.references[i]) for i in ids]
        for size in self.chunk_sizes:
            texts = [""] * len(loaded.problems)  # what cannot be read is recognised as nothing, not left out
            if batch is not None:
                chunking = Chunking(size, self.config.decode.left)
                encoded = self.model.encode(batch.features, batch.feature_lengths, chunking)
                found = ctc_greedy(
                    self.model.ctc_log_probs(encoded.frames), encoded.frame_lengths, self.tokenizer.blank
                )
                texts += [self.normalize(self.tokenizer.decode(h.tokens)) for h in found]
                if size == self.config.decode.chunk:
                    read = self.model.decoder_routing(encoded, [h.tokens for h in found])
                    self.routed = measured(encoded.routing + read, self.routed)
            for unit in self.units:
                self.edits[size, unit] += total(edit_counts(references, texts, unit))

    def on_validation_epoch_end(self) -> None:
        edits, problems = zip(*gathered((self.edits, self.problems)), strict=True)
        self.found(problems)
        rates = {
            f"val/{unit.rate}{'' if size == self.config.decode.chunk else f'_c{size}'}": total(
                [own[size, unit] for own in edits]
            ).rate
            for size, unit in self.edits
        }
        self.dev_error = rates[f"val/{self.units[0].rate}"]
        routed = None if self.routed is None else over_ranks(self.routed)
        self.log_metrics(rates | load_metrics(routed))
        for log in self.loggers:
            cast(Log, log).log_loads(loads(routed), self.step)
        self.heed(self.watch.validated(self.step, loads(routed)))
        shown = "  ".join(f"{name} {100 * rate:.1f} %" for name, rate in rates.items())
        self.validation_line = f"epoch {self.segment.epoch + 1}/{self.config.trainer.epochs}  step {self.step}  {shown}"
