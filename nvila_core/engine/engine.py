"""Continuous batching: requests join and leave one model at every step; nothing is computed twice.

One thread runs the model. Callers prepare their prompts in their own threads, so pictures are
resized in parallel, and only wait for results. A step:

    scheduler     chooses the positions to compute: one of each decoding request, chunks of prompts
    tile encoder  encodes the tiles that those chunks need and that no cache holds
    batch         runs all positions through the language model at once
    delivery      draws a token for every sequence whose positions are all computed

On a GPU the tiles are encoded beside the steps: a step starts passes of the tower, takes the
features of those that are done, and computes the chunks whose pictures are there.

There, too, a step in which all requests decode is started before the tokens of the one before have
been read, unless a penalty or a form needs them to draw the next. An answer that has ended is found
a step late, and its surplus token is dropped.

A request that fails does not affect the others.
"""

import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch

from nvila_core.engine.attention_choice import choose_attention, make_graphs, make_tower
from nvila_core.engine.block_pool import BlockPool
from nvila_core.engine.handle import Handle
from nvila_core.engine.kv_cache import KVCache
from nvila_core.engine.model_runner import Drawn, LaunchedStep, ModelRunner
from nvila_core.engine.prefix_keys import PromptLayout, hash_tiles
from nvila_core.engine.request import NEVER, Request
from nvila_core.engine.scheduler import ScheduledRequest, Scheduler
from nvila_core.engine.tile_cache import TileCache
from nvila_core.engine.tile_encoder import TileEncoder
from nvila_core.errors import (
    DeadlineExceeded,
    DeviceLost,
    EngineStopped,
    NotFinite,
    NVILAError,
    QueueFull,
    first_line,
)
from nvila_core.generation.sampling import SamplingParams
from nvila_core.generation.sequence import Sequence
from nvila_core.model import NVILA
from nvila_core.models.device import StepLimits, activation_bytes, is_device_lost, step_limits
from nvila_core.models.merged import merge_projections, merge_tower
from nvila_core.models.packed_linear import pack_linears
from nvila_core.models.small_layer import replace_small_layers
from nvila_core.prompt.builder import Prompt
from nvila_core.resolution.policy import Plan

BLOCK_SIZE = 16
"""Positions in a block of the cache: two prompts share whole blocks only."""

TOWER_POLL_SECONDS = 0.002
"""How often the engine looks whether features are there while it has nothing else to do."""

USAGE = ("prompt_tokens", "cached_tokens", "completion_tokens", "tiles", "cached_tiles")
TOTALS = ("submitted", "finished", "failed", "cancelled", "steps", *USAGE)


def default_limits(model: NVILA) -> StepLimits:
    """Return the limits of a step by the memory of the model's device that is free now."""
    device = model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    return step_limits(device, activation_bytes(model.language.config, model.dtype), free)


