"""The reference of the API: `/openapi.json`, and `/docs`, which needs nothing from elsewhere."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from streamer.api.examples import EXAMPLES

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
"""Names of the links to the calls of what was created; those to others are named by operation."""


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
            _show(schema["paths"])
            _describe_errors(schema["paths"])
            _exclude_nul(schema)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _link(paths: dict[str, Any]) -> None:
    """Link what each POST creates to the calls that are about it."""
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
        below = [
            other for other in paths if other.startswith(child) and "{" not in other[len(child) :]
        ]
        created["links"] = {
            _LINKED[method] if other == child else call["operationId"]: {
                "operationId": call["operationId"],
                "parameters": parameters,
            }
            for other in below
            for method, call in paths[other].items()
        }


_SHAPED = {"pattern", "format", "enum", "const"}
"""What a JSON schema of a text may say of its characters."""


def _exclude_nul(part: Any) -> None:
    """Say of each text that it has no NUL character, which neither database can store."""
    if isinstance(part, list):
        for each in part:
            _exclude_nul(each)
    elif isinstance(part, dict):
        if part.get("type") == "string" and not _SHAPED & part.keys():
            part["pattern"] = "^[^\\u0000]*$"
        for name, each in part.items():
            if name not in ("default", "enum", "const", "example", "examples"):
                _exclude_nul(each)


def _show(paths: dict[str, Any]) -> None:
    """Add the examples of bodies."""
    for calls in paths.values():
        for call in calls.values():
            body = call.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                shown = EXAMPLES.get(call["operationId"], {})
                body["examples"] = {name: {"value": value} for name, value in shown.items()}


def _describe_errors(paths: dict[str, Any]) -> None:
    """Say that errors are JSON, also those of calls that return something else."""
    for calls in paths.values():
        for call in calls.values():
            for status, answer in _answers(call):
                if status in ("4XX", "5XX"):
                    (body,) = answer["content"].values()
                    answer["content"] = {"application/json": body}


def _answers(call: dict[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    return list(call["responses"].items()) if call is not None else []
