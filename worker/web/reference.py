"""The OpenAPI document as a page for people: plain HTML, without scripts or other sites."""

from __future__ import annotations

import re
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"
"""The content security policy of the page."""

_REF = "#/components/schemas/"


def page(document: dict[str, Any]) -> str:
    """The page: every operation with its parameters, body and answers, then every schema."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = sorted(document["components"]["schemas"].items())
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title>",
            '<link rel="stylesheet" href="/static/reference.css"></head><body>',
            f"<header><h1>{title}</h1><p>{_text(document['info'].get('description', ''))}</p>",
            '<p>For programs: <a href="/openapi.json">/openapi.json</a></p></header><nav><ul>',
            *(
                f'<li><a href="#{escape(operation["operationId"])}">{escape(name)}</a></li>'
                for name, operation in operations
            ),
            "</ul></nav><main>",
            *(_operation(name, operation) for name, operation in operations),
            *(_schema(name, schema) for name, schema in schemas),
            "</main></body></html>",
        ]
    )


def _operation(name: str, operation: dict[str, Any]) -> str:
    parameters = [
        (
            parameter["name"],
            f"{parameter['in']}, {_type(parameter['schema'])}",
            parameter.get("description") or parameter["schema"].get("description", ""),
        )
        for parameter in operation.get("parameters", [])
    ]
    body = operation.get("requestBody")
    bodies = f"<p>Body: {_content(body)}</p>" if body else ""
    answers = "".join(
        f"<li><code>{escape(status)}</code> {escape(answer['description'])} {_content(answer)}</li>"
        for status, answer in sorted(operation["responses"].items())
    )
    return (
        f'<section id="{escape(operation["operationId"])}"><h2><code>{escape(name)}</code></h2>'
        f"<p>{_text(operation.get('description', ''))}</p>{_table(parameters)}{bodies}"
        f"<ul>{answers}</ul></section>"
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    fields = [
        (
            field,
            _type(described) + ("" if field in required else ", may be missing"),
            described.get("description", ""),
        )
        for field, described in schema.get("properties", {}).items()
    ]
    kind = _table(fields) if fields else f"<p>{_type(schema)}</p>"
    about = _text(schema.get("description", ""))
    return f'<section id="{escape(name)}"><h2>{escape(name)}</h2><p>{about}</p>{kind}</section>'


def _table(rows: list[tuple[str, str, str]]) -> str:
    """A table of names, kinds (already HTML) and descriptions."""
    cells = "".join(
        f"<tr><th scope=row><code>{escape(name)}</code></th><td>{kind}</td><td>{_text(text)}</td>"
        for name, kind, text in rows
    )
    return f"<table>{cells}</table>" if rows else ""


def _text(text: str) -> str:
    """A description as HTML: text between backticks is code."""
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text))


def _content(holder: dict[str, Any]) -> str:
    return " or ".join(
        f"{_type(content.get('schema', {}))} <small>{escape(media)}</small>"
        for media, content in holder.get("content", {}).items()
    )


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_REF))
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"<code>{escape(str(value)) or '(empty)'}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        return f"object of {_type(extra)}"
    return escape(str(schema.get("type", "anything")))
