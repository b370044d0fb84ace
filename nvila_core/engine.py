"""Many requests on one model at once: admitted by priority, encoded together, decoded side by side.

One thread runs the model. Callers prepare their prompts in their own threads, so pictures are
resized in parallel, and only wait for results. A request that fails does so alone.
"""

import heapq
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from .errors import EngineStopped, NVILAError
from .handle import Handle
from .model import NVILA
from .prompt import Prompt
from .sampling import SamplingParams
from .sequence import Sequence


@dataclass(order=True)
class Request:
    """A sequence and its caller. The order is that of admission: priority, then arrival."""

    urgency: int
    number: int
    sequence: Sequence = field(compare=False)
    handle: Handle = field(compare=False)
    submitted: float = field(compare=False)
    started: float = field(compare=False, default=0.0)


class Engine:
    """Runs requests on a model, several at a time.

    Args:
        model: used by this engine alone from now on, except for `prepare`.
        max_num_seqs: most requests that are generated at once.
        kv_cache_tokens: most LLM positions (prompt and answer) that all of them may come to hold.
    """

    def __init__(self, model: NVILA, max_num_seqs: int = 32, kv_cache_tokens: int = 65536) -> None:
        if max_num_seqs < 1 or kv_cache_tokens < 1:
            raise NVILAError("max_num_seqs and kv_cache_tokens must be at least 1.")
        self.model = model
        self.max_num_seqs, self.kv_cache_tokens = max_num_seqs, kv_cache_tokens
        self.context = min(model.context, kv_cache_tokens)
        self._changed = threading.Condition()
        self._stepping = threading.Lock()
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._submitted = 0
        self._totals = dict.fromkeys(
            (
                "finished",
                "failed",
                "cancelled",
                "prompt_tokens",
                "completion_tokens",
                "tiles",
                "steps",
            ),
            0,
        )

    def submit(
        self,
        parts_or_prompt: Any,
        params: SamplingParams | None = None,
        policy: str | None = None,
        priority: int = 0,
        **options: Any,
    ) -> Handle:
        """Queue a request from any thread; it is prepared here, in the caller's thread.

        Args:
            parts_or_prompt: a prepared `Prompt`, or what `NVILA.prepare` takes.
            params: default: greedy, at most 512 tokens.
            policy: how tiles are chosen; "native" (None) is the published model's rule.
            priority: higher is admitted earlier; equal ones in order of arrival.
            options: passed on to `NVILA.prepare`.

        Raises:
            PromptError: the prompt cannot be used, e.g. PromptTooLong.
            EngineStopped: the engine was stopped.
        """
        if policy not in (None, "native"):
            raise NVILAError(f"The policy {policy!r} is unknown; use 'native'.")
        prompt = parts_or_prompt
        if not isinstance(prompt, Prompt):
            prompt = self.model.prepare(parts_or_prompt, **options)
        prompt.must_fit(self.context)
        sequence = Sequence(prompt, params or SamplingParams(), self.model.tokenizer, self.context)
        handle = Handle()
        handle.on_cancel(self._wake)
        with self._changed:
            if self._stopped:
                raise EngineStopped
            self._submitted += 1
            request = Request(-priority, self._submitted, sequence, handle, time.perf_counter())
            heapq.heappush(self._waiting, request)
            self._changed.notify_all()
        return handle

    def start(self) -> None:
        """Run `step` in a thread of the engine's own until `stop`."""
        with self._changed:
            if self._thread is not None:
                return
            self._stopped = False
            self._thread = threading.Thread(target=self._run, name="nvila-engine", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; unfinished requests fail with EngineStopped."""
        with self._changed:
            self._stopped = True
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
        """Admit, encode and prefill what fits, then decode one token of every request.

        Returns:
            Whether requests are left; calling again is only of use then.
        """
        with self._stepping, torch.inference_mode():
            self._drop_cancelled()
            running = list(self._running)
            self._prefill(self._encode(self._admit()))
            for request in running:
                if request.sequence.finish_reason is None:
                    self._guarded(request, self.model.decode, [request.sequence])
            self._deliver()
            self._totals["steps"] += 1
        with self._changed:
            return bool(self._waiting or self._running)

    def stats(self) -> dict[str, int]:
        """Counts now (waiting, running, kv_tokens of kv_cache_tokens) and since the start."""
        with self._changed:
            return {
                "waiting": len(self._waiting),
                "running": len(self._running),
                "kv_tokens": self._kv_tokens(),
                "kv_cache_tokens": self.kv_cache_tokens,
                "max_num_seqs": self.max_num_seqs,
                "submitted": self._submitted,
                **self._totals,
            }

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or self._waiting or self._running)
                    if self._stopped:
                        return
                self.step()
        except BaseException as error:
            with self._changed:
                self._stopped = True
            self._abandon(error)
            raise

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _kv_tokens(self) -> int:
        return sum(request.sequence.positions for request in self._running)

    def _admit(self) -> list[Request]:
        """Move waiting requests to the running ones; the first that cannot holds up the rest."""
        admitted = []
        with self._changed:
            free = self.kv_cache_tokens - self._kv_tokens()
            while self._waiting and len(self._running) < self.max_num_seqs:
                if self._waiting[0].sequence.positions > free:
                    break
                request = heapq.heappop(self._waiting)
                free -= request.sequence.positions
                request.started = time.perf_counter()
                request.sequence.queue_ms = 1000 * (request.started - request.submitted)
                self._running.append(request)
                admitted.append(request)
        return admitted

    def _encode(self, requests: list[Request]) -> list[tuple[Request, list[torch.Tensor]]]:
        """The media positions of newly admitted requests; their tiles go through the tower
        together.
        """
        began = time.perf_counter()
        try:
            tiles = [r.sequence.prompt.pixel_values for r in requests]
            counts = [len(t) for t in tiles]
            batches = self.model.vision(torch.cat(tiles)).split(counts) if requests else ()
            encoded = [
                (r, self.model.media_positions(features, r.sequence.prompt.media))
                for r, features in zip(requests, batches, strict=True)
            ]
        except Exception:  # one by one, so that only the culprit fails
            encoded = []
            for request in requests:
                media = self._guarded(request, self.model.encode, request.sequence.prompt)
                if media is not None:
                    encoded.append((request, media))
        for request, _ in encoded:
            request.sequence.encode_ms = 1000 * (time.perf_counter() - began)
        return encoded

    def _prefill(self, encoded: list[tuple[Request, list[torch.Tensor]]]) -> None:
        for request, media in encoded:
            self._guarded(request, self.model.prefill, request.sequence, media)

    def _guarded(self, request: Request, call: Any, *args: Any) -> Any:
        """Run the model for one request; an exception ends that request and no other."""
        try:
            return call(*args)
        except Exception as error:
            self._remove(request, error)
            return None

    def _drop_cancelled(self) -> None:
        with self._changed:
            cancelled = [r for r in (*self._running, *self._waiting) if r.handle.cancelled]
            if cancelled:
                self._waiting = [r for r in self._waiting if not r.handle.cancelled]
                heapq.heapify(self._waiting)
        for request in cancelled:
            request.sequence.finish("cancelled")
            if request not in self._running:
                self._close(request, request.sequence.completion())

    def _deliver(self) -> None:
        """Hand out new text, and the answers of the sequences that have ended."""
        for request in list(self._running):
            request.handle.put(request.sequence.take_delta())
            if request.sequence.finish_reason:
                spent = 1000 * (time.perf_counter() - request.started)
                request.sequence.generate_ms = spent - request.sequence.encode_ms
                self._remove(request, request.sequence.completion())

    def _remove(self, request: Request, outcome: Any) -> None:
        with self._changed:
            self._running = [r for r in self._running if r is not request]
        self._close(request, outcome)

    def _close(self, request: Request, outcome: Any) -> None:
        totals = self._totals
        if isinstance(outcome, BaseException):
            totals["failed"] += 1
        else:
            totals["cancelled" if outcome.finish_reason == "cancelled" else "finished"] += 1
            totals["prompt_tokens"] += outcome.usage.prompt_tokens
            totals["completion_tokens"] += outcome.usage.completion_tokens
            totals["tiles"] += outcome.usage.tiles
        request.handle.finish(outcome)

    def _abandon(self, error: BaseException) -> None:
        with self._stepping, self._changed:
            left = [*self._running, *self._waiting]
            self._running, self._waiting = [], []
        for request in left:
            self._close(request, error)
