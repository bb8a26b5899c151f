"""The web page and /docs: HTML files, styles and modules. They are clients of the public API and nothing more."""

from importlib import resources
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).resolve().parent.parent / "static"
# The wheel that carries Swagger UI, which FastAPI's own /docs would fetch from elsewhere.
_SWAGGER_UI = "fastapi_offline"
# Nothing from elsewhere and nothing inline, so a script in somebody's dataset stays text.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
# Asked for again each time, and answered 304 by their ETag: a new release is never mixed with an old one.
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    return await _file("index.html", request)


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs(request: Request) -> Response:
    return await _file("docs.html", request)


@router.api_route("/static/swagger-ui/{name}", methods=["GET", "HEAD"])
async def swagger_ui_file(name: str, request: Request) -> Response:
    return await _file(name, request, Path(str(resources.files(_SWAGGER_UI))) / "static")


@router.api_route("/static/{path:path}", methods=["GET", "HEAD"])
async def static_file(path: str, request: Request) -> Response:
    return await _file(path, request)


async def _file(path: str, request: Request, folder: Path = _FOLDER) -> Response:
    response = await StaticFiles(directory=folder).get_response(path, request.scope)
    response.headers.update(_HEADERS)
    return response
