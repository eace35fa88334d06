"""Samples of replies: read as the fleet reads them, and shown to others without secrets."""

from __future__ import annotations

import json
import math
import re
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests import read_replies
from worker.core import finding, samples
from worker.core.samples import Reply

KEY, SECRET = "204056789", "s3cr3t/of+the=app"
TASK = "01jgjgyaqh85f7rs23v0kbmtdb"
HASH = "a153c27e31ed4e0f8c8721af0984ca5a"
JSON = {"Content-Type": "application/json"}
QUERY = "Expires=1795849814&OSSAccessKeyId=LTAI5tHiddenHidden&Signature=n7Rx03qaJX5%3D"
FILE = f"https://b.oss-cn-beijing.aliyuncs.com/u/{HASH}/cat.png?{QUERY}"
REPLIES = sorted(read_replies.FOLDER.glob("*.json"))


def reply(
    body: Any, status: int = 200, headers: dict[str, str] | None = None, task_id: str = TASK
) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(task_id=task_id, status=status, headers=headers or JSON, body=raw)


def done(**data: Any) -> Reply:
    return reply({"status": 10, "data": {"status": "succeeded", "taskId": TASK, **data}})


def safe(given: Reply) -> str:
    """The sample of a reply, as text."""
    return samples.to_text(samples.redacted(given, [KEY, SECRET]))


# -- the folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REPLIES, ids=lambda path: path.stem)
def test_each_reply_of_the_folder_is_read_as_it_says(path: Path) -> None:
    good, line = read_replies.line(path)
    assert good, line


def test_the_folder_says_where_its_replies_are_from() -> None:
    assert len(REPLIES) >= 8
    for path in REPLIES:
        what = json.loads(path.read_text())["what"]
        if path.stem.startswith(("vendor-page-", "simulator-")):
            assert "not a real reply" in what
        else:
            assert what == samples._WHAT


