"""The OpenAPI document, and what each token is good for; without a server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from config.settings import load_settings
from worker.cli.web import make
from worker.errors import SettingsError
from worker.web import reference
from worker.web.access import Tokens
from worker.web.app import make_app

FULL, PREVIOUS, READ = "full-token-of-tests", "previous-token-of-tests", "read-token-of-tests"
TOKENS = Tokens(full=(FULL, PREVIOUS), read=(READ,))
NOT_FOR_READERS = {"get_urls"}  # what it GETs opens files to anybody
OPEN = {"get_health", "get_readiness"}


def application() -> Any:
    def open_desk() -> Any:
        raise AssertionError("no request gets that far")

    return make_app(open_desk, tokens=TOKENS, version="1")


def client() -> httpx.AsyncClient:
    transport = httpx.ASGITransport(application(), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://fleet.example")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    made: dict[str, Any] = application()._app.openapi()
    return made


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name), name


def test_what_may_be_missing_is_neither_null_nor_has_a_default(document: dict[str, Any]) -> None:
    optional = 0
    for name, model in document["components"]["schemas"].items():
        for field, schema in model.get("properties", {}).items():
            if field not in model.get("required", []):
                optional += 1
                assert "default" not in schema, f"{name}.{field}"
                assert {"type": "null"} not in schema.get("anyOf", []), f"{name}.{field}"
    assert optional > 20
    for _, path, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert {"type": "null"} not in parameter["schema"].get("anyOf", []), path


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    names = re.findall(r"'#/components/schemas/(\w+)'", str(document))
    assert names
    assert set(names) <= document["components"]["schemas"].keys()


def test_no_model_has_the_name_of_its_own_field(document: dict[str, Any]) -> None:
    """Generated classes would take one for the other."""
    for name, model in document["components"]["schemas"].items():
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
        assert snake not in model.get("properties", {}), name


def test_files_are_typed(document: dict[str, Any]) -> None:
    record = document["components"]["schemas"]["Record"]
    assert record["properties"]["files"]["items"] == {"$ref": "#/components/schemas/File"}
    assert document["components"]["schemas"]["File"]["required"] == ["name", "refs"]


async def test_each_token_is_good_for_what_it_is_for(document: dict[str, Any]) -> None:
    tried = set()
    async with client() as web:
        for method, path, operation in operations(document):
            name = operation["operationId"]
            if name in OPEN:
                continue
            tried.add(name)
            status = {}
            for token in (FULL, PREVIOUS, READ, "", "another-token-of-tests"):
                headers = {"Authorization": f"Bearer {token}"}
                answer = await web.request(method, path.format(task_id="t1"), headers=headers)
                status[token] = answer.status_code
                if status[token] in (401, 403):
                    assert answer.headers["content-type"] == "application/problem+json"
            assert status[FULL] not in (401, 403), path
            assert status[PREVIOUS] not in (401, 403), path
            assert status[""] == status["another-token-of-tests"] == 401, path
            reads = method == "GET" and name not in NOT_FOR_READERS
            assert (status[READ] != 403) is reads, path
            assert status[READ] != 401, path
    assert tried > NOT_FOR_READERS
    assert len(tried) > 12


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/tasks/t1/urls/"),
        ("GET", "/api/tasks/t1%2Furls"),
        ("GET", "/api//tasks/t1/urls"),
        ("GET", "/api/no/such"),
        ("HEAD", "/api/tasks"),
        ("OPTIONS", "/api/tasks"),
        ("DELETE", "/api/tasks/t1"),
        ("PATCH", "/api/stats"),
    ],
)
async def test_readers_get_nothing_that_is_not_named(method: str, path: str) -> None:
    async with client() as web:
        headers = {"Authorization": f"Bearer {READ}"}
        assert (await web.request(method, path, headers=headers)).status_code == 403


def test_tokens_show_in_no_repr() -> None:
    assert FULL not in repr(TOKENS)
    assert READ not in repr(TOKENS)


@pytest.mark.parametrize("name", ["HARVESTER_WEB_TOKEN", "HARVESTER_WEB_TOKEN_PREVIOUS"])
def test_the_token_of_readers_is_not_another_token(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable, value in {
        "SPEEDPIX_APP_KEY": "key", "SPEEDPIX_APP_SECRET": "secret", "HARVESTER_BUCKET": "media",
        "REDIS_URL": "redis://127.0.0.1:9/0", name: FULL, "HARVESTER_WEB_READ_TOKEN": FULL,
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match="HARVESTER_WEB_READ_TOKEN"):
        make(load_settings(), "127.0.0.1")
    monkeypatch.setenv("HARVESTER_WEB_READ_TOKEN", READ)
    assert {FULL, READ} <= load_settings().secrets


async def test_people_can_read_the_document(document: dict[str, Any]) -> None:
    async with client() as web:
        answer = await web.get("/docs")
        style = await web.get("/static/reference.css")
    assert (answer.status_code, style.status_code) == (200, 200)
    assert "script" not in answer.headers["content-security-policy"]
    text = answer.text
    assert "<script" not in text
    anchors = re.findall(r'id="([^"]+)"', text)
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(anchors)
    for method, path, operation in operations(document):
        assert f"<code>{method} {path}</code>" in text
        assert operation["operationId"] in anchors
    assert document["components"]["schemas"].keys() < set(anchors)


def test_the_page_for_people_shows_everything_as_text() -> None:
    sign = '<b x="1">&'
    shown = reference.page(
        {
            "info": {"title": sign, "version": sign, "description": sign},
            "paths": {
                f"/{sign}": {
                    "get": {
                        "operationId": sign, "description": sign,
                        "parameters": [{"name": sign, "in": "query", "schema": {"enum": [sign]}}],
                        "responses": {"200": {"description": sign, "content": {sign: {}}}},
                    }
                }
            },
            "components": {"schemas": {sign: {"properties": {sign: {"type": sign}}}}},
        }
    )  # fmt: skip
    assert "<b" not in shown.replace("<body>", "")
