"""The page /docs, with Swagger UI served from here: it works where no other host can be reached."""

from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

FILES = "/docs/files"


def add_pages(app: FastAPI) -> None:
    """Add /docs and the files that it needs."""
    folder = Path(str(resources.files("fastapi_offline"))) / "static"
    app.mount(FILES, StaticFiles(directory=folder), name="docs-files")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url=str(app.openapi_url),
            title=f"{app.title}: routes",
            swagger_js_url=f"{FILES}/swagger-ui-bundle.js",
            swagger_css_url=f"{FILES}/swagger-ui.css",
            swagger_favicon_url=f"{FILES}/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},  # otherwise it sends the address of the service to another host
        )
