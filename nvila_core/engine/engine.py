"""Many requests on one model: they join and leave at every step, and nothing is computed twice.

One thread runs the model. Callers prepare their prompts in their own threads, so pictures are
resized in parallel, and only wait for results. A step goes like this:

    scheduler     what to compute: a position of everything that generates, chunks of prompts
    tile encoder  the tiles that those chunks need and that no cache holds
    batch         all positions through the language model at once
    deliver       a token for every sequence whose known positions are computed

A request that fails does so alone.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nvila_core.engine.block_pool import BlockPool
from nvila_core.engine.handle import Handle
from nvila_core.engine.kv_cache import KVCache
from nvila_core.engine.model_runner import Runner
from nvila_core.engine.prefix_keys import BlockKeys, Layout, media_keys, tile_keys
from nvila_core.engine.request import NEVER, Request
from nvila_core.engine.scheduler import Scheduler, Work
from nvila_core.engine.tile_cache import TileCache
from nvila_core.engine.tile_encoder import TileEncoder
from nvila_core.errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineStopped,
    NotFinite,
    NVILAError,
    first_line,
)
from nvila_core.generation.sampling import SamplingParams
from nvila_core.generation.sequence import Sequence as Generation
from nvila_core.model import NVILA
from nvila_core.models.device import step_size
from nvila_core.models.packed_linear import pack_linears
from nvila_core.prompt.builder import Prompt
from nvila_core.resolution.policy import Plan

BLOCK = 16
"""Positions in a block of the cache: what two prompts must have in common to share one."""

USAGE = ("prompt_tokens", "cached_tokens", "completion_tokens", "tiles", "cached_tiles")
TOTALS = ("submitted", "finished", "failed", "cancelled", "steps", *USAGE)


class Engine:
    """Runs requests on a model, many at a time.

    Args:
        model: used by this engine alone from now on, except for `prepare`.
        max_num_seqs: most requests that are generated at once.
        kv_cache_tokens: LLM positions whose keys and values are kept, of running requests and for
            reuse; also the longest that a prompt with its answer can be.
        step_tokens: most LLM positions in a step: more is faster, fewer lets others wait less;
            default: what suits the model's device, see `placement.STEP_SIZES`.
        step_tiles: most tiles that go through the vision tower in a step; default: the same.
        tile_cache_bytes: room for encoded tiles.
        tile_tolerance: how much a tile may differ from one in the cache and still be taken for it;
            see `TileCache`.
        clock: seconds; for deadlines.

    Raises:
        NVILAError: a size is wrong, or the device has no room for the cache.
    """

    def __init__(
        self,
        model: NVILA,
        max_num_seqs: int = 32,
        kv_cache_tokens: int = 65536,
        *,
        step_tokens: int | None = None,
        step_tiles: int | None = None,
        tile_cache_bytes: int = 2**28,
        tile_tolerance: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        usual = step_size(model.device)
        step_tokens = usual.tokens if step_tokens is None else step_tokens
        step_tiles = usual.tiles if step_tiles is None else step_tiles
        if min(max_num_seqs, kv_cache_tokens, step_tokens, step_tiles) < 1:
            raise NVILAError(
                "max_num_seqs, kv_cache_tokens, step_tokens and step_tiles must be at least 1."
            )
        if tile_cache_bytes < 0 or not 0 <= tile_tolerance < 1:
            raise NVILAError("tile_cache_bytes must be 0 or more, tile_tolerance from 0 to 1.")
        blocks = -(-kv_cache_tokens // BLOCK)
        self.model = model
        pack_linears(model.language.model.layers)
        self.max_num_seqs, self.kv_cache_tokens = max_num_seqs, kv_cache_tokens
        self.context = min(model.context, kv_cache_tokens)
        self.cache = KVCache(
            num_layers=model.config.num_layers,
            num_kv_heads=model.config.num_kv_heads,
            head_dim=model.config.head_dim,
            num_blocks=blocks,
            block_size=BLOCK,
            dtype=model.dtype,
            device=model.device,
        )
        self.scheduler = Scheduler(BlockPool(blocks), BLOCK, max_num_seqs, step_tokens)
        self.tile_cache = TileCache(tile_cache_bytes, tile_tolerance)
        self.encoder = TileEncoder(model, self.tile_cache, step_tiles)
        self.runner = Runner(model, self.cache, self.encoder)
        self._clock = clock
        self._changed = threading.Condition()
        self._stepping = threading.Lock()
        self._arrived: list[Request] = []
        self._thread: threading.Thread | None = None
        self._ended: EngineStopped | None = None
        self._totals = dict.fromkeys(TOTALS, 0)

    def submit(
        self,
        parts_or_prompt: Any,
        params: SamplingParams | None = None,
        policy: Any = None,
        priority: int = 0,
        deadline: float | None = None,
        plan: Plan | None = None,
        **options: Any,
    ) -> Handle:
        """Queue a request from any thread; it is prepared here, in the caller's thread.

        Args:
            parts_or_prompt: a prepared `Prompt`, or what `NVILA.prepare` takes.
            params: default: greedy, at most 512 tokens.
            policy: how tiles are chosen, see `NVILA.prepare`.
            priority: higher is served earlier, and may push lower ones out of memory; equal ones
                by deadline, then in order of arrival.
            deadline: seconds from now after which the request fails with DeadlineExceeded.
            plan: the tiles of each picture and frame, see `NVILA.prepare`; replaces `policy`.
            options: passed on to `NVILA.prepare`.

        Raises:
            PromptError: the prompt cannot be used, e.g. PromptTooLong.
            EngineStopped: the engine was stopped.
        """
        prompt = parts_or_prompt
        if not isinstance(prompt, Prompt):
            prompt = self.model.prepare(parts_or_prompt, policy=policy, plan=plan, **options)
        prompt.must_fit(self.context)
        if deadline is not None and not deadline > 0:
            raise NVILAError(f"deadline must be more than 0 seconds, not {deadline}.")
        tokenizer = self.model.tokenizer
        handle = Handle()
        handle.on_cancel(self._wake)
        now = self._clock()
        request = Request(
            urgency=-priority,
            deadline=NEVER if deadline is None else now + deadline,
            number=0,
            sequence=Generation(prompt, params or SamplingParams(), tokenizer, self.context),
            handle=handle,
            layout=Layout(prompt, (tokenizer.image_id, tokenizer.video_id)),
            tiles=tile_keys(prompt),
            submitted=now,
            allowed=NEVER if deadline is None else deadline,
        )
        with self._changed:
            if self._ended:
                raise self._ended
            self._totals["submitted"] += 1
            request.number = self._totals["submitted"]
            self._arrived.append(request)
            self._changed.notify_all()
        return handle

    def start(self) -> None:
        """Run `step` in a thread of the engine's own until `stop`.

        Raises:
            DeviceLost: the device broke down before; only a new process can use it again.
        """
        with self._changed:
            if self._thread is not None:
                return
            if isinstance(self._ended, DeviceLost):
                raise self._ended
            self._ended = None
            self._thread = threading.Thread(target=self._run, name="nvila-engine", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; unfinished requests fail with EngineStopped."""
        with self._changed:
            self._ended = self._ended or EngineStopped()
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._abandon(EngineStopped())

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def step(self) -> bool:
        """Compute one batch and deliver what comes of it.

        Returns:
            Whether requests are left; calling again is only of use then.

        Raises:
            DeviceLost: the device broke down; no request can be answered any more.
        """
        with self._stepping, torch.inference_mode():
            self._take_arrived()
            self._drop_unwanted()
            work = self.scheduler.schedule()
            for item in work:
                if item.request.started is None:
                    self._begin(item.request)
            wanted = [(w.request, w.request.computed + w.count) for w in work]
            self.encoder.encode(wanted, self._failed)
            self._compute(self._encoded(work))
            self._totals["steps"] += 1
            left = bool(self.scheduler.waiting or self.scheduler.running)
        with self._changed:
            return left or bool(self._arrived)

    def stats(self) -> dict[str, int]:
        """Counts now and since the start.

        Now: waiting, running, kv_tokens (owned by running requests) and kv_reusable of
        kv_cache_tokens, tile_cache_bytes; the limits max_num_seqs, step_tokens, step_tiles. Since
        the start: submitted, finished, failed, cancelled, prompt_tokens, cached_tokens,
        completion_tokens, tiles, cached_tiles (all of ended requests), encoded_tiles, preemptions,
        steps.
        """
        pool = self.scheduler.pool
        with self._changed:
            return {
                "waiting": len(self.scheduler.waiting) + len(self._arrived),
                "running": len(self.scheduler.running),
                "kv_tokens": pool.owned * BLOCK,
                "kv_reusable": pool.kept * BLOCK,
                "kv_cache_tokens": self.kv_cache_tokens,
                "max_num_seqs": self.max_num_seqs,
                "step_tokens": self.scheduler.step_tokens,
                "step_tiles": self.encoder.step_tiles,
                "tile_cache_bytes": self.tile_cache.bytes,
                "encoded_tiles": self.encoder.encoded,
                "preemptions": self.scheduler.preemptions,
                **self._totals,
            }

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_work)
                    if self._ended:
                        return
                self.step()
        except BaseException as error:
            ended = error if isinstance(error, EngineStopped) else EngineStopped("broke down")
            with self._changed:
                self._ended = ended
            self._abandon(ended)
            if not isinstance(error, EngineStopped):
                raise

    def _has_work(self) -> bool:
        scheduler = self.scheduler
        return bool(self._ended or self._arrived or scheduler.waiting or scheduler.running)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _take_arrived(self) -> None:
        with self._changed:
            arrived, self._arrived = self._arrived, []
        for request in arrived:
            sequence = request.sequence
            prompt = sequence.prompt
            request.tiles = self.tile_cache.resolve(request.tiles, prompt.pixels)
            media = media_keys(prompt, request.tiles)
            request.keys = BlockKeys(request.layout, media, sequence.token_ids, BLOCK)
            self.scheduler.add(request)
            if sequence.finish_reason:  # the prompt fills the context
                self._end(request, sequence.completion())

    def _drop_unwanted(self) -> None:
        now = self._clock()
        for request in (*self.scheduler.running, *self.scheduler.waiting):
            if request.handle.cancelled:
                request.sequence.finish("cancelled")
                self._end(request, request.sequence.completion())
            elif now > request.deadline:
                self._end(request, DeadlineExceeded(request.allowed))

    def _begin(self, request: Request) -> None:
        request.started = self._clock()
        request.sequence.queue_ms = 1000 * (request.started - request.submitted)
        request.sequence.cached_tokens = request.computed

    def _encoded(self, work: list[Work]) -> list[Work]:
        """The part of the work whose tiles are all encoded."""
        ready = []
        for item in work:
            request = item.request
            if request in self.scheduler.running:
                count = request.ready(request.computed + item.count) - request.computed
                if count:
                    ready.append(Work(request, count))
        return ready

    def _compute(self, work: list[Work]) -> None:
        """Run a batch; where it fails, run its parts alone, so that only the culprit fails."""
        if not work:
            return
        try:
            drawn = self.runner.forward(work)
        except Exception as error:
            if lost(error):
                raise DeviceLost(first_line(error)) from error
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            if len(work) == 1:
                self._failed(work[0].request, error)
                return
            for item in work:
                self._compute([item])
            return
        for item, token in zip(work, drawn, strict=True):
            self._deliver(item, token)

    def _deliver(self, item: Work, drawn: Tensor | int | None) -> None:
        request, sequence = item.request, item.request.sequence
        if isinstance(drawn, Tensor) and not bool(drawn.max().isfinite()):
            self.cache.scrub(self.scheduler.pool.disown(request.blocks))
            self._failed(request, NotFinite())
            return
        self.scheduler.advance(request, item.count)
        if drawn is None:
            return
        request.drop_media()
        try:
            if isinstance(drawn, int):
                sequence.append(drawn)
            else:
                sequence.accept(drawn)
        except Exception as error:
            self._failed(request, error)
            return
        request.handle.put(sequence.take_delta())
        if sequence.finish_reason:
            self._end(request, sequence.completion)

    def _failed(self, request: Request, error: Exception) -> None:
        if lost(error):
            raise DeviceLost(first_line(error)) from error
        self._end(request, error)

    def _end(self, request: Request, outcome: Any) -> None:
        """Free all that a request holds, then tell its caller."""
        self.scheduler.remove(request)
        sequence = request.sequence
        if request.started is not None:
            spent = 1000 * (self._clock() - request.started)
            sequence.generate_ms = max(0.0, spent - sequence.encode_ms)
            sequence.cached_tiles = max(0, sequence.prompt.tiles - request.encoded_tiles)
        if callable(outcome):
            outcome = outcome()
        self._count(outcome)
        request.handle.finish(outcome)

    def _count(self, outcome: Any) -> None:
        totals = self._totals
        if isinstance(outcome, BaseException):
            totals["failed"] += 1
            return
        totals["cancelled" if outcome.finish_reason == "cancelled" else "finished"] += 1
        for name in USAGE:
            totals[name] += getattr(outcome.usage, name)

    def _abandon(self, error: EngineStopped) -> None:
        with self._stepping:
            with self._changed:
                arrived, self._arrived = self._arrived, []
            for request in arrived:
                self._count(error)
                request.handle.finish(error)
            for request in (*self.scheduler.running, *self.scheduler.waiting):
                self._end(request, error)


def lost(error: BaseException) -> bool:
    """Whether an exception means that the device's context is broken for good."""
    return isinstance(error, torch.AcceleratorError) and not isinstance(
        error, torch.OutOfMemoryError
    )
