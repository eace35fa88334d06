"""The documentation says what the code does: names in the code must stand in the docs."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook
from typer.main import get_command

from config.settings import Settings, secret_variables, variable
from tests.rooms import LAYERS
from tests.shown import shown
from worker.cli.main import app
from worker.core import finding, manifest, outputs, reply
from worker.core.layout import Layout
from worker.core.looks import Look, read_ids
from worker.core.models import Priority, Reason, State, StoredFile
from worker.core.schedule import Gaps, webhook_gap
from worker.core.submission import Options, Policy, read_body, read_submission
from worker.registry import scripts
from worker.registry.records import DueSet
from worker.sandbox.demo import JOBS

ROOT = Path(__file__).parents[2]
DOCS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*/README.md")]
)
README = (ROOT / "README.md").read_text()
README_ZH = (ROOT / "README.zh.md").read_text()
CONTRACT = (ROOT / "docs" / "contract.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def place(path: Path) -> str:
    return str(path.relative_to(ROOT))


def section(text: str, title: str) -> str:
    """The part of a document below one of its headings, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)
    assert found, title
    return found[1]


def rows(text: str) -> dict[str, str]:
    """The rows of a section's tables by each name in backticks of their first cell."""
    cells = [line.strip("| ").split(" | ", 1) for line in text.splitlines() if line[:2] == "| "]
    return {
        name: rest[0] if rest else ""
        for first, *rest in cells
        for name in re.findall(r"`([^`]*)`", first)
    }


def fences(text: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(text) if kind == language]


# -- names of the code --------------------------------------------------------------------------


def test_every_setting_is_described_in_what_the_readme_links_to() -> None:
    linked = {ROOT / target.partition("#")[0] for target in LINK.findall(README)}
    texts = [p.read_text() for p in linked if p.suffix == ".md" and p.is_file()]
    # in the first cell of a table, with more than a default beside it
    described = {name: text for t in texts for name, text in rows(t).items() if " | " in text}
    assert {variable(field) for field in Settings.model_fields} <= described.keys()


@pytest.mark.parametrize("path", DOCS, ids=place)
def test_settings_that_docs_name_exist(path: Path) -> None:
    known = {variable(field) for field in Settings.model_fields}
    known |= {f"{name}_FILE" for name in secret_variables()}
    named = set(re.findall(r"\bHARVESTER_[A-Z][A-Z_]*[A-Z]\b", path.read_text()))
    assert named - known == set()


def test_every_state_and_reason_is_described_and_no_other() -> None:
    assert rows(section(CONTRACT, "States")).keys() == {state.value for state in State}
    reasons = {reason.value for reason in Reason} - {""}
    assert rows(section(CONTRACT, "Reasons")).keys() == reasons


def test_every_option_is_described_and_no_other() -> None:
    described = rows(section(CONTRACT, "Options"))
    fields = set(Options.__dataclass_fields__)
    assert described.keys() == fields
    # the names that the code reads, seen from outside: each is known as an option
    given = dict.fromkeys(described, object())
    _, refusals = read_submission("id", given, Policy(webhooks=True))
    assert {refusal.what for refusal in refusals} == {f"option {name}" for name in described}
    assert "unknown option" not in {refusal.reason for refusal in refusals}
    assert all(f"`{priority}`" in described["priority"] for priority in Priority)


def test_every_answer_to_a_look_is_described_and_no_other() -> None:
    assert rows(section(CONTRACT, "Look now")).keys() == set(Look)


def test_every_redis_script_is_described_and_no_other() -> None:
    assert rows(section(ARCHITECTURE, "The scripts")).keys() == set(scripts.NAMES)


