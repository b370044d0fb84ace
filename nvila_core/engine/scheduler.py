"""Choose which requests run, and how many positions of each the next step computes.

A step takes one position of every decoding request, then as much of the prompts as its token budget
leaves, in serving order: a long prompt is prefilled in chunks and delays no other request for
longer than a step. Where pictures are encoded beside the steps, a prompt is computed as far as its
pictures are there, in chunks that are worth a step. A prompt is admitted when blocks for all of it
are free; when decoding needs more blocks than there are, the last request in serving order is
preempted and resumes later where it was. Chunked prefill follows Sarathi-Serve (Agrawal et al.
2024), preemption by recomputing follows vLLM (Kwon et al. 2023).
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nvila_core.engine.block_pool import BlockPool
from nvila_core.engine.request import Request

MIN_CHUNK_SHARE = 0.25
"""Share of a step's positions that a chunk must have while its prompt waits for the tower: one of
few positions takes as long as one of many."""

MAX_UNREADY_STEPS = 2
"""Steps of positions that wait for the tower before another prompt with pictures is admitted: it
would hold blocks and compute nothing."""

Ready = Callable[[Request, int], int]
"""Returns the position, at most the given one, up to which a request's pictures are encoded."""


@dataclass(frozen=True)
class ScheduledRequest:
    """A request and the number of its next positions that a step computes."""

    request: Request
    num_scheduled_tokens: int


