from streamer.http_client import AsyncClient as AsyncClient
from streamer.http_client import Client as Client

__version__: str
