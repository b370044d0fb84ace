"""Serve `/mcp`: the tools of `streamer.agents`, for agents that speak MCP over HTTP."""

import asyncio
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from streamer.api.errors import ErrorResponse
from streamer.errors import ErrorCode
from streamer.service import Service

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

NOT_INSTALLED = (
    "This installation has no tools for agents: install them with "
    "`pip install 'nvila-streamer[mcp]'`."
)


class AgentEndpoint:
    """ASGI application that answers MCP requests; it keeps no sessions, so any API process can.

    The `mcp` package is imported at the first request, because most installations have none.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._starting = asyncio.Lock()
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._managers: dict[bool, StreamableHTTPSessionManager] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, with the tools that its key may use."""
        operate = scope["state"]["may_operate"]
        try:
            manager = await self._manager(operate)
        except ImportError:
            refusal = ErrorResponse(404, ErrorCode.NOT_FOUND, NOT_INSTALLED)
            await refusal(scope, receive, send)
            return
        await manager.handle_request(scope, receive, send)

    async def close(self) -> None:
        """End what serves the requests."""
        self._ended.set()
        await asyncio.gather(*self._tasks)

    async def _manager(self, operate: bool) -> "StreamableHTTPSessionManager":
        async with self._starting:
            if operate not in self._managers:
                from mcp.server.transport_security import TransportSecuritySettings

                from streamer.agents.server import make_server

                server = make_server(self._service, operate=operate)
                server.streamable_http_app(
                    stateless_http=True,
                    json_response=True,
                    max_request_body_size=self._service.settings.max_body_bytes,
                    # `Authentication` checks Host and Origin.
                    transport_security=TransportSecuritySettings(
                        enable_dns_rebinding_protection=False
                    ),
                )
                manager = server.session_manager
                running = asyncio.Event()
                self._tasks.append(asyncio.create_task(self._run(manager, running)))
                await running.wait()
                self._managers[operate] = manager
            return self._managers[operate]

    async def _run(self, manager: "StreamableHTTPSessionManager", running: asyncio.Event) -> None:
        # One task enters and leaves this context, as its task group needs.
        async with manager.run():
            running.set()
            await self._ended.wait()