class Scheduler:
    """Waiting and running requests, and the blocks that they own.

    Args:
        pool: the blocks of the cache.
        block_size: positions in a block.
        max_num_seqs: maximum number of running requests.
        max_num_batched_tokens: maximum number of positions in a step; exceeded only where more
            requests than that decode.
    """

    def __init__(
        self, pool: BlockPool, block_size: int, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        self.pool, self.block_size = pool, block_size
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.waiting: list[Request] = []
        """In serving order."""
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.blocks_in_flight: dict[bytes, Request] = {}
        """Block hashes that a running request is about to compute: other requests wait for them."""

    def add(self, request: Request) -> None:
        """Queue a request."""
        bisect.insort(self.waiting, request)

    def remove(self, request: Request) -> None:
        """Remove a waiting or running request and free its blocks."""
        if request in self.running:
            self.running = [r for r in self.running if r is not request]
            self._free(request)
        else:
            self.waiting = [r for r in self.waiting if r is not request]

    def restart(self, request: Request) -> None:
        """Let a running request wait again; it keeps what it has generated."""
        self.running = [r for r in self.running if r is not request]
        self._free(request)
        self.add(request)

    def schedule(self, ready: Ready | None = None) -> list[ScheduledRequest]:
        """Return the work of the next step: decoding requests, then prompts, in serving order.

        Args:
            ready: where pictures are encoded beside the steps; None: they will be encoded as this
                step needs them.
        """
        budget = self.max_num_batched_tokens
        scheduled: list[ScheduledRequest] = []
        for request in sorted(self.running):
            decodes = request.num_new_tokens == 1
            # An earlier one in this loop may have preempted it.
            if decodes and request in self.running and self._allocate_next_position(request):
                scheduled.append(ScheduledRequest(request, 1))
                budget -= 1
        prefilling = sorted([r for r in self.running if r.num_new_tokens > 1] + self.waiting)
        full, unready = False, 0
        for request in prefilling:
            if budget <= 0:
                break
            if request not in self.running:
                if (
                    unready >= MAX_UNREADY_STEPS * self.max_num_batched_tokens
                    and request.tile_hashes
                ):
                    continue
                admitted = not full and self._admit(request)
                full = full or admitted is False  # else small prompts could overtake it for ever
                if not admitted:
                    continue
            count = min(request.num_new_tokens, budget)
            if ready is not None:
                count = self._count_ready(request, count, ready)
                unready += request.num_new_tokens - count
            if count:
                scheduled.append(ScheduledRequest(request, count))
                budget -= count
        return [item for item in scheduled if item.request in self.running]

    def _count_ready(self, request: Request, wanted: int, ready: Ready) -> int:
        """Return how many of the next `wanted` positions to compute: 0 while too few are ready."""
        start = request.num_computed_tokens
        count = ready(request, start + wanted) - start
        enough = min(wanted, MIN_CHUNK_SHARE * self.max_num_batched_tokens)
        return count if count >= enough else 0

    def allocate_ahead(self, requests: Sequence[Request]) -> bool:
        """Let decoding requests have blocks for two positions; False where too few are free."""
        size = self.block_size
        short = [r for r in requests if r.num_computed_tokens + 2 > len(r.blocks) * size]
        if len(short) > self.pool.num_free_blocks:
            return False
        for request in short:
            request.blocks += self.pool.allocate(1)
        return True

    def mark_computed(self, request: Request, count: int) -> None:
        """Record that `count` more positions are computed, and cache the blocks they fill."""
        request.num_computed_tokens += count
        full = request.num_computed_tokens // self.block_size
        cached = request.num_cached_blocks
        for index, block_hash in enumerate(request.block_hashes.first(full)[cached:], cached):
            self.pool.cache(request.blocks[index], block_hash)
            if self.blocks_in_flight.get(block_hash) is request:
                del self.blocks_in_flight[block_hash]
        request.num_cached_blocks = max(cached, full)

    def _admit(self, request: Request) -> bool | None:
        """Start a waiting request.

        Returns:
            False where there is no room; None where it is better to wait for blocks that another
            request computes.
        """
        # The last position is always computed: the next token is drawn from it.
        reusable = (request.num_tokens - 1) // self.block_size
        hashes = request.block_hashes.first(request.num_tokens // self.block_size)
        cached = self.pool.find_cached(hashes[:reusable])
        if len(cached) < reusable and (other := self.blocks_in_flight.get(hashes[len(cached)])):
            other.priority = max(other.priority, request.priority)
            return None
        needed = -(-request.num_tokens // self.block_size) - len(cached)

        def shortage() -> int:
            reserve = len(self.running)  # so that admitting one does not at once preempt another
            free = self.pool.num_free_blocks - self.pool.count_evictable(cached)
            seats = self.max_num_seqs - len(self.running)
            return max(needed + reserve - free, 1 - seats)

        if not self._make_room(shortage, lambda r: r.priority < request.priority):
            return False
        self.pool.acquire(cached)
        request.blocks = cached + self.pool.allocate(needed)
        request.num_computed_tokens = len(cached) * self.block_size
        request.num_cached_blocks = len(cached)
        for block_hash in hashes[len(cached) :]:
            self.blocks_in_flight.setdefault(block_hash, request)
        self.waiting = [r for r in self.waiting if r is not request]
        self.running.append(request)
        return True

    def _allocate_next_position(self, request: Request) -> bool:
        """Make sure that the next position has a block; False if this preempted the request."""
        if request.num_computed_tokens < len(request.blocks) * self.block_size:
            return True
        if not self._make_room(lambda: 1 - self.pool.num_free_blocks, lambda r: request < r):
            self._preempt(request)
            return False
        request.blocks += self.pool.allocate(1)
        return True

    def _make_room(
        self, shortage: Callable[[], int], preemptible: Callable[[Request], bool]
    ) -> bool:
        """Preempt requests, the last in serving order first, until there is no shortage.

        Preempts none where all of them together would not be enough.
        """
        victims = sorted((r for r in self.running if preemptible(r)), reverse=True)
        if shortage() > sum(len(r.blocks) + 1 for r in victims):
            return False
        for victim in victims:
            if shortage() <= 0:
                break
            self._preempt(victim)
        return shortage() <= 0

    def _preempt(self, request: Request) -> None:
        self.num_preemptions += 1
        self.restart(request)

    def _free(self, request: Request) -> None:
        self.pool.free(request.blocks)
        request.blocks, request.num_computed_tokens, request.num_cached_blocks = [], 0, 0
        request.drop_media()
        self.blocks_in_flight = {
            block_hash: r for block_hash, r in self.blocks_in_flight.items() if r is not request
        }
