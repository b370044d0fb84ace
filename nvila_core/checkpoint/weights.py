"""Safetensors on disk as an index of tensors, loaded lean: memory-mapped where the dtype fits, and
converted one tensor at a time where it does not, so that no second copy of the weights ever exists.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from nvila_core.errors import CheckpointError, as_checkpoint_error
from nvila_core.json_fields import Fields, read_json
from nvila_core.models.quantize import quantized

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what its header says; `key` is its name in the file."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


class Weights:
    """Tensors by name, none of them read yet. `source` names them in errors."""

    def __init__(self, tensors: dict[str, StoredTensor], source: Path) -> None:
        self.tensors, self.source = tensors, source

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @classmethod
    def open(cls, folder: Path) -> "Weights":
        """Index `folder`: model.safetensors, or the shards that model.safetensors.index.json lists.

        Raises:
            CheckpointError: files missing or truncated, or a header that is not safetensors.
        """
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if index.exists():
            return cls(open_shards(index), index)
        if single.exists():
            return cls(read_header(single), single)
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise CheckpointError(
                single, "only pickled weights are here, which are never loaded; convert them"
            )
        raise CheckpointError(single, "the file is missing, so download the checkpoint again")

    def part(self, prefix: str) -> "Weights":
        """The tensors whose names start with `prefix`, without it."""
        inside = {
            n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)
        }
        return Weights(inside, self.source)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of tensor `name`.

        Raises:
            CheckpointError: there is no such tensor.
        """
        if name not in self.tensors:
            raise CheckpointError(self.source, "the tensor is missing", field=name)
        return self.tensors[name].shape

    def expect(self, name: str, shape: tuple[int, ...], because: str) -> None:
        """Check one shape before anything is built from the config.

        Raises:
            CheckpointError: missing or different; `because` names the config field that asks for
                it.
        """
        if self.shape(name) != shape:
            stored = self.tensors[name]
            raise CheckpointError(
                stored.path,
                f"the tensor's shape contradicts {because}",
                field=stored.key,
                expected=list(shape),
                found=list(stored.shape),
            )

    def expect_count(self, prefix: str, count: int, field: str) -> None:
        """Check that the tensors named `{prefix}{i}.` have i = 0 .. count - 1."""
        numbers = {
            n.removeprefix(prefix).split(".")[0] for n in self.tensors if n.startswith(prefix)
        }
        found = len(numbers)
        if numbers != {str(i) for i in range(count)} if found == count else True:
            raise CheckpointError(
                self.source,
                f"the weights contradict {field}",
                field=prefix + "*",
                expected=f"{count} layers",
                found=f"{found} layers",
            )

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One tensor as `dtype` on `device`; mapped rather than copied where it already is that."""
        stored = self.tensors[name]
        with (
            as_checkpoint_error(stored.path, "the tensor cannot be read", stored.key),
            safe_open(stored.path, framework="pt") as file,
        ):
            tensor: Tensor = file.get_tensor(stored.key)
        return tensor.to(device=device, dtype=dtype)

    def fill(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        unused: Iterable[str] = (),
        bits: int | None = None,
    ) -> None:
        """Give `module`, built on the meta device, its parameters.

        Args:
            module: every parameter of it must be here with the same shape.
            unused: prefixes of tensors that may be here and are not wanted.
            bits: 8 or 4 quantizes the linear layers inside `layers`, one at a time.

        Raises:
            CheckpointError: a tensor is missing, has another shape or dtype, or belongs nowhere.
        """
        wanted = dict(module.named_parameters())
        unused = tuple(unused)
        for name in self.tensors:
            if name not in wanted and not name.startswith(unused):
                raise CheckpointError(
                    self.tensors[name].path,
                    "the config asks for no such tensor",
                    field=self.tensors[name].key,
                )
        for name, parameter in wanted.items():
            self.expect(name, tuple(parameter.shape), "the config")
            stored = self.tensors[name]
            if stored.dtype not in FLOATS:
                raise CheckpointError(
                    stored.path,
                    "the tensor's type is not supported",
                    field=stored.key,
                    expected=sorted(FLOATS),
                    found=stored.dtype,
                )
        for name in wanted:
            owner, _, leaf = name.rpartition(".")
            linear = isinstance(module.get_submodule(owner), nn.Linear)
            if bits and linear and leaf == "weight" and ".layers." in owner:
                mapped = self.read(name, FLOATS[self.tensors[name].dtype], device)
                module.set_submodule(owner, quantized(mapped, bits, dtype))
                continue
            tensor = nn.Parameter(self.read(name, dtype, device), requires_grad=False)
            setattr(module.get_submodule(owner), leaf, tensor)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file; the library checks the header against the file's length."""
    if not path.is_file():
        raise CheckpointError(path, "the file is missing, so download the checkpoint again")
    tensors = {}
    with (
        as_checkpoint_error(path, "the file is truncated or not safetensors"),
        safe_open(path, framework="pt") as file,
    ):
        for key in file.keys():  # noqa: SIM118 (not a dict)
            view = file.get_slice(key)
            tensors[key] = StoredTensor(path, key, tuple(view.get_shape()), view.get_dtype())
    return tensors


def open_shards(index: Path) -> dict[str, StoredTensor]:
    """The tensors that an index file lists, each looked up in its shard."""
    entries = Fields(read_json(index), str(index)).child("weight_map").values
    headers: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    for name, file in entries.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith(".safetensors")
        ):
            raise CheckpointError(
                index,
                "the shard's name is malformed",
                field=name,
                expected="a .safetensors file beside it",
                found=file,
            )
        if file not in headers:
            headers[file] = read_header(index.parent / file)
        if name not in headers[file]:
            raise CheckpointError(
                index.parent / file, f"the tensor that {index.name} promises is missing", field=name
            )
        tensors[name] = headers[file][name]
    return tensors
