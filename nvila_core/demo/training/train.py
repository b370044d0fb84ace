"""Train the demo checkpoint: `python -m nvila_core.demo train`.

Training has three stages, whose durations are set in minutes. "See" trains the tower and the
projector by an auxiliary loss on single tiles. "Watch" trains the lower half of the LLM on motion,
by an auxiliary loss on clips without text: motion needs far more clips than words do, and without
this stage the LLM overfits to the motion in the clips that it has seen. "Answer" trains the whole
model on questions.
"""

import copy
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from nvila_core.demo.training.batches import Group, stack_tiles
from nvila_core.demo.training.config import ModelShape, TrainingConfig
from nvila_core.demo.training.export import export, load_weights
from nvila_core.demo.training.feed import AnswerFeed, ClipFeed, TileFeed
from nvila_core.demo.training.labels import auxiliary_loss, motion_loss, reversed_in_time
from nvila_core.demo.training.network import DemoNetwork
from nvila_core.demo.training.optimizer import Muon
from nvila_core.demo.training.tokenizer import train_tokenizer
from nvila_core.demo.training.visuals import clip_form, render_pair, render_visual

TrainingBatch = Any
_Report = dict[str, float]


def make_optimizers(network: DemoNetwork, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices, and AdamW for embeddings, biases, norms and heads."""
    parts: dict[tuple[bool, bool], list[torch.nn.Parameter]] = defaultdict(list)
    for name, param in network.named_parameters():
        matrix = param.ndim == 2 and "embed" not in name and "auxiliary" not in name
        parts[matrix, name.startswith("llm.")].append(param)

    def groups(matrix: bool, lr: float) -> list[dict[str, Any]]:
        return [
            {"params": parts[matrix, llm], "lr": lr, "base_lr": lr, "llm": llm}
            for llm in (False, True)
        ]

    decay = config.weight_decay
    adam = torch.optim.AdamW(groups(False, config.adam_lr), betas=(0.9, 0.98), weight_decay=decay)
    return [Muon(groups(True, config.muon_lr), lr=config.muon_lr, weight_decay=decay), adam]


def schedule(progress: float, step: int, floor: float) -> float:
    """Return the factor of the learning rate: a warm-up by steps, then a cosine by progress.

    Args:
        progress: progress of the stage, 0 to 1.
        step: steps so far.
        floor: factor at the end of the stage.
    """
    warm = min(1.0, (step + 1) / 100)
    return warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


class Trainer:
    """The network, its moving average, and the state of the optimizers.

    Args:
        shape: sizes of the model.
        config: hyperparameters.
        run: folder for the training state.
        checkpoint: folder to export to.
    """

    def __init__(
        self, shape: ModelShape, config: TrainingConfig, run: Path, checkpoint: Path
    ) -> None:
        torch.manual_seed(config.seed)
        self.shape, self.config, self.run, self.checkpoint = shape, config, run, checkpoint
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.tokenizer = run / "tokenizer"
        tokenizer = train_tokenizer(shape.max_positions)
        tokenizer.write(self.tokenizer)
        self.network = DemoNetwork(shape, len(tokenizer)).to(self.device)
        self.average = copy.deepcopy(self.network)
        self.optimizers = make_optimizers(self.network, config)
        self.done: dict[str, float] = {"see": 0.0, "watch": 0.0, "answer": 0.0}
        """Progress of each stage, 0 to 1."""
        self.kept = FeatureCache(12000)
        self._head_steps = 0
        self._progress = get_context("spawn").Value("d", 0.0)

    def save(self) -> None:
        """Save the training state, and export the averaged network."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "done": self.done,
        }
        torch.save(state, self.run / "state.tmp")
        (self.run / "state.tmp").replace(self.run / "state.pt")
        export(self.average, self.shape, self.checkpoint)

    def resume(self) -> None:
        """Continue from the saved state of an earlier run."""
        state = torch.load(self.run / "state.pt", map_location=self.device)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.done = state["done"]

    def start_from(self, checkpoint: Path) -> None:
        """Start from the weights of an exported checkpoint, in the middle of the last stage.

        A checkpoint holds neither the auxiliary heads nor the state of the optimizers: the heads
        start at random and first learn alone, the optimizers start with a short warm-up.

        Raises:
            CheckpointError: a file or tensor is missing, not readable, or of another shape.
        """
        for network in (self.network, self.average):
            load_weights(network, checkpoint)
        self.done = {"see": 1.0, "watch": 1.0, "answer": 0.5}
        self._head_steps = self.config.head_steps

    def see(self, minutes: float) -> None:
        """Run the first stage for this many minutes."""
        feed = TileFeed(self.config, self._progress)
        self._stage("see", minutes, feed, self._see_loss, floor=0.1)

    def watch(self, minutes: float) -> None:
        """Run the second stage for this many minutes."""
        if self.done["watch"] == 0:
            self._whiten()
        feed = ClipFeed(self.tokenizer, self.shape, self.config)
        self._stage("watch", minutes, feed, self._watch_loss, floor=0.1)

    def answer(self, minutes: float) -> None:
        """Run the third stage for this many minutes."""
        feed = AnswerFeed(self.tokenizer, self.shape, self.config, self._progress)
        self._stage("answer", minutes, feed, self._answer_loss, floor=0.0)

    def _whiten(self) -> None:
        rng = random.Random(self.config.seed)
        visuals = [render_visual(clip_form(3), rng, 4) for _ in range(100)]
        visuals += [render_pair(rng, 4) for _ in range(200)]
        tiles = stack_tiles(visuals).to(self.device)
        # The averaged network of the first stage is better than that of its last step.
        self.network.load_state_dict(self.average.state_dict())
        self.network.whiten(tiles)
        self.average.load_state_dict(self.network.state_dict())

    def _stage(
        self,
        name: str,
        minutes: float,
        feed: TileFeed | ClipFeed | AnswerFeed,
        loss_of: Callable[[TrainingBatch], tuple[Tensor, _Report]],
        floor: float,
    ) -> None:
        begun = self.done[name]
        if begun >= 1 or minutes <= 0:
            return
        self._progress.value = begun
        batches = self._load(feed)
        batch = next(batches)
        start = saved = reported = time.monotonic()
        reports: dict[str, list[float]] = defaultdict(list)
        step = 0
        while self.done[name] < 1:
            factor = schedule(self.done[name], step, floor)
            loss, report = loss_of(batch)
            self._update(loss, factor, name)
            batch = next(batches)
            step += 1
            now = time.monotonic()
            self.done[name] = begun + (1 - begun) * min(1.0, (now - start) / (60 * minutes))
            self._progress.value = self.done[name]
            for key, value in report.items():
                reports[key].append(value)
            if now - reported > 40:
                _print_report(name, step, self.done[name], reports)
                reported, reports = now, defaultdict(list)
            if now - saved > 60 * self.config.save_minutes:
                self.save()
                saved = now
        self.save()

    def _load(self, feed: TileFeed | ClipFeed | AnswerFeed) -> Iterator[TrainingBatch]:
        workers = self.config.workers
        return iter(
            DataLoader(
                feed,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=2,
                multiprocessing_context="spawn",
            )
        )

    def _update(self, loss: Tensor, factor: float, stage: str) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                share = 1.0 if group["llm"] or stage == "see" else self.config.tower_share
                group["lr"] = group["base_lr"] * factor * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            mine: list[Tensor] = list(self.average.parameters())
            other: list[Tensor] = list(self.network.parameters())
            torch._foreach_lerp_(mine, other, 1 - self.config.ema)

    def _see_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, _Report]:
        batch = {key: value.to(self.device) for key, value in batch.items()}
        return auxiliary_loss(self.network.auxiliary(self.network.see(batch["tiles"])), batch)

    def _watch_loss(self, group: Group) -> tuple[Tensor, _Report]:
        group = group.to(self.device)
        clips = (len(group.keys), -1)
        features = self.kept.features(self.network, group).unflatten(0, clips)
        things, motion = (group.labels[name].unflatten(0, clips) for name in ("things", "motion"))
        # Half of the clips are played backwards: this doubles the motion of the rendered clips.
        back = torch.rand(len(features), device=self.device) < 0.5
        features = torch.where(back[:, None, None, None], features.flip(1), features)
        motion_back = reversed_in_time(things, motion)
        motion = torch.where(back[:, None, None, None], motion_back, motion)
        features = self._noisy(features.flatten(0, 1))
        loss = motion_loss(self.network.watch(group, features), motion.flatten(0, 1))
        return loss, {"motion": float(loss.detach())}

    def _noisy(self, features: Tensor) -> Tensor:
        return features + self.config.token_noise * torch.randn_like(features)

    def _answer_loss(self, batch: list[Group]) -> tuple[Tensor, _Report]:
        groups = [group.to(self.device) for group in batch]
        progress = self.done["answer"]
        total = sum(float(group.weights.sum()) for group in groups)
        fade = max(0.0, 1 - progress / self.config.fade)
        loss = torch.zeros((), device=self.device)
        report: _Report = {}
        for group in groups:
            learned = None
            if progress < self.config.frozen:
                features = self._noisy(self.kept.features(self.network, group))
            else:
                features, learned = self.network.features(group.tiles, group.learn)
            logits, moved = self.network.answer(group, features)
            losses = F.cross_entropy(logits, group.targets, reduction="none")
            loss = loss + (losses * group.weights).sum() / total
            report |= exact_matches(logits.detach(), group)
            share = len(group.tiles) / sum(len(other.tiles) for other in groups)
            if fade > 0 and group.name == "clip":
                motion = motion_loss(moved, group.labels["motion"])
                report["motion"] = float(motion.detach())
                loss = loss + self.config.motion * fade * motion
            if fade > 0 and learned is not None:
                labels = {key: value[group.learn] for key, value in group.labels.items()}
                # The gradients of a new head are noise to the tower.
                tokens = learned.detach() if self._head_steps > 0 else learned
                seen, _ = auxiliary_loss(self.network.auxiliary(tokens), labels)
                loss = loss + self.config.auxiliary * fade * share * seen
        if progress >= self.config.frozen:
            self._head_steps -= 1
        report["loss"] = float(loss.detach())
        return loss, report


