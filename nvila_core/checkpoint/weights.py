"""Index the tensors of safetensors files, and load them without a second copy in memory.

A tensor that already has the wanted dtype is memory-mapped; others are converted one at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from nvila_core.errors import CheckpointError, as_checkpoint_error
from nvila_core.file_kind import GIT_LFS, HTML, file_kind, read_head
from nvila_core.json_fields import Fields, read_json
from nvila_core.models.quantize import Format, quantized

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """The file of a tensor and its entry in the file's header; `key` is its name there."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


class Weights:
    """Tensors by name, not read yet. `source` is the path for error messages."""

    def __init__(self, tensors: dict[str, StoredTensor], source: Path) -> None:
        self.tensors, self.source = tensors, source

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @classmethod
    def open(cls, folder: Path) -> "Weights":
        """Index model.safetensors, or the shards that model.safetensors.index.json lists.

        Raises:
            CheckpointError: a file is missing, truncated, or not safetensors.
        """
        index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
        if index.exists():
            return cls(open_shards(index), index)
        if single.exists():
            return cls(read_header(single), single)
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise CheckpointError(
                single,
                "the folder has pickled weights only, which are unsafe to load; convert them to "
                "safetensors",
            )
        raise CheckpointError(single, "the file is missing; download the checkpoint again")

    def part(self, prefix: str) -> "Weights":
        """Return the tensors whose names start with `prefix`, named without it."""
        inside = {
            n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)
        }
        return Weights(inside, self.source)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of tensor `name`.

        Raises:
            CheckpointError: the tensor is missing.
        """
        if name not in self.tensors:
            raise CheckpointError(self.source, "the tensor is missing", field=name)
        return self.tensors[name].shape

    def expect(self, name: str, shape: tuple[int, ...], because: str) -> None:
        """Check the shape of a tensor before anything is built from the config.

        Args:
            name: name of the tensor.
            shape: shape that the config asks for.
            because: the fields of the config that determine the shape.

        Raises:
            CheckpointError: the tensor is missing or has another shape.
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
        """Check that exactly `count` layers exist, named `{prefix}0.` to `{prefix}{count - 1}.`.

        Args:
            prefix: prefix of the layers' names.
            count: number of layers that the config asks for.
            field: the field of the config that has this number.

        Raises:
            CheckpointError: layers are missing, or there are more of them.
        """
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
        """Read one tensor as `dtype` to `device`, memory-mapped instead of copied if possible.

        Raises:
            CheckpointError: the tensor cannot be read.
        """
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
        kind: Format | None = None,
    ) -> None:
        """Load the parameters of a module that was built on the meta device.

        Args:
            module: the module; each of its parameters must have a tensor of the same shape.
            dtype: dtype of the parameters.
            device: device of the parameters.
            unused: prefixes of the names of tensors to ignore.
            kind: quantize the linear layers inside `layers`, one at a time; None: do not.

        Raises:
            CheckpointError: a tensor is missing, has another shape, is not of a float dtype, or is
                not a parameter of the module.
        """
        wanted = dict(module.named_parameters())
        unused = tuple(unused)
        for name in self.tensors:
            if name not in wanted and not name.startswith(unused):
                raise CheckpointError(
                    self.tensors[name].path,
                    "the model of the config has no such tensor",
                    field=self.tensors[name].key,
                )
        for name, parameter in wanted.items():
            self.expect(name, tuple(parameter.shape), "the config")
            stored = self.tensors[name]
            if stored.dtype not in FLOATS:
                raise CheckpointError(
                    stored.path,
                    "the tensor's dtype is not supported",
                    field=stored.key,
                    expected=sorted(FLOATS),
                    found=stored.dtype,
                )
        for name in wanted:
            owner, _, leaf = name.rpartition(".")
            linear = isinstance(module.get_submodule(owner), nn.Linear)
            if kind and linear and leaf == "weight" and "layers." in owner:
                mapped = self.read(name, FLOATS[self.tensors[name].dtype], device)
                module.set_submodule(owner, quantized(mapped, kind, dtype))
                continue
            tensor = nn.Parameter(self.read(name, dtype, device), requires_grad=False)
            setattr(module.get_submodule(owner), leaf, tensor)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file; safetensors checks the header against the file's length."""
    if not path.is_file():
        raise CheckpointError(path, "the file is missing; download the checkpoint again")
    tensors = {}
    refuse_other_kinds(path)
    with (
        as_checkpoint_error(path, "the file is truncated or not safetensors"),
        safe_open(path, framework="pt") as file,
    ):
        for key in file.keys():  # noqa: SIM118 (not a dict)
            view = file.get_slice(key)
            tensors[key] = StoredTensor(path, key, tuple(view.get_shape()), view.get_dtype())
    return tensors


def refuse_other_kinds(path: Path) -> None:
    """Raise CheckpointError for a file that holds something else in place of its content."""
    kind = file_kind(read_head(path))
    if kind in (GIT_LFS, HTML):
        raise CheckpointError(path, f"the file is {kind.name}; {kind.remedy}")


def open_shards(index: Path) -> dict[str, StoredTensor]:
    """Return the tensors that an index file lists, each looked up in its shard."""
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
                expected="the name of a .safetensors file in the same folder",
                found=file,
            )
        if file not in headers:
            headers[file] = read_header(index.parent / file)
        if name not in headers[file]:
            raise CheckpointError(
                index.parent / file, f"the tensor is missing but listed in {index.name}", field=name
            )
        tensors[name] = headers[file][name]
    return tensors