def test_a_folder_with_a_reply_that_is_read_otherwise_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_replies.main(tmp_path) == 1  # nothing there proves nothing
    shutil.copy(REPLIES[0], tmp_path / "good.json")
    assert read_replies.main(tmp_path) == 0
    text = REPLIES[0].read_text()
    line = json.loads(text)["reads_as"]
    (tmp_path / "other.json").write_text(text.replace(line, "doubtful"))
    for name, broken in {"empty": "", "list": "[]", "half": text[:50], "no body": "{}"}.items():
        (tmp_path / f"{name}.json").write_text(broken)
    capsys.readouterr()
    assert read_replies.main(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == ["✗", "✓", "✗", "✗", "✗", "✗"]
    assert f"other.json: {line}, and was to be doubtful" in "\n".join(lines)


# -- reading ------------------------------------------------------------------------------------

CA = "X-Ca-Error-Message"
LINES: dict[str, tuple[Reply, str]] = {
    "running": (reply({"status": 10, "data": {"status": "running"}}), "waiting: running"),
    "odd": (reply({"status": 10, "data": {"status": "odd"}}), "waiting: odd, undocumented"),
    "no status": (reply({"status": 10, "data": {}}), "waiting: no status, undocumented"),
    "one file": (done(images=[FILE]), "succeeded: 1 file"),
    "no file": (done(images=[]), "succeeded: 0 files"),
    "bad file": (done(images=[FILE, "ftp://x"]), "succeeded: 2 files, 1 of them rejected"),
    "canceled": (reply({"status": 10, "data": {"status": "canceled"}}),
                 "failed: upstream_canceled"),
    "html": (reply(b"<html>"), "unavailable"),
    "502": (reply(b"<html>", 502), "unavailable"),
    "404": (reply(b"<html>", 404), "refused: request"),
    "packed": (reply({"status": 10, "data": json.dumps({"status": "succeeded", "images": [FILE]})}),
               "succeeded: 1 file"),
    "packed images": (done(images=json.dumps(json.dumps([FILE]))), "succeeded: 1 file"),
    "blank": (done(images={"filename": "a.png", "url": " "}), "succeeded: 1 file"),
    "marked": (done(images=f" \ufeff{FILE}\n"), "succeeded: 1 file"),
    "as in HTML": (done(images=[FILE.replace("&", "&amp;") + "&amp;x=1"]), "succeeded: 1 file"),
    "not a number": (reply(json.dumps({"status": 10, "data": {
        "status": "succeeded", "images": {"a": FILE}, "result": {"n": math.nan}}}).encode()),
        "succeeded: 1 file"),
    "clock": (reply(b"", 403, {CA: "Timestamp Expired"}), "blocked: clock"),
    "throttled": (reply(b"", 429), "throttled"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_every_class_has_its_line(name: str) -> None:
    given, line = LINES[name]
    assert samples.read(given).line == line
    again, wanted = samples.from_text(safe(given))
    assert (samples.read(again).line, wanted) == (line, line)


# -- without secrets ----------------------------------------------------------------------------

HIDDEN: dict[str, Callable[[str], Reply]] = {
    "app key": lambda _: done(images=[], result={"note": KEY, "n": int(KEY)}),
    "app secret": lambda _: done(images=[], result={"note": SECRET, "q": quote(SECRET, safe="")}),
    "signed text": lambda _: reply(
        b"", 403, {CA: f"Invalid Signature, Server StringToSign:`POST#x-ca-key:{KEY}#x-ca-nonce:n`"}
    ),
    "key in a page": lambda _: reply(f"<html>{KEY} {FILE}".encode(), 502),
    "address": lambda _: done(images=[FILE]),
    "address in a text": lambda _: done(images=[], result={"note": f"see {FILE} soon"}),
    "address in an error": lambda _: reply(
        {"status": 20, "errCode": "X", "errMessage": f"no {FILE}"}
    ),
    "address as a key": lambda _: done(images=[], result={FILE: 1}),
    "location": lambda _: reply(b"", 302, {"Location": FILE}),
    "other CDN": lambda _: done(images=[f"https://cdn.example/a.png?auth_key=17-0-0-{HASH}"]),
    "parameter": lambda _: done(images=[f"https://cdn.example/a.png?{HASH}=1&hunter22%21=1"]),
    "mail in an error": lambda _: reply(
        {"status": 20, "errCode": "X", "errMessage": "ask jane.doe@example.org"}
    ),
    "user of a host": lambda _: done(images=["http://me:hunter22@localhost/a.png"]),
    "user": lambda _: done(images=["https://me:hunter22@cdn.example/a.png"]),
    "JSON in a text": lambda _: done(images=[], result=json.dumps({"a": FILE, "b": KEY})),
    "task id": lambda _: done(images=[], result={"of": f"about {TASK}", "id": TASK}),
    "invoke id": lambda _: reply({"status": 10, "apiInvokeId": HASH, "data": {"status": "failed"}}),
    "snowflake": lambda _: done(images=[], result={"uid": 7215534890123456789}),
    "prose": lambda _: done(images=[], result={"caption": "a secret garden", "c": "一只脚"}),
    "caption": lambda _: done(images=[{"url": FILE, "caption": "a secret garden"}]),
    "caption in a packed reply": lambda _: reply({"status": 10, "data": json.dumps({
        "status": "succeeded", "images": json.dumps({"a": FILE, "b": "a secret garden"})})}),
    "inputs": lambda _: done(images=[], info={"prompt": "a secret garden"}, parameters=["一只脚"]),
    "name": lambda _: done(images=["https://cdn.example/一只脚/a secret garden.png"]),
    "mail": lambda _: done(images=[], result={"by": "jane.doe@example.org"}),
    "cookie": lambda _: reply({"status": 10, "data": {"status": "failed"}},
                              headers={"Set-Cookie": "hunter22"}),
}  # fmt: skip
SECRETS = (
    KEY, SECRET, quote(SECRET, safe=""), TASK, HASH, "LTAI5tHiddenHidden", "n7Rx03qaJX5",
    "hunter22", "7215534890123456789", "secret garden", "一只脚", "\\u4e00", "jane.doe",
    "x-ca-nonce",
)  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_a_sample_holds_no_secret_and_is_read_as_before(name: str) -> None:
    given = HIDDEN[name]("")
    text = safe(given)
    assert [secret for secret in SECRETS if secret in text] == []
    again, line = samples.from_text(text)
    assert line == samples.read(given).line == samples.read(again).line


def test_what_tells_files_apart_still_does() -> None:
    other = FILE.replace("cat.png", "dog.png")
    given = done(images=[FILE, other, FILE], result={"poster": {"url": FILE, "format": "png"}})
    before = samples.read(given)
    after = samples.read(samples.redacted(given, []))
    assert [p.refs for p, _ in after.files] == [p.refs for p, _ in before.files]
    assert [p.format for p, _ in after.files] == [p.format for p, _ in before.files]
    ends = [finding.url_expiry(url) for _, url in after.files]
    assert ends == [finding.url_expiry(url) for _, url in before.files] == [1795849814] * 2


def test_a_sample_is_made_once() -> None:
    text = safe(done(images=[FILE], result={"poster": {"url": FILE}}))
    again, _ = samples.from_text(text)
    assert json.loads(samples.to_text(samples.redacted(again, [KEY])))["json"] is not None
    assert samples.read(samples.redacted(again, [KEY])).line == "succeeded: 1 file"


def test_a_reply_that_would_be_read_otherwise_is_not_given_out() -> None:
    with pytest.raises(ValueError, match="not as waiting: running"):
        samples.redacted(reply({"status": 10, "data": {"status": "running"}}), ["running"])


_TEXTS = st.one_of(
    st.sampled_from([FILE, KEY, TASK, HASH, "image", "//cdn.example/x.png", '{"a": "b"}']),
    st.text(max_size=20),
    st.text(string.ascii_letters + string.digits + "?&=/:%", max_size=60),
    st.just(FILE).map(lambda url: f" {url} "),
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(
    status=st.sampled_from(["succeeded", "failed", "running", "odd"]),
    images=st.lists(_VALUES, max_size=4) | st.none(),
    result=_VALUES,
    code=st.sampled_from([10, 20]),
)
def test_whatever_the_reply_no_secret_is_left_and_the_class_stays(
    status: str, images: Any, result: Any, code: int
) -> None:
    data = {"status": status, "images": images, "result": result}
    given = reply({"status": code, "errCode": None, "errMessage": KEY, "data": data})
    try:
        text = safe(given)
    except ValueError:  # nothing is given out then
        assume(False)
    for secret in (KEY, TASK, HASH, "LTAI5tHiddenHidden", "n7Rx03qaJX5"):
        assert secret not in text
    again, line = samples.from_text(text)
    assert line == samples.read(given).line == samples.read(again).line


def test_long_runs_take_linear_time() -> None:
    """200 KB of each: a quadratic search would take many minutes."""
    for run in ("a", "A1", "a-", "@a.", "https://", "?", "%3D", "1", "{["):
        text = run * (200_000 // len(run))
        found = safe(done(images=[], result={"x": text, "y": f"https://h.example/{text}"}))
        assert len(found) < 620_000


def test_members_are_named_in_one_bounded_line() -> None:
    line = samples.members(done(images=[FILE], result={"a": 1}, note=None, **{"x" * 900: 1}))
    assert line.startswith("status (text), taskId (text), images (list of 1), result (object of 1)")
    assert len(line) <= 500
    for body in (b"", b"[]", b"{}", b'{"data": []}', b"[" * 100_000):
        assert samples.members(reply(body)) == ""


def test_a_reply_says_nothing_of_itself_in_a_log() -> None:
    assert not re.search(f"{HASH}|{KEY}", repr(done(images=[FILE], note=KEY)))
