"""The page under /docs: what the OpenAPI document says, and a form to try an image.

It is one HTML document that needs nothing from elsewhere, for machines that reach nothing else, and
so that no other site can change what it does: its own style and script are the only ones that its
Content-Security-Policy admits, by their digests.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem }
section { border-top: 1px solid #8888; padding: .5rem 0 }
code, pre, h2 { font-family: ui-monospace, monospace }
h2 { font-size: 1rem } h2 b { color: #06c }
pre { overflow: auto; max-height: 24rem; background: #8881; padding: .5rem }
td { padding: 0 1rem 0 0; vertical-align: top } img { max-width: 100% }
"""
_SCRIPT: Final = """
const form = document.querySelector('form'), answered = document.querySelector('#answer');
form.addEventListener('submit', async event => {
  event.preventDefault();
  answered.textContent = 'waiting';
  const query = new URLSearchParams();
  for (const input of form.querySelectorAll('[data-query]'))
    if (input.value) query.set(input.name, input.value);
  try {
    const answer = await fetch(form.dataset.path + (query.toString() && '?' + query),
                               {method: 'POST', body: form.image.files[0]});
    answered.textContent = answer.status + '\\n' + JSON.stringify(await answer.json(), null, 2);
  } catch (error) { answered.textContent = String(error); }
});
"""
_DETECT: Final = "/v1/detect"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_POLICY: Final = (
    f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_SCRIPT)}; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def serve_docs(app: FastAPI) -> None:
    """Answer GET /openapi.json and GET /docs."""

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()), headers={"Content-Security-Policy": _POLICY})


def page(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    routes = "".join(_routes(document))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        '<p>Everything in one document for programs: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"{routes}<script>{_SCRIPT}</script></html>"
    )


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            yield f"<section><h2><b>{method.upper()}</b> {escape(path)}</h2>"
            yield f"<p>{escape(route.get('description', ''))}</p>"
            yield _table("Parameters", [_parameter(each) for each in route.get("parameters", [])])
            answers = route["responses"].items()
            yield _table("Answers", [(str(code), each["description"]) for code, each in answers])
            if (method, path) == ("post", _DETECT):
                yield _form(path, route)
            yield "</section>"


def _parameter(parameter: Mapping[str, Any]) -> tuple[str, str]:
    schema = {k: v for k, v in parameter["schema"].items() if k not in {"title", "description"}}
    need = ", required" if parameter.get("required") else ""
    says = parameter.get("description", "")
    return f"{parameter['name']} ({parameter['in']}{need})", f"{says} {json.dumps(schema)}".strip()


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(text)}</tr>" for name, text in rows
    )
    return f"{title}<table>{cells}</table>"


def _form(path: str, route: Mapping[str, Any]) -> str:
    inputs = "".join(
        f"<label>{escape(each['name'])} <input data-query name={each['name']!r} size=8></label> "
        for each in route.get("parameters", [])
        if each["in"] == "query"
    )
    return (
        f'<form data-path="{escape(path)}"><input type="file" name="image" accept="image/*" '
        f'required> {inputs}<button>Detect</button></form><pre id="answer"></pre>'
    )
