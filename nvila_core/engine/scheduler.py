"""Which requests run, and how many positions of each are computed in the next step.

A step takes one position of every request that is generating, then as much of waiting prompts, by
urgency, as its budget leaves: a long prompt is read in chunks and holds up nobody. Memory is
claimed for a whole prompt at once; when generating needs more than there is, the least urgent
request is put back to wait, to go on later where it was. Chunked prefill follows Sarathi-Serve
(Agrawal et al. 2024), preemption by recomputing follows vLLM (Kwon et al. 2023).
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from nvila_core.engine.block_pool import BlockPool
from nvila_core.engine.request import Request


@dataclass(frozen=True)
class Work:
    """Compute `count` more positions of a request."""

    request: Request
    count: int


class Scheduler:
    """Waiting and running requests, and the blocks that they own.

    Args:
        pool: the cache's blocks.
        block_size: positions a block.
        max_num_seqs: most running requests.
        step_tokens: most positions in a step, unless more requests than that are generating.
    """

    def __init__(
        self, pool: BlockPool, block_size: int, max_num_seqs: int, step_tokens: int
    ) -> None:
        self.pool, self.block_size = pool, block_size
        self.max_num_seqs, self.step_tokens = max_num_seqs, step_tokens
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0
        self._promised: dict[bytes, Request] = {}
        """Blocks that a running request is about to compute: others wait for them."""

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        bisect.insort(self.waiting, request)

    def remove(self, request: Request) -> None:
        """Forget a request, wherever it is, and free what it owns at once."""
        if request in self.running:
            self.running = [r for r in self.running if r is not request]
            self._release(request)
        else:
            self.waiting = [r for r in self.waiting if r is not request]

    def schedule(self) -> list[Work]:
        """The next step's work, most urgent first among those that generate and those that read."""
        budget = self.step_tokens
        work: list[Work] = []
        for request in sorted(self.running):
            if request.pending == 1 and request in self.running and self._grow(request):
                work.append(Work(request, 1))
                budget -= 1
        readers = sorted([r for r in self.running if r.pending > 1] + self.waiting)
        full = False
        for request in readers:
            if budget <= 0:
                break
            if request not in self.running:
                admitted = not full and self._admit(request)
                full = full or admitted is False  # nobody behind it may overtake it for ever
                if not admitted:
                    continue
            count = min(request.pending, budget)
            work.append(Work(request, count))
            budget -= count
        return [w for w in work if w.request in self.running]

    def advance(self, request: Request, count: int) -> None:
        """`count` more positions have been computed: their full blocks can be found from now on."""
        request.computed += count
        full = request.computed // self.block_size
        for index, key in enumerate(request.keys.first(full)[request.published :]):
            self.pool.publish(request.blocks[request.published + index], key)
            self._unpromise(request, key)
        request.published = max(request.published, full)

    def _admit(self, request: Request) -> bool | None:
        """Start a waiting request. None: it had better wait for what another one is computing."""
        reusable = (request.known - 1) // self.block_size  # the last position is always computed
        keys = request.keys.first(request.known // self.block_size)
        found = self.pool.find(keys[:reusable])
        if len(found) < reusable and (other := self._promised.get(keys[len(found)])):
            other.urgency = min(other.urgency, request.urgency)
            return None
        needed = -(-request.known // self.block_size) - len(found)

        def lacking() -> int:
            reserve = len(self.running)  # so that starting one does not at once stop another
            free = self.pool.available - self.pool.unowned(found)
            places = self.max_num_seqs - len(self.running)
            return max(needed + reserve - free, 1 - places)

        if not self._make_room(lacking, lambda r: r.urgency > request.urgency):
            return False
        self.pool.share(found)
        request.blocks = found + self.pool.take(needed)
        request.computed = request.published = len(found) * self.block_size
        request.published //= self.block_size
        for key in keys[len(found) :]:
            self._promised.setdefault(key, request)
        self.waiting = [r for r in self.waiting if r is not request]
        self.running.append(request)
        return True

    def _grow(self, request: Request) -> bool:
        """Own a block for the next position; False if the request itself was put back."""
        if request.computed < len(request.blocks) * self.block_size:
            return True
        if not self._make_room(lambda: 1 - self.pool.available, lambda r: r > request):
            self._preempt(request)
            return False
        request.blocks += self.pool.take(1)
        return True

    def _make_room(self, lacking: Callable[[], int], may_go: Callable[[Request], bool]) -> bool:
        """Put requests back to wait, the last in order first, until nothing is lacking; none where
        all of them together would not do.
        """
        victims = sorted((r for r in self.running if may_go(r)), reverse=True)
        if lacking() > sum(len(r.blocks) + 1 for r in victims):
            return False
        for victim in victims:
            if lacking() <= 0:
                break
            self._preempt(victim)
        return lacking() <= 0

    def _preempt(self, request: Request) -> None:
        self.preemptions += 1
        self.running = [r for r in self.running if r is not request]
        self._release(request)
        self.add(request)

    def _release(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks, request.computed, request.published = [], 0, 0
        request.drop_media()
        self._promised = {k: r for k, r in self._promised.items() if r is not request}

    def _unpromise(self, request: Request, key: bytes) -> None:
        if self._promised.get(key) is request:
            del self._promised[key]
