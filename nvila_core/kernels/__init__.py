"""Triton kernels for CUDA: attention over the paged cache, and the small steps between products.

The modules import Triton, and nothing of PyTorch: `nvila_core.engine.triton_attention` and
`nvila_core.models.fused` launch the kernels. Without a GPU they run in Triton's interpreter
(`TRITON_INTERPRET=1`), and compile for any GPU; both are tests.
"""