def test_every_celery_task_is_described() -> None:
    named = {
        str(ast.literal_eval(keyword.value))
        for node in ast.walk(ast.parse((ROOT / "worker" / "tasks.py").read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "name"
    }
    assert "harvester.submit" in named
    for name in named:
        assert f"`{name}`" in ARCHITECTURE, name
    assert "`harvester.submit`" in CONTRACT
    assert "`harvester.look`" in CONTRACT


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call of a module's ``log``, and the file it stands in."""
    for package in ("worker", "config"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                owner = node.func.value
                is_log = isinstance(owner, ast.Name) and owner.id == "log"
                made_here = isinstance(owner, ast.Call) and "get_logger" in ast.dump(owner.func)
                if node.func.attr in LEVELS and (is_log or made_here):
                    yield str(path.relative_to(ROOT)), node


@functools.cache
def logged_events() -> dict[str, set[str]]:
    """The events that the code logs, and their levels; an event's ``{…}`` is a kind of work."""
    found: dict[str, set[str]] = {}
    for path, call in log_calls():
        assert isinstance(call.func, ast.Attribute)
        match call.args[0]:
            case ast.Constant(value=str(event)):
                names = [event]
            case ast.JoinedStr(values=[ast.FormattedValue(), ast.Constant(value=str(end))]):
                names = [f"{kind}{end}" for kind in DueSet]
            case other:
                raise AssertionError(f"{path}: an event that is not a name: {ast.unparse(other)}")
        level = {"exception": "error"}.get(call.func.attr, call.func.attr)
        for name in names:
            found.setdefault(name, set()).add(level)
    return found | {"log.failed": {"error"}}  # written where logging itself fails


def test_every_log_event_is_described_with_its_level_and_no_other() -> None:
    events = logged_events()
    assert len(events) > 20
    described = rows(section(CONTRACT, "Logs"))
    described = {name: text for name, text in described.items() if "." in name}
    assert described.keys() == events.keys()
    for name, levels in events.items():
        assert {described[name].partition(" | ")[0]} == levels, name


def test_operators_are_told_what_to_do_about_every_warning() -> None:
    quiet = {
        "circuit.closed",  # the good end of what is told under circuit.open
    }
    text = section(OPERATIONS, "What a log line means, and what to do")
    told = rows(text)
    for name, levels in logged_events().items():
        if levels & {"warning", "error", "critical"} and name not in quiet:
            assert name in told, name
    for name in told:
        if re.fullmatch(r"[a-z]+\.[a-z_]+", name):
            assert name in logged_events(), name


def test_the_runbook_names_every_alert_and_no_other() -> None:
    rules = (ROOT / "deploy/kubernetes/monitoring/rules.yaml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert len(alerts) > 5
    assert rows(section(RUNBOOK, "Alerts")).keys() == alerts


def test_the_runbook_names_what_exists() -> None:
    quoted = set(re.findall(r"`([^`\n]+)`", RUNBOOK))
    events = {name for name in quoted if re.fullmatch(r"[a-z]+\.[a-z_]+", name)}
    assert len(events) > 15
    assert events - logged_events().keys() == set()
    metrics = {name for name in quoted if re.fullmatch(r"harvester_[a-z_]+", name)}
    known = {name.partition("{")[0] for name in re.findall(r"harvester_[a-z_]+", CONTRACT)}
    assert metrics
    assert metrics - known == set()


def test_commands_that_the_runbook_names_exist() -> None:
    commands: Any = get_command(app)
    named = re.findall(r"(?:`|\$ )harvester ([a-z]+)([^`\n#]*)", RUNBOOK)
    assert len(named) > 10
    for name, rest in named:
        options = {option for param in commands.commands[name].params for option in param.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, (name, rest)


# -- the record ---------------------------------------------------------------------------------


def lua(name: str) -> str:
    return (ROOT / "worker" / "registry" / "lua" / f"{name}.lua").read_text()


def arguments(text: str) -> list[str]:
    """The arguments that a text in Lua begins with, up to the bracket that closes them."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            break
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [argument.strip() for argument in found]


def written_fields() -> set[str]:
    """The fields that the scripts write into a record by name."""
    fields: set[str] = set()
    for name in [*scripts.NAMES, "prelude"]:
        for rest in re.split(r"'H(?:SET|INCRBY)', task_key\(id\),", lua(name))[1:]:
            named = arguments(rest)[::2]  # field, value, field, value …
            fields |= {argument.strip("'") for argument in named if argument[0] == "'"}
    return fields


def test_every_field_of_the_record_is_described_and_no_other() -> None:
    fields = written_fields() | set(manifest._ORDER)
    assert {"schema", "state", "told", "restored", "finished_at", "files"} <= fields
    record, _, _ = section(CONTRACT, "The record").partition("An entry of `files`")
    assert rows(record).keys() == fields


def test_every_field_of_upstream_files_and_told_is_described() -> None:
    text = section(CONTRACT, "The record")
    answer = reply.read_reply(http_status=200, headers={}, body=b'{"status": 10}', task_id="id")
    for name in json.loads(answer.upstream):
        assert f"`{name}`" in rows(text)["upstream"], name

    data = {"images": [{"url": "https://host/a", "filename": "a"}, {"url": "https://host/b"}]}
    plan = outputs.plan_files(finding.find_files(data))
    stored = StoredFile(
        key="k", bytes=1, sha256="0", content_type="c", width=1, height=1, duration=1.5
    )
    outcomes = {
        plan[0].name: outputs.FileOutcome(stored=stored, stored_at=1),
        plan[1].name: outputs.FileOutcome(error="gone", reason=Reason.FILES_UNAVAILABLE),
    }
    files = outputs.files_field(plan, outcomes, Layout(bucket="b", public_base="https://base"))
    _, _, table = text.partition("An entry of `files`")
    assert rows(table).keys() == {name for file in files for name in file}

    tree = ast.parse((ROOT / "worker" / "work" / "tell.py").read_text())
    entries = [
        {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
    ]
    (entry,) = [names for names in entries if {"channel", "attempts"} <= names]
    for name in entry:
        assert f"`{name}`" in rows(text)["told"], name


def test_every_field_of_an_event_is_described() -> None:
    _, _, event = lua("finish").partition("local event = {")
    fields = [argument.strip("'") for argument in arguments(event)[::2]]
    assert {"task_id", "state", "at"} <= set(fields)
    text = section(CONTRACT, "Event stream")
    for name in [*fields, "restored"]:
        assert f"`{name}`" in text, name


def test_every_redis_key_is_described() -> None:
    keys: set[str] = set()
    for name in [*scripts.NAMES, "prelude"]:
        keys |= set(re.findall(r"ns \.\. ':([a-z]+)", lua(name)))
    for path in (ROOT / "worker" / "registry").glob("*.py"):
        keys |= set(re.findall(r'\bkey\("([a-z]+)"', path.read_text()))
    learning = (ROOT / "worker" / "work" / "learning.py").read_text()
    keys |= set(re.findall(r'registry\.key\("([a-z]+)"', learning))
    assert {"task", "events", "intake", "workers"} <= keys
    described = section(ARCHITECTURE, "Redis keys")
    for key in keys:
        assert re.search(rf"^\| `harvester:{key}[:`]", described, re.M), key
    for key in re.findall(r"^\| `harvester:([a-z]+)", described, re.M):
        assert key in keys, key


def test_the_due_sets_and_circuits_are_described() -> None:
    assert rows(section(ARCHITECTURE, "Due sets, leases, tokens")).keys() == {
        f"due:{kind}" for kind in DueSet
    }
    circuits = section(OPERATIONS, "Circuits")
    for kind in reply._BLOCKED:
        assert f"| `upstream` | `{kind}` |" in circuits, kind
    assert "| `store` | `store` |" in circuits


# -- examples -----------------------------------------------------------------------------------


def test_the_example_manifest_is_one() -> None:
    (example,) = re.findall(r"<!-- manifest -->\n```json\n(.*?)```", CONTRACT, re.S)
    record = manifest.record_from_manifest(example.encode(), "01jgjgyaqh85f7rs23v0kbmtdb")
    assert record["state"] == State.STORED
    assert json.loads(manifest.manifest_from_record(record)) == json.loads(example)
    # it shows all there is to show
    assert set(json.loads(example)) == set(manifest._ORDER)


def test_the_example_signature_check_accepts_what_is_sent() -> None:
    (example,) = re.findall(r"<!-- verify -->\n```python\n(.*?)```", CONTRACT, re.S)
    names: dict[str, Any] = {}
    exec(compile(example, "contract.md", "exec"), names)
    secret, body, now = "whsec_" + "A" * 32, b'{"type":"task.stored"}', int(time.time())
    signature = Webhook(secret).sign("msg_1", datetime.fromtimestamp(now, UTC), body.decode())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,bm90 {signature}",
    }
    assert names["is_genuine"](secret, headers, body)
    assert not names["is_genuine"](secret, headers, body + b" ")
    assert not names["is_genuine"](secret, headers | {"webhook-id": "msg_2"}, body)


def test_the_liveness_probe_tells_a_fresh_heartbeat_from_an_old_one(tmp_path: Path) -> None:
    (probe,) = re.findall(
        r"<!-- liveness -->\n```sh\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.S
    )
    heartbeat = tmp_path / "heartbeat"

    def alive() -> bool:
        environ = {**os.environ, "HARVESTER_HEARTBEAT": str(heartbeat)}
        done = subprocess.run(["sh", "-c", probe], env=environ, check=False, capture_output=True)
        return done.returncode == 0

    assert not alive()
    heartbeat.touch()
    assert alive()
    os.utime(heartbeat, (time.time() - 120,) * 2)
    assert not alive()


def test_the_number_of_webhook_attempts_is_true() -> None:
    (said,) = re.findall(r"<!-- attempts -->(\d+)<!-- /attempts -->", CONTRACT)
    gaps = 0
    while webhook_gap(gaps + 1, Gaps(), chance=0.5) is not None:
        gaps += 1
    assert int(said) == gaps + 1  # one attempt before the first gap


@pytest.mark.parametrize(
    "text", [README, README_ZH, CONTRACT], ids=["README.md", "README.zh.md", "contract.md"]
)
def test_example_bodies_for_the_intake_stream_are_accepted(text: str) -> None:
    bodies = re.findall(r"XADD harvester:intake '\*' body '(.*)'$", text, re.M)
    assert bodies
    for body in bodies:
        task_ids, options = read_body(body)
        accepted, refusals = read_submission(task_ids, options, Policy())
        assert accepted
        assert refusals == []


@pytest.mark.parametrize("path", DOCS, ids=place)
def test_examples_are_well_formed(path: Path) -> None:
    text = path.read_text()
    for example in fences(text, "python"):
        # await stands at the top level in some
        compile(example, path.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for example in fences(text, "json"):
        json.loads(example)


def test_example_submissions_over_celery_are_accepted() -> None:
    checked = 0
    for text in (README, README_ZH, CONTRACT):
        for example in fences(text, "python"):
            for node in ast.walk(ast.parse(example)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "app.send_task":
                    given = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
                    (task_ids,) = given["args"]
                    options = given.get("kwargs", {})
                    name = ast.literal_eval(node.args[0])
                    accepted: list[Any]
                    if name == "harvester.look":
                        accepted, refusals = read_ids(task_ids)
                    else:
                        assert name == "harvester.submit"
                        accepted, refusals = read_submission(task_ids, options, Policy())
                    assert given["queue"] == Settings.model_fields["namespace"].default
                    assert accepted
                    assert refusals == []
                    checked += 1
    assert checked >= 3


def test_the_readme_is_short_and_shows_tasks_that_the_demo_has() -> None:
    assert len(README.splitlines()) <= 200
    lines = shown("demo")
    mark = lines.index("…")
    there = [line.split("  ")[0] for line in [*lines[mark - 3 : mark], *lines[mark + 1 : mark + 4]]]
    assert there == [*list(JOBS)[:3], *list(JOBS)[-3:]]
    assert f"All {len(JOBS)} tasks ended as intended" in lines[-1]


def test_the_chinese_readme_shows_what_the_english_one_does() -> None:
    def code(text: str) -> list[str]:
        # without comments, which are translated
        found = [
            body for language in ("console", "python", "sh") for body in fences(text, language)
        ]
        return [re.sub(r" +#.*", "", body) for body in found]

    assert code(README_ZH) == code(README)
    assert set(re.findall(r"HARVESTER_[A-Z_]+", README_ZH)) == set(
        re.findall(r"HARVESTER_[A-Z_]+", README)
    )


@pytest.mark.parametrize("path", DOCS, ids=place)
def test_make_targets_that_docs_name_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = path.read_text() + (ROOT / ".pre-commit-config.yaml").read_text()
    for named in re.findall(r"(?:`|\$ |entry: )make ([a-z -]+)", text):
        assert set(named.split()) <= targets, named


# -- links and places ---------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    prose = FENCE.sub("", text)
    titles = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCS, ids=place)
def test_links_within_the_repository_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        goal = (path.parent / name).resolve() if name else path
        assert goal.is_relative_to(ROOT), f"{target} leaves the repository"
        assert goal.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(goal.read_text()), f"{target} has no such heading"


def test_the_readme_leads_to_every_document() -> None:
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(README)}
    assert set(DOCS) - {ROOT / "README.md"} <= linked


def test_contributors_are_sent_to_places_that_exist() -> None:
    text = " ".join(section((ROOT / "CONTRIBUTING.md").read_text(), "How to add").split())
    named = re.findall(r"`(\w+)` in `([\w/.]+\.py)`", text)
    assert len(named) > 15
    for name, path in named:
        defined = rf"^ *(?:(?:async )?def |class )?{name}\b *(?:[:=(]|\Z)"
        assert re.search(defined, (ROOT / path).read_text(), re.M), f"{name} in {path}"


def defined(path: Path) -> set[str]:
    """The functions and methods of a module, as `name` or `Class.name`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        outer = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for each in [node, *inner]:
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(f"{outer}{each.name}")
    return names


def test_one_ids_way_leads_through_functions_that_exist() -> None:
    way = section(ARCHITECTURE, "The path of an id")
    table = re.findall(r"^\|[\w ]*\| `(worker/[\w/]+\.py)` \| `([\w.]+)` \|(.*)$", way, re.M)
    assert len(table) > 20
    assert len(table) == way.count("| `worker/")
    everywhere = {name for path in (ROOT / "worker").rglob("*.py") for name in defined(path)}
    for path, name, text in table:
        assert name in defined(ROOT / path), f"{name} in {path}"
        for other in re.findall(r"`([\w.]+)`", text):
            if other.endswith(".lua"):
                assert other.removesuffix(".lua") in scripts.NAMES, other
            else:
                assert other in everywhere, other


def test_every_room_is_in_the_list() -> None:
    listed = set(re.findall(r"^(?:  )?([a-z]+)(?:/|\.py) ", fences(ARCHITECTURE, "")[0], re.M))
    assert listed == {name for layer in LAYERS for name in layer} | {"errors"}


@pytest.mark.parametrize("path", DOCS, ids=place)
def test_lists_and_tables_begin_after_a_blank_line(path: Path) -> None:
    """Without one the site shows them as text, although GitHub does not."""
    before = ""
    for line in FENCE.sub("a fence", path.read_text()).splitlines():
        item = re.match(r"- |\d+\. ", line)
        if item:
            assert re.match(r"- |\d+\. | {2,3}\S|#|$", before), line
        elif line.startswith("| "):
            assert re.match(r"\||#|$", before), line
        before = line


FOREIGN = re.compile(
    r"\bhand(?:s|ed|ing)? in\b|\bstand(?:s|ing)? (?:in|for|at)\b|\bthe \w+ (?:is|are) none\b"
    r"|(?:^|[.:;,(|] ?)who (?:has|have|was|does|wants|is)\b|\bwhoever\b",
    re.I | re.M,
)
"""Phrases that read as translated; single words are in .ci/words.txt."""


@pytest.mark.parametrize("path", DOCS, ids=place)
def test_docs_are_in_plain_english(path: Path) -> None:
    prose = re.sub(r'"[^"\n]*"|`[^`\n]*`', "", FENCE.sub("", path.read_text()))
    found = FOREIGN.search(prose)
    assert found is None, prose[found.start() - 60 : found.end() + 60]


@pytest.mark.parametrize("path", DOCS, ids=place)
def test_docs_name_no_place_of_one_machine(path: Path) -> None:
    text = re.sub(r"\w+://\S+", "", path.read_text())
    found = re.search(r"(?<![\w.<>}])/(?:work|root|home|Users|tmp|mnt|opt|workspace)/", text)
    assert found is None, found
    for target in re.findall(r"(?<![\w.])\.\./[\w./-]+", text):
        assert (path.parent / target).resolve().is_relative_to(ROOT), target


def test_tests_that_docs_name_exist_and_every_foothold_names_one() -> None:
    text = (ROOT / "docs/security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 20
    for path, test in named:
        source = (ROOT / path).read_text()
        assert "def test_" in source
        assert not test or re.search(rf"^(?:async )?def {test}\(", source, re.MULTILINE), test
    _, _, footholds = text.partition("| foothold |")
    rows = [row.split("|") for row in footholds.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) > 15
    for row in rows:
        assert len(row) == 6, row
        # what nothing stops needs no proof
        assert ("::test_" in row[4]) != row[3].strip().startswith("nothing"), row
