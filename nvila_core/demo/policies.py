"""Compare resolution policies by the answers about held-out clips.

Every policy answers the same questions about the same clips of four frames. Only the sign needs
more than one tile per frame: it is the small writing that an adaptive policy has to find.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nvila_core import NVILA, Budget, SamplingParams
from nvila_core.demo.evaluate import CLIP_FRAMES, held_out
from nvila_core.demo.questions import QUESTION_KINDS
from nvila_core.demo.sampling import FIRST_EVALUATION_SEED, TILE_GRID

DETAIL_KIND = "sign"
ONE_TILE, ALL_TILES = "fixed:1", "fixed:12"
TILED_FRAMES = (1, 2, 3, None)
"""Budgets of the adaptive policy, in tiled frames; None: no limit."""

_FIRST_SEED = FIRST_EVALUATION_SEED + 5 * 10**8  # other scenes than those of `evaluate`
_SEEDS_PER_KIND = 10**6


@dataclass
class PolicyScore:
    """The accuracy and the cost of one policy.

    Attributes:
        policy: the policy's name.
        budget: vision tokens of a clip; None: no limit.
        right: number of correct answers, by kind of question.
        asked: number of questions of each kind.
        vision_tokens: vision tokens of all prompts together.
    """

    policy: str
    budget: int | None
    right: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QUESTION_KINDS, 0))
    asked: int = 0
    vision_tokens: int = 0

    @property
    def name(self) -> str:
        """Name of the policy, with its budget."""
        return self.policy + (f", {self.budget} tokens" if self.budget else "")

    def accuracy(self, *kinds: str) -> float:
        """Return the share of correct answers, 0 to 1, over some kinds of questions or over all."""
        chosen = kinds or QUESTION_KINDS
        return sum(self.right[kind] for kind in chosen) / (self.asked * len(chosen))

    @property
    def tokens_per_frame(self) -> float:
        """Average number of vision tokens of a frame."""
        return self.vision_tokens / (self.asked * len(QUESTION_KINDS) * CLIP_FRAMES)

    def record(self) -> dict[str, Any]:
        """Return the score as a JSON object."""
        return asdict(self) | {
            "name": self.name,
            "accuracy": {kind: self.accuracy(kind) for kind in QUESTION_KINDS}
            | {"all": self.accuracy()},
            "tokens_per_frame": self.tokens_per_frame,
        }


def evaluate_policies(
    checkpoint: Path,
    questions: int = 100,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> list[PolicyScore]:
    """Ask the same questions under each policy.

    Args:
        checkpoint: folder of the checkpoint.
        questions: number of questions of each kind.
        seed: seed of the held-out scenes.
        device: "cpu", "cuda", or "auto".
        progress: receives one line after each kind of question.
    """
    model = NVILA.from_pretrained(checkpoint, device=device, dtype="float32")
    if not model.config.tile_grids:  # exported before checkpoints had this field
        model.config = replace(model.config, tile_grids=(TILE_GRID,))
    scores = policies(model.config.tile_tokens)
    for number, kind in enumerate(QUESTION_KINDS):
        first = _FIRST_SEED + (seed * len(QUESTION_KINDS) + number) * _SEEDS_PER_KIND
        for parts, question in held_out(
            "clip", kind, questions, first, model.config.processor.size
        ):
            answers: dict[Any, str] = {}  # by the grids of the frames
            for score in scores:
                prompt = model.prepare(parts, policy=score.policy, budget=Budget(score.budget))
                grids = tuple(frame.grid for frame in prompt.plan.frames)
                if grids not in answers:
                    answers[grids] = model.generate(prompt, SamplingParams(max_tokens=64)).text
                score.right[kind] += answers[grids] == question.answer
                score.vision_tokens += prompt.vision_tokens
        for score in scores:
            score.asked = questions
        if progress:
            progress(", ".join(f"{s.name}: {s.right[kind]}" for s in scores) + f" {kind}")
    return scores


def policies(tile_tokens: int) -> list[PolicyScore]:
    """Return the policies and budgets to compare, for tiles of `tile_tokens` tokens."""
    tiled = TILE_GRID[0] * TILE_GRID[1]
    budgets = [n if n is None else (CLIP_FRAMES + n * tiled) * tile_tokens for n in TILED_FRAMES]
    adaptive = [PolicyScore("adaptive", budget) for budget in budgets]
    return [PolicyScore(ONE_TILE, None), *adaptive, PolicyScore(ALL_TILES, None)]


def format_policies(scores: Sequence[PolicyScore]) -> str:
    """Format the scores as a Markdown table."""
    header = ("policy", "tokens a frame", *QUESTION_KINDS, "all")
    lines = [" | ".join(header), "|".join(["---", *["---:"] * (len(header) - 1)])]
    for score in scores:
        shares = [*(score.accuracy(kind) for kind in QUESTION_KINDS), score.accuracy()]
        cells = [score.name, f"{score.tokens_per_frame:.1f}", *(f"{s:.1%}" for s in shares)]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)