class Engine:
    """Runs many requests at a time on a model.

    Args:
        model: from now on used by this engine only, except for `prepare`.
        max_num_seqs: maximum number of running requests.
        kv_cache_tokens: positions whose keys and values are kept, for running requests and for
            reuse; also limits the length of a prompt with its answer.
        max_num_batched_tokens: maximum number of positions in a step: more is faster, fewer makes
            other requests wait less. Default: by the model and its device, see
            `models.device.step_limits`.
        step_tiles: maximum number of tiles that go through the vision tower in a step. Default: by
            the model and its device.
        tile_cache_bytes: size of the cache of encoded tiles.
        tile_tolerance: how much a tile may differ from a cached one and still use its features; see
            `TileCache`.
        max_waiting: maximum number of requests that wait to run; more are refused. Each holds the
            pixels of its pictures.
        clock: returns seconds; measures deadlines and timings.
        step_tokens: deprecated name of `max_num_batched_tokens`.

    Raises:
        NVILAError: a size is out of range, or the device has no room for the cache.

    Example:
        >>> from nvila_core import NVILA, Engine, SamplingParams
        >>> from nvila_core.demo import CHECKPOINT
        >>> model = NVILA.from_pretrained(CHECKPOINT)
        >>> with Engine(model, kv_cache_tokens=2048) as engine:
        ...     handles = [engine.submit([f"Hi {i}"], SamplingParams(max_tokens=4)) for i in (1, 2)]
        ...     answers = [handle.result(timeout=60) for handle in handles]
        >>> [answer.usage.completion_tokens <= 4 for answer in answers]
        [True, True]
    """

    def __init__(
        self,
        model: NVILA,
        max_num_seqs: int = 32,
        kv_cache_tokens: int = 65536,
        *,
        max_num_batched_tokens: int | None = None,
        step_tiles: int | None = None,
        tile_cache_bytes: int = 2**28,
        tile_tolerance: float = 0.0,
        max_waiting: int = 1024,
        clock: Callable[[], float] = time.monotonic,
        step_tokens: int | None = None,
    ) -> None:
        if step_tokens is not None:
            warnings.warn(
                "Engine(step_tokens=...) is now Engine(max_num_batched_tokens=...); the old name "
                "will be removed in the next release.",
                DeprecationWarning,
                stacklevel=2,
            )
            if max_num_batched_tokens is None:
                max_num_batched_tokens = step_tokens
        limits_given = {
            "max_num_seqs": max_num_seqs,
            "kv_cache_tokens": kv_cache_tokens,
            "max_num_batched_tokens": max_num_batched_tokens,
            "step_tiles": step_tiles,
            "max_waiting": max_waiting,
        }
        if low := [n for n, limit in limits_given.items() if limit is not None and limit < 1]:
            raise NVILAError(f"{low[0]} must be at least 1, not {limits_given[low[0]]}.")
        if tile_cache_bytes < 0 or not 0 <= tile_tolerance < 1:
            raise NVILAError(
                "tile_cache_bytes must be 0 or more, and tile_tolerance at least 0 and below 1."
            )
        num_blocks = -(-kv_cache_tokens // BLOCK_SIZE)
        self.model = model
        merge_projections(model.language.model)
        merge_tower(model.vision)
        pack_linears(model.language.model.layers)
        replace_small_layers(model.language.model)
        self.max_num_seqs, self.kv_cache_tokens = max_num_seqs, kv_cache_tokens
        self.max_waiting = max_waiting
        self.max_model_len = min(model.max_model_len, kv_cache_tokens)
        self.cache = KVCache(
            num_layers=model.config.num_layers,
            num_kv_heads=model.config.num_kv_heads,
            head_dim=model.config.head_dim,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            dtype=model.dtype,
            device=model.device,
        )
        limits = default_limits(model)  # by the memory that is left
        if max_num_batched_tokens is None:
            max_num_batched_tokens = limits.max_num_batched_tokens
        if step_tiles is None:
            step_tiles = limits.step_tiles
        self.scheduler = Scheduler(
            BlockPool(num_blocks), BLOCK_SIZE, max_num_seqs, max_num_batched_tokens
        )
        self.tile_cache = TileCache(tile_cache_bytes, tile_tolerance)
        self.encoder = TileEncoder(model, self.tile_cache, step_tiles, make_tower(model))
        attention = choose_attention(self.cache, model.config.num_heads)
        graphs = make_graphs(model, attention, self.max_model_len)
        self.runner = ModelRunner(model, attention, self.encoder, graphs)
        self._stream: Any = None
        if model.device.type == "cuda":
            # Passes of the tower, on a stream of lower priority, let its kernels go first.
            self._stream = torch.cuda.Stream(model.device, priority=-1)
            self._stream.wait_stream(torch.cuda.current_stream(model.device))
        self._clock = clock
        self._changed = threading.Condition()
        self._stepping = threading.Lock()
        self._arrived: list[Request] = []
        self._thread: threading.Thread | None = None
        self._stopped: EngineStopped | None = None
        self._flight: LaunchedStep | None = None
        """A step of decoding requests that has not been read; nothing is scheduled meanwhile."""
        self._late: dict[Request, Any] = {}
        """Outcomes of requests that have ended, of which `_flight` computes one position more."""
        self._room_changed = False
        """Whether a request has ended since requests were scheduled."""
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
        """Queue a request from any thread; its prompt is prepared in the caller's thread.

        Args:
            parts_or_prompt: a prepared `Prompt`, or what `NVILA.prepare` takes.
            params: how to sample; default: greedy, up to 512 tokens.
            policy: resolution policy, see `NVILA.prepare`.
            priority: requests of higher priority are served first, and may preempt lower ones;
                equal ones are served by deadline, then in order of arrival.
            deadline: seconds from now after which the request fails with DeadlineExceeded.
            plan: the tiles of each picture and frame, see `NVILA.prepare`; replaces `policy`.
            options: passed on to `NVILA.prepare`.

        Raises:
            PromptError: the prompt cannot be used, e.g. PromptTooLong.
            QueueFull: too many requests wait already.
            EngineStopped: the engine was stopped.
        """
        self._must_have_room()  # before the work of preparing a prompt
        prompt = parts_or_prompt
        if not isinstance(prompt, Prompt):
            prompt = self.model.prepare(parts_or_prompt, policy=policy, plan=plan, **options)
        prompt.must_fit(self.max_model_len)
        if deadline is not None and not deadline > 0:
            raise NVILAError(f"deadline must be more than 0 seconds, not {deadline}.")
        tokenizer = self.model.tokenizer
        handle = Handle()
        handle.on_cancel(self._wake)
        now = self._clock()
        request = Request(
            sequence=Sequence(prompt, params or SamplingParams(), tokenizer, self.max_model_len),
            handle=handle,
            layout=PromptLayout(prompt, (tokenizer.image_id, tokenizer.video_id)),
            tile_hashes=hash_tiles(prompt),
            priority=priority,
            deadline=NEVER if deadline is None else now + deadline,
            timeout=NEVER if deadline is None else deadline,
            arrival_time=now,
        )
        with self._changed:
            if self._stopped:
                raise self._stopped
            self._must_have_room()
            self._totals["submitted"] += 1
            request.arrival_index = self._totals["submitted"]
            self._arrived.append(request)
            self._changed.notify_all()
        return handle

    def _must_have_room(self) -> None:
        if len(self._arrived) + len(self.scheduler.waiting) >= self.max_waiting:
            raise QueueFull(self.max_waiting)

    def start(self) -> None:
        """Run `step` in a thread of the engine until `stop` is called.

        Raises:
            DeviceLost: the device failed earlier; only a new process can use it again.
        """
        with self._changed:
            if self._thread is not None:
                return
            if isinstance(self._stopped, DeviceLost):
                raise self._stopped
            self._stopped = None
            self._thread = threading.Thread(target=self._run, name="nvila-engine", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; unfinished requests fail with EngineStopped."""
        with self._changed:
            self._stopped = self._stopped or EngineStopped()
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self._fail_all(EngineStopped())

    def __enter__(self) -> "Engine":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def step(self) -> bool:
        """Compute one batch and deliver its results.

        Returns:
            Whether unfinished requests are left.

        Raises:
            DeviceLost: the device failed; no request can be answered any more.
        """
        try:
            with self._stepping, torch.inference_mode(), self._on_stream():
                self._step()
                left = bool(self.scheduler.waiting or self.scheduler.running)
        except Exception as error:
            if is_device_lost(error):
                raise DeviceLost(first_line(error)) from error
            raise
        with self._changed:
            return left or bool(self._arrived)

    def _step(self) -> None:
        if self._flight is not None:
            self._totals["steps"] += 1
            if self._continue(self._flight):
                return
        encoder, scheduler = self.encoder, self.scheduler
        beside = encoder.tower is not None
        self._queue_arrived()
        self._end_cancelled_and_overdue()
        encoder.take(self._fail)
        self._room_changed = False
        scheduled = scheduler.schedule(encoder.ready if beside else None)
        needed = [
            (item.request, item.request.num_computed_tokens + item.num_scheduled_tokens)
            for item in scheduled
        ]
        if beside:  # the tower works ahead of the chunks
            needed = [(r, r.num_tokens) for r in sorted(scheduler.running) if r.num_new_tokens > 1]
        for request in dict.fromkeys((*(item.request for item in scheduled), *dict(needed))):
            if request.scheduled_time is None:
                self._begin(request)
        for request, end in needed:
            if encoder.lacks_similar_tile(request, end):
                # Its own pixels must not be kept as those of the similar tile.
                scheduler.restart(request)
                request.use_tiles(request.own_tile_hashes, BLOCK_SIZE)
                request.scheduled_time = None
        needed = [(r, end) for r, end in needed if r in scheduler.running]
        (encoder.start if beside else encoder.encode)(needed, self._fail)
        work = self._with_encoded_tiles(scheduled)
        if not work and encoder.is_busy:
            self._wait_for_tower()
            return
        self._compute(work, may_fly=True)
        self._totals["steps"] += 1

    def _continue(self, step: LaunchedStep) -> bool:
        """Start the step after `step`, if nothing else is to be done, and deliver `step`.

        Returns:
            Whether another step is in flight.
        """
        following = self._start_next(step)
        drawn = self.runner.read(step)
        self._flight = following
        for item, token in zip(step.scheduled, drawn, strict=True):
            if item.request in self._late:
                self._drop_surplus(item.request, token)
            else:
                self._deliver(item, token)
        return following is not None

    def _start_next(self, step: LaunchedStep) -> LaunchedStep | None:
        """Start the step after one in flight, unless requests come or go or may run."""
        running, now = self.scheduler.running, self._clock()
        if self._arrived or self._late or self._room_changed or self.encoder.is_done():
            return None
        if self._stopped or any(
            r.handle.cancelled or now > r.deadline for r in (*running, *self.scheduler.waiting)
        ):
            return None
        sequences = [item.request.sequence for item in step.scheduled]
        rows = [row for row, s in enumerate(sequences) if len(s.token_ids) + 1 < s.max_tokens]
        requests = [step.scheduled[row].request for row in rows]
        if not rows or not self.scheduler.allocate_ahead(requests):
            return None
        try:
            return self.runner.launch_next(step, rows)
        except Exception as error:
            if is_device_lost(error):
                raise
            return None  # the next step meets it again, and fails the requests it concerns

    def _drop_surplus(self, request: Request, drawn: Drawn) -> None:
        """Free a request that had ended when its last position was started."""
        if isinstance(drawn, NotFinite):
            self.cache.zero(self.scheduler.pool.invalidate(request.blocks))
        self._end(request, self._late.pop(request))

    def _wait_for_tower(self) -> None:
        """Wait a moment for features, or less if a request comes or is cancelled."""
        with self._changed:
            if not (self._arrived or self._stopped or self.encoder.is_done()):
                self._changed.wait(TOWER_POLL_SECONDS)

    def _on_stream(self) -> AbstractContextManager[Any]:
        """Return a context in which a GPU computes on the engine's stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def stats(self) -> dict[str, int]:
        """Return counts of the current state and since the start.

        Current: waiting, running, kv_tokens (positions in blocks of running requests) and
        kv_reusable (positions in cached blocks without an owner) of kv_cache_tokens,
        tile_cache_bytes; the limits max_num_seqs, max_num_batched_tokens, step_tiles. Since the
        start: submitted, finished, failed, cancelled, prompt_tokens, cached_tokens,
        completion_tokens, tiles, cached_tiles (all of ended requests), encoded_tiles, preemptions,
        steps.
        """
        pool = self.scheduler.pool
        with self._changed:
            return {
                "waiting": len(self.scheduler.waiting) + len(self._arrived),
                "running": len(self.scheduler.running),
                "kv_tokens": pool.num_used_blocks * BLOCK_SIZE,
                "kv_reusable": pool.num_evictable_blocks * BLOCK_SIZE,
                "kv_cache_tokens": self.kv_cache_tokens,
                "max_num_seqs": self.max_num_seqs,
                "max_num_batched_tokens": self.scheduler.max_num_batched_tokens,
                "step_tiles": self.encoder.step_tiles,
                "tile_cache_bytes": self.tile_cache.bytes,
                "encoded_tiles": self.encoder.num_encoded,
                "preemptions": self.scheduler.num_preemptions,
                **self._totals,
            }

    def reset_stats(self) -> None:
        """Count from zero again, while no request is waiting or running."""
        with self._changed:
            self._totals.update(dict.fromkeys(TOTALS, 0))
            self.encoder.num_encoded = self.scheduler.num_preemptions = 0

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_work)
                    if self._stopped:
                        return
                self.step()
        except BaseException as error:
            stopped = error if isinstance(error, EngineStopped) else EngineStopped("broke down")
            with self._changed:
                self._stopped = stopped
            self._fail_all(stopped)
            if not isinstance(error, EngineStopped):
                raise

    def _has_work(self) -> bool:
        scheduler = self.scheduler
        return bool(self._stopped or self._arrived or scheduler.waiting or scheduler.running)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _queue_arrived(self) -> None:
        with self._changed:
            arrived, self._arrived = self._arrived, []
        for request in arrived:
            sequence = request.sequence
            similar = self.tile_cache.resolve(request.own_tile_hashes, sequence.prompt.pixels)
            request.use_tiles(similar, BLOCK_SIZE)
            self.scheduler.add(request)
            if sequence.finish_reason:  # the prompt leaves no room for an answer
                self._end(request, sequence.completion())

    def _end_cancelled_and_overdue(self) -> None:
        now = self._clock()
        for request in (*self.scheduler.running, *self.scheduler.waiting):
            if request.handle.cancelled:
                request.sequence.finish("cancelled")
                self._end(request, request.sequence.completion())
            elif now > request.deadline:
                self._end(request, DeadlineExceeded(request.timeout))

    def _begin(self, request: Request) -> None:
        request.scheduled_time = self._clock()
        request.sequence.queue_ms = 1000 * (request.scheduled_time - request.arrival_time)
        request.sequence.cached_tokens = request.num_computed_tokens

    def _with_encoded_tiles(self, scheduled: list[ScheduledRequest]) -> list[ScheduledRequest]:
        """Cut the scheduled positions to those whose tiles are all encoded."""
        encoded = []
        for item in scheduled:
            request = item.request
            if request in self.scheduler.running:
                start = request.num_computed_tokens
                count = request.encoded_until(start + item.num_scheduled_tokens) - start
                if count:
                    encoded.append(ScheduledRequest(request, count))
        return encoded

    def _compute(self, scheduled: list[ScheduledRequest], *, may_fly: bool = False) -> None:
        """Run a batch; if it fails, run each request alone, so that only the failing one fails.

        Args:
            may_fly: whether the step may be left in flight.
        """
        if not scheduled:
            return
        try:
            if self.runner.graphs is None or not may_fly:
                drawn = self.runner.forward(scheduled)
            else:
                step = self.runner.launch(scheduled)
                if step.by_graph:
                    self._flight = step
                    return
                drawn = self.runner.read(step)
        except Exception as error:
            if is_device_lost(error):
                raise DeviceLost(first_line(error)) from error
            failure = error
        else:
            for item, token in zip(scheduled, drawn, strict=True):
                self._deliver(item, token)
            return
        # The frames of the failed step keep its tensors, and the next try may need their memory.
        traceback.clear_frames(failure.__traceback__)
        if isinstance(failure, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(scheduled) == 1:
            request = scheduled[0].request
            # The failed step has written keys and values that no check has seen.
            self.cache.zero(request.blocks[request.num_computed_tokens // BLOCK_SIZE :])
            self._fail(request, failure)
            return
        for item in scheduled:
            self._compute([item])

    def _deliver(self, item: ScheduledRequest, drawn: Drawn) -> None:
        request, sequence = item.request, item.request.sequence
        if isinstance(drawn, NotFinite):
            self.cache.zero(self.scheduler.pool.invalidate(request.blocks))
            self._fail(request, drawn)
            return
        self.scheduler.mark_computed(request, item.num_scheduled_tokens)
        if drawn is None:
            return
        request.drop_media()
        try:
            if isinstance(drawn, Exception):
                raise drawn
            if isinstance(drawn, int):
                sequence.take(drawn)
            else:
                sequence.take(drawn.token, drawn.likelihood)
        except Exception as error:
            self._fail(request, error)
            return
        request.handle.put(sequence.take_delta(), sequence.take_logprobs())
        if sequence.finish_reason:
            self._end(request, sequence.completion)

    def _fail(self, request: Request, error: Exception) -> None:
        if is_device_lost(error):
            raise DeviceLost(first_line(error)) from error
        self._end(request, error)

    def _end(self, request: Request, outcome: Any) -> None:
        """Free the request's resources, then deliver the outcome to its caller.

        Where the step in flight computes one more position of it: when that step has been read.
        """
        if self._flight is not None and any(i.request is request for i in self._flight.scheduled):
            self._late[request] = outcome
            return
        self._room_changed = True
        self.scheduler.remove(request)
        sequence = request.sequence
        if request.scheduled_time is not None:
            elapsed = 1000 * (self._clock() - request.scheduled_time)
            sequence.generate_ms = max(0.0, elapsed - sequence.encode_ms)
            sequence.cached_tiles = max(0, sequence.prompt.tiles - request.num_encoded_tiles)
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

    def _fail_all(self, error: EngineStopped) -> None:
        with self._stepping:
            with suppress(Exception), torch.inference_mode(), self._on_stream():
                if self._flight is not None:  # the device may be lost
                    self._continue(self._flight)
            self._flight = None
            self._late.clear()
            with self._changed:
                arrived, self._arrived = self._arrived, []
            for request in arrived:
                self._count(error)
                request.handle.finish(error)
            for request in (*self.scheduler.running, *self.scheduler.waiting):
                self._end(request, error)
            with suppress(Exception), self._on_stream():  # the device may be lost
                self.encoder.finish()
