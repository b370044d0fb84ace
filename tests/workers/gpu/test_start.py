"""What a model worker imports until it answers: what it does not need costs memory and seconds."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

LOAD = """
import sys
from streamer.settings import Settings
from workers.gpu.worker import load_engine
with load_engine(Settings(model="demo")) as engine:
    engine.submit(["Hi."]).result(timeout=120)
print(*sys.modules)
"""

NOT_NEEDED = {
    *("sympy", "torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes"),
    *("transformers", "torchvision", "scipy", "pandas", "sklearn"),
    *("fastapi", "uvicorn", "sqlalchemy", "alembic", "prometheus_client"),
}


def test_a_model_worker_imports_no_more_than_it_needs_for_the_demo() -> None:
    # given a fresh interpreter, when it loads the demo as a model worker and answers
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], check=True, capture_output=True, text=True, timeout=300
    )
    # then it imported the model's packages, and none of what only others need
    modules = set(loaded.stdout.split())
    assert {"torch", "tokenizers", "safetensors"} <= modules
    assert not modules & NOT_NEEDED
