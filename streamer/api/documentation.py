"""The reference of the API: `/openapi.json`, and `/docs`, which needs nothing from elsewhere."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

DOCS_PATH = "/docs"

_STATIC = Path(__file__).parent / "static"

_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'"

_SECURITY: dict[str, Any] = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `streamer keys add`, or of the setting `api_keys`.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "streamer_session",
        "description": "The cookie of `POST /v1/session`, for browsers.",
    },
}
_OPEN = ("/healthz", "/readyz", "/v1/session")
"""Paths with a call that needs neither."""

_LINKED = {"get": "Get", "patch": "Change", "delete": "Delete"}


def operation_id(route: APIRoute) -> str:
    """Return the name of a call for generated clients: that of its function."""
    return route.name


def install_documentation(app: FastAPI) -> None:
    """Serve the reference, after all routes have been added."""

    @app.get(DOCS_PATH, include_in_schema=False)
    async def docs() -> FileResponse:
        headers = {"Content-Security-Policy": _POLICY}
        return FileResponse(_STATIC / "docs.html", media_type="text/html", headers=headers)

    app.mount(f"{DOCS_PATH}/static", StaticFiles(directory=_STATIC), name="docs")
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema
        schema = generate()
        if known is None:
            schema.setdefault("components", {})["securitySchemes"] = _SECURITY
            # Without keys, programs on this machine need none.
            schema["security"] = [{name: []} for name in _SECURITY] + [{}]
            for path in _OPEN:
                for call in ("get", "post"):
                    if call in schema["paths"][path] and (call, path) != ("get", "/v1/session"):
                        schema["paths"][path][call]["security"] = []
            _link(schema["paths"])
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _link(paths: dict[str, Any]) -> None:
    """Link what each POST creates to the calls that read, change and delete it."""
    for path, calls in paths.items():
        children = [other for other in paths if other.rpartition("/")[0] == path]
        child = next((other for other in children if other.endswith("}")), None)
        created = next(
            (answer for status, answer in _answers(calls.get("post")) if status[0] == "2"), None
        )
        if child is None or created is None:
            continue
        above = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        parameters = {name: f"$request.path.{name}" for name in above}
        parameters[child.rpartition("/")[2][1:-1]] = "$response.body#/id"
        created["links"] = {
            name: {"operationId": paths[child][method]["operationId"], "parameters": parameters}
            for method, name in _LINKED.items()
            if method in paths[child]
        }


def _answers(call: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    return list(call["responses"].items()) if call is not None else []