class FeatureCache:
    """Visual tokens of the frozen tower by the key of the visual; evicts the oldest ones.

    Args:
        size: number of visuals to keep.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def features(self, network: DemoNetwork, group: Group) -> Tensor:
        """Return the visual tokens [tiles, cells, hidden] of a whole group."""
        tiles = group.tiles.unflatten(0, (len(group.keys), -1))
        new = [i for i, key in enumerate(group.keys) if key not in self._kept]
        if new:
            seen = network.see(tiles[new].flatten(0, 1)).unflatten(0, (len(new), -1))
            self._kept |= {group.keys[i]: one.clone() for i, one in zip(new, seen, strict=True)}
        found = torch.cat([self._kept[key] for key in group.keys])
        while len(self._kept) > self.size:
            del self._kept[next(iter(self._kept))]
        return found


def exact_matches(logits: Tensor, group: Group) -> _Report:
    """Return the share of correct answers, by form and kind of question.

    Greedy decoding gives an answer if and only if each of its tokens is the most likely one after
    the tokens before it.
    """
    wrong = torch.zeros(len(group.kinds), device=logits.device)
    wrong.index_add_(0, group.owners, (logits.argmax(-1) != group.targets).float())
    right: dict[str, list[float]] = defaultdict(list)
    for kind, errors in zip(group.kinds, wrong.tolist(), strict=True):
        right[f"{group.name}.{kind}"].append(float(errors == 0))
    return {key: sum(values) / len(values) for key, values in right.items()}


def _print_report(name: str, step: int, done: float, reports: dict[str, list[float]]) -> None:
    means = {key: sum(values) / len(values) for key, values in sorted(reports.items())}
    text = " ".join(f"{key} {value:.3f}" for key, value in means.items())
    print(f"{time.strftime('%H:%M:%S')} {name} {done:.0%} step {step}: {text}", flush=True)
