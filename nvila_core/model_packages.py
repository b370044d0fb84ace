"""The packages that only a machine with the model needs: the extra `model` of the distribution."""

from importlib.util import find_spec

from nvila_core.errors import NVILAError

MODEL_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "jinja2",
    "safetensors",
    "huggingface_hub",
)


class ModelNotInstalled(NVILAError, ImportError):  # noqa: N818
    """Packages that run the model are missing."""


def require_model_packages() -> None:
    """Raise ModelNotInstalled unless the packages that run the model are installed.

    Imports none of them.
    """
    missing = [name for name in MODEL_PACKAGES if find_spec(name) is None]
    if missing:
        raise ModelNotInstalled(
            f"The model's packages are not installed ({', '.join(missing)}): run "
            '`pip install "nvila-streamer[model]"`.'
        )
