"""Finding a checkpoint: a folder here, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

from nvila_core.errors import CheckpointError, first_line

FOLDERS = ("llm", "vision_tower", "mm_projector")
WANTED = [
    f"{folder}{pattern}"
    for folder in ("", *(f"{name}/" for name in FOLDERS))
    for pattern in ("*.json", "*.safetensors", "merges.txt", "*.jinja")
]
UNWANTED = ["trainer_state.json", "*/*/*"]


def find_checkpoint(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The checkpoint's folder, downloaded first when `path_or_id` names a repository of the hub.

    Only JSON, safetensors and tokenizer text are fetched, resumably and with a progress bar;
    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are honoured.

    Raises:
        CheckpointError: it is neither a folder nor a repository that can be reached.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_id)
    if path.exists():
        raise CheckpointError(
            name, "a checkpoint is a folder, not a file, so give the folder it lies in"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise CheckpointError(name, "there is no such folder, so check the path of the checkpoint")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            name,
            "there is no such folder and the Hugging Face hub did not deliver it, so check the "
            f"name, the network and HF_HUB_OFFLINE: {first_line(error)}",
        ) from error
