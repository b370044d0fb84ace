"""Find a checkpoint: in a local folder, or in a repository of the Hugging Face hub."""

import re
from pathlib import Path

from nvila_core.errors import CheckpointError, first_line

FOLDERS = ("llm", "vision_tower", "mm_projector")
ALLOW_PATTERNS = [
    f"{folder}{pattern}"
    for folder in ("", *(f"{name}/" for name in FOLDERS))
    for pattern in ("*.json", "*.safetensors", "merges.txt", "*.jinja")
]
IGNORE_PATTERNS = ["trainer_state.json", "*/*/*"]


def find_checkpoint(path_or_id: str | Path, revision: str | None = None) -> Path:
    """Return the checkpoint's folder, after downloading it if `path_or_id` names a repository.

    Downloads only JSON, safetensors and tokenizer text, with a progress bar, and resumes an
    interrupted download. Honours HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.

    Args:
        path_or_id: folder, or repository of the hub such as "owner/name".
        revision: branch, tag or commit of the repository.

    Raises:
        CheckpointError: there is no such folder, and no such repository that can be downloaded.
    """
    folder = local_checkpoint(path_or_id)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name = str(path_or_id)
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=ALLOW_PATTERNS,
                ignore_patterns=IGNORE_PATTERNS,
            )
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            name,
            "there is no such folder, and the download from the Hugging Face hub failed; check the "
            f"name, the network and HF_HUB_OFFLINE: {first_line(error)}",
        ) from error


def find_downloaded(path_or_id: str | Path) -> Path | None:
    """Return the checkpoint's folder without downloading; None: the repository is not in the cache.

    Raises:
        CheckpointError: `path_or_id` is neither a folder nor the name of a repository.
    """
    folder = local_checkpoint(path_or_id)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(str(path_or_id), allow_patterns=ALLOW_PATTERNS, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise CheckpointError(path_or_id, first_line(error)) from error


def local_checkpoint(path_or_id: str | Path) -> Path | None:
    """Return the folder, or None if there is none and `path_or_id` can be a repository's name.

    Raises:
        CheckpointError: it is a file, or neither a folder nor a possible name of a repository.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_id)
    if path.exists():
        raise CheckpointError(name, "the path is a file; give the folder of the checkpoint")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise CheckpointError(name, "there is no such folder; check the path of the checkpoint")
    return None
