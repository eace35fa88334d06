"""What callers hand in: each id and option is taken or refused alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import jsontext
from worker.core.layout import Layout
from worker.core.models import Refusal
from worker.core.submission import (
    Policy,
    Submission,
    callback_id,
    merge_callbacks,
    printable,
    read_body,
    read_submission,
)
from worker.errors import InvalidSubmission

OPEN = Policy(
    reply_allow=("orders/*", "*/shop.done"),
    webhooks=True,
    namespace="harvester",
    layout=Layout(prefix="media/", manifest_prefix="manifests/"),
)
CLOSED = Policy()
HOOK = "https://shop.example/hook?token=s3cret"
ID_RULE = "must be 1-128 of A-Z a-z 0-9 . _ : - and begin with a letter or digit"


def accept(**options: Any) -> Submission:
    """The one submission that these options lead to; nothing may be refused."""
    [submission], refusals = read_submission("id1", options, OPEN)
    assert refusals == []
    return submission


def refuse(policy: Policy = OPEN, **options: Any) -> Refusal:
    """The one refusal that these options lead to; the id goes through as if without them."""
    submissions, [refusal] = read_submission("id1", options, policy)
    assert submissions == [accept()]
    return refusal


# -- ids ----------------------------------------------------------------------------------------


def test_an_id_alone() -> None:
    assert accept() == Submission(
        task_id="id1", metadata="{}", label="", options='{"callbacks":[]}'
    )


@pytest.mark.parametrize(
    "task_id", ["a", "0", "01jgjgyaqh85f7rs23v0kbmtdb", "A.b_c:d-9", "x" * 128, "a..", "manifest"]
)
def test_ids(task_id: str) -> None:
    for given_ in (task_id, [task_id], (task_id,), [task_id, task_id]):
        [submission], refusals = read_submission(given_, {}, OPEN)
        assert (submission.task_id, refusals) == (task_id, [])


@pytest.mark.parametrize(
    "value",
    ["", "_a", ".a", "-a", ":a", "../x", "a/b", "a b", "a\n", "\na", "a\x00", "é", "\uff11",
     "x" * 129, "<script>", "' OR 1=1", "a%2e", "\ud800"],
)  # fmt: skip
def test_an_invalid_id_is_refused_alone(value: str) -> None:
    submissions, [refusal] = read_submission(["ok1", value, "ok2"], {"label": "x"}, OPEN)
    assert [submission.task_id for submission in submissions] == ["ok1", "ok2"]
    assert (refusal.what, refusal.reason) == ("task_id", ID_RULE)
    assert refusal.value.isprintable()


@pytest.mark.parametrize("value", [None, 5, True, [], ["a"], {}, {"a": 1}, 1.5])
def test_an_id_is_a_string(value: Any) -> None:
    [submission], [refusal] = read_submission([value, "ok"], {}, OPEN)
    assert submission.task_id == "ok"
    assert refusal == Refusal(what="task_id", value=printable(value), reason="must be a string")


@pytest.mark.parametrize(
    ("task_ids", "reason"),
    [
        (None, "must be a task id or a list of task ids"),
        (5, "must be a task id or a list of task ids"),
        ({"a": 1}, "must be a task id or a list of task ids"),
        ([], "no task id"),
        ([f"id{number}" for number in range(1001)], "more than 1,000 ids in one message"),
    ],
)
def test_what_holds_no_ids(task_ids: Any, reason: str) -> None:
    assert read_submission(task_ids, {}, OPEN) == (
        [],
        [Refusal(what="task_ids", value=printable(task_ids), reason=reason)],
    )


def test_a_thousand_ids_share_their_options() -> None:
    ids = [f"id{number}" for number in range(1000)]
    submissions, refusals = read_submission(ids, {"metadata": {"order": 42}}, OPEN)
    assert [submission.task_id for submission in submissions] == ids
    assert {submission.metadata for submission in submissions} == {'{"order":42}'}
    assert refusals == []


def test_files_never_mix_with_manifests() -> None:
    mixed = "its files would mix with the manifests"
    [submission], [refusal] = read_submission(["manifests", "x"], {}, OPEN)
    assert (submission.task_id, refusal.reason) == ("x", mixed)
    assert read_submission("manifests", {"prefix": "a"}, OPEN)[1] == []
    nested = Policy(layout=Layout(prefix="p/", manifest_prefix="a/b/"))
    assert read_submission("b", {"prefix": "a"}, nested)[1][0].reason == mixed
    assert read_submission("a", {}, nested)[1][0].reason == mixed
    assert read_submission("b", {}, nested)[1] == []


@given(
    st.text(alphabet="ab/.", max_size=6),
    st.text(alphabet="ab", min_size=1, max_size=3),
    st.sampled_from(["a/", "a/b/", "ab/", "b/b/a/"]),
)
def test_no_prefix_and_id_lead_below_the_manifests(
    prefix: str, task_id: str, manifest_prefix: str
) -> None:
    policy = Policy(layout=Layout(manifest_prefix=manifest_prefix))
    for submission in read_submission(task_id, {"prefix": prefix}, policy)[0]:
        chosen = json.loads(submission.options).get("prefix", "")
        assert not f"{chosen}{task_id}/result/x".startswith(manifest_prefix)
        assert not f"{chosen}{task_id}/result/x".startswith(f"{manifest_prefix}{task_id}")


# -- options ------------------------------------------------------------------------------------


def test_all_options() -> None:
    submission = accept(
        metadata={"order": 42},
        prefix="orders/2026",
        expected_seconds=90.0,
        label="海报 v2",
        deadline=3600,
        callback_url=HOOK,
        reply_task="shop.done",
        reply_queue="shop",
        priority="high",
    )
    assert submission.metadata == '{"order":42}'
    assert submission.label == "海报 v2"
    assert json.loads(submission.options) == {
        "prefix": "orders/2026/",
        "deadline": 3600,
        "priority": "high",
        "expected_seconds": 90,
        "callbacks": [
            {"channel": "webhook", "target": HOOK},
            {"channel": "reply", "task": "shop.done", "queue": "shop"},
        ],
    }
    assert submission.options.isascii()


OPTIONS = [
    "metadata", "prefix", "expected_seconds", "label", "deadline", "callback_url", "reply_task",
    "reply_queue", "priority",
]  # fmt: skip


@pytest.mark.parametrize("name", [*OPTIONS, "unheard_of"])
def test_null_means_not_given(name: str) -> None:
    assert accept(**{name: None}) == accept()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    "value", [True, [], {"a": math.nan}, {1: 2}, object(), Decimal(1), b"x", math.inf, "\x00"]
)
def test_nonsense_is_refused_alone(name: str, value: Any) -> None:
    refusal = refuse(**{name: value})
    assert refusal.what == f"option {name}"
    assert refusal.reason
    assert refusal.value == printable(value)


def test_an_unknown_option_is_refused_alone() -> None:
    assert refuse(callback="x") == Refusal(
        what="option callback", value="x", reason="unknown option"
    )
    assert len(refuse(**{"x" * 1_000_000 + "\n": 1}).what) <= len("option ") + 64


def test_other_options_stand_when_one_is_refused() -> None:
    [submission], refusals = read_submission(
        ["id1"], {"label": "a\nb", "deadline": 5, "nope": 1, "priority": "low"}, OPEN
    )
    assert json.loads(submission.options) == {"deadline": 5, "priority": "low", "callbacks": []}
    assert [refusal.what for refusal in refusals] == ["option label", "option nope"]


def test_metadata_is_kept_to_the_digit() -> None:
    text = '{"a":1.50,"b":123456789012345678901234567890,"c":[],"d":{},"e":null,"f":"中"}'
    _, options = read_body(f'{{"task_ids":"x","metadata":{text}}}')
    assert accept(**options).metadata == text


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([], "must be a JSON object"),
        ("x", "must be a JSON object"),
        ({"a": math.nan}, "holds a number that is not JSON"),
        ({"a": 10**5000}, "holds a number that is not JSON"),
        ({"a": [datetime.now(UTC)]}, "holds something that is not JSON"),
        ({"a": {1: 2}}, "holds something that is not JSON"),
        ({"a": "x" * (16 * 1024 - 7)}, "larger than 16,384 bytes"),
        ({"a": "中" * 6000}, "larger than 16,384 bytes"),
        (nested(33), "nested deeper than 32 levels"),
        (nested(5000), "nested deeper than 32 levels"),
        ({"a": [[[[1]]]] * 5000}, "larger than 16,384 bytes"),
    ],
)
def test_metadata_that_is_refused(metadata: Any, reason: str) -> None:
    assert refuse(metadata=metadata).reason == reason


@pytest.mark.parametrize(
    "metadata",
    [{}, {"a": "x" * (16 * 1024 - 8)}, {"中": "中" * 5000}, nested(32), {"\ud800": "\udfff"},
     {"a": (1, 2)}, {"n": 10**400}],
)  # fmt: skip
def test_metadata_that_is_taken(metadata: Any) -> None:
    taken = accept(metadata=metadata).metadata
    assert json.loads(taken) == json.loads(json.dumps(metadata))
    assert len(taken.encode()) <= 16 * 1024


@pytest.mark.parametrize("name", ["deadline", "expected_seconds"])
@pytest.mark.parametrize(
    "value", [-1, -0.5, math.nan, math.inf, 10**400, 1e300, "5", False, 365 * 86_400 + 1]
)
def test_seconds_that_are_refused(name: str, value: Any) -> None:
    assert refuse(**{name: value}).reason.startswith("must be a number of seconds")


def test_bounds_of_seconds() -> None:
    assert refuse(deadline=0).value == "0"
    assert json.loads(accept(deadline=365 * 86_400).options)["deadline"] == 31_536_000
    assert json.loads(accept(deadline=0.5).options)["deadline"] == 0.5
    assert json.loads(accept(expected_seconds=0).options)["expected_seconds"] == 0
    assert refuse(expected_seconds=30 * 86_400 + 1)
    assert accept(expected_seconds=30 * 86_400)
    _, options = read_body('{"task_ids": [], "deadline": 36e2}')
    assert accept(**options) == accept(deadline=3600)


@pytest.mark.parametrize("label", ["", "a", "x" * 128, "工作流 1", "é"])
def test_labels(label: str) -> None:
    assert accept(label=label).label == label


@pytest.mark.parametrize("label", ["x" * 129, "a\n", "\x7f", "\u2028", "\u202e", "\ud800", 5])
def test_labels_that_are_refused(label: Any) -> None:
    assert refuse(label=label).what == "option label"


@pytest.mark.parametrize("prefix", ["/a", "a//b", "..", "a/../b", "a b", "x" * 257, 5, ["a"]])
def test_prefixes_that_are_refused(prefix: Any) -> None:
    assert refuse(prefix=prefix).what == "option prefix"


@pytest.mark.parametrize("prefix", ["manifests", "manifests/", "manifests/x"])
def test_a_prefix_within_the_manifests_is_refused(prefix: str) -> None:
    assert refuse(prefix=prefix).reason == "is inside the manifest prefix"


@pytest.mark.parametrize("prefix", ["", "manifest", "manifests2", "x/manifests"])
def test_a_prefix_beside_the_manifests_is_taken(prefix: str) -> None:
    expected = {"prefix": f"{prefix}/"} if prefix else {}
    assert json.loads(accept(prefix=prefix).options) == {**expected, "callbacks": []}


def test_priorities() -> None:
    for priority in ("high", "normal", "low"):
        assert json.loads(accept(priority=priority).options)["priority"] == priority
    assert refuse(priority="HIGH").reason == "must be one of high, normal, low"
    assert refuse(priority=1).reason == "must be one of high, normal, low"


# -- callbacks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [HOOK, "http://127.0.0.1:8000/", "https://[::1]/x", "HTTPS://H", "https://h/?q=%20#f",
     "https://h/" + "x" * 2038],
)  # fmt: skip
def test_callback_urls(url: str) -> None:
    [callback] = json.loads(accept(callback_url=url).options)["callbacks"]
    assert callback == {"channel": "webhook", "target": url}


@pytest.mark.parametrize(
    "url",
    ["", "x", "ftp://h/", "javascript:alert(1)", "https://", "https:///x", "https://u:p@h/",
     "https://u@h/", "https://h:x/", "https://h:0/", "https://h:99999/", "https://[::1/",
     "https://h/a b", "https://h/\r\nX: y", "https://h/é", "https://good\\@evil/", "//h/x",
     "https://h/" + "x" * 2039, 5, ["https://h/"]],
)  # fmt: skip
def test_callback_urls_that_are_refused(url: Any) -> None:
    assert refuse(callback_url=url).what == "option callback_url"


@pytest.mark.parametrize("url", ["https://shop.example/x", "https://A.Hooks.Example.:444/x"])
def test_webhooks_to_allowed_hosts_are_accepted(url: str) -> None:
    policy = replace(OPEN, webhook_hosts=("shop.example", "*.hooks.example"))
    _, refusals = read_submission("id1", {"callback_url": url}, policy)
    assert refusals == []


@pytest.mark.parametrize(
    "url", ["https://other.example/shop.example", "https://shop.example.org", "https://[2001::1]/"]
)
def test_webhooks_to_other_hosts_are_refused(url: str) -> None:
    policy = replace(OPEN, webhook_hosts=("shop.example", "*.hooks.example"))
    assert refuse(policy, callback_url=url).reason == "not allowed by HARVESTER_WEBHOOK_HOSTS"


def test_a_refused_callback_url_shows_no_secret() -> None:
    refusal = refuse(CLOSED, callback_url="https://u:pw@shop.example/hook?token=s3cret")
    assert "HARVESTER_WEBHOOK_SECRET" in refusal.reason
    assert refusal.value == "https://shop.example/hook"
    assert refuse(metadata=[HOOK]).value == "list of 1"


@pytest.mark.parametrize(
    ("queue", "task"), [("orders", "x.y"), ("anything", "shop.done"), ("orders", "celery.ping")]
)
def test_replies_that_are_allowed(queue: str, task: str) -> None:
    [callback] = json.loads(accept(reply_task=task, reply_queue=queue).options)["callbacks"]
    assert callback == {"channel": "reply", "task": task, "queue": queue}


@pytest.mark.parametrize(
    ("queue", "task", "reason"),
    [
        ("shop", "other", "not allowed by HARVESTER_REPLY_ALLOW"),
        ("Orders", "x", "not allowed by HARVESTER_REPLY_ALLOW"),
        ("orders", "harvester.submit", "harvester.* tasks cannot be reply tasks"),
        ("orders", "harvester", "harvester.* tasks cannot be reply tasks"),
        ("harvester", "shop.done", "the fleet's own queues cannot receive replies"),
        ("harvester.copy", "shop.done", "the fleet's own queues cannot receive replies"),
        ("harvester:task:x", "shop.done", "the fleet's own queues cannot receive replies"),
    ],
)
def test_replies_that_are_refused(queue: str, task: str, reason: str) -> None:
    refusal = refuse(reply_task=task, reply_queue=queue)
    assert (refusal.what, refusal.reason) == ("option reply_task", reason)


def test_no_reply_is_allowed_unless_listed() -> None:
    assert refuse(CLOSED, reply_task="a", reply_queue="b").reason == (
        "not allowed by HARVESTER_REPLY_ALLOW"
    )
    everything = Policy(reply_allow=("*",), namespace="blue")
    assert refuse(everything, reply_task="harvester.poll", reply_queue="q")
    assert refuse(everything, reply_task="a", reply_queue="blue")
    assert read_submission("a", {"reply_task": "a", "reply_queue": "blues"}, everything)[1] == []


def test_a_reply_needs_both_names() -> None:
    assert refuse(reply_task="a").reason == "needs reply_queue too"
    assert refuse(reply_queue="orders").what == "option reply_queue"
    for bad in ("", "a b", "a/b", "*", "x" * 201, "é", "a\n"):
        assert refuse(reply_task=bad, reply_queue="orders").what == "option reply_task"
        assert refuse(reply_task="a", reply_queue=bad).what == "option reply_queue"


def test_ids_of_callbacks() -> None:
    hook = {"channel": "webhook", "target": HOOK}
    assert callback_id(hook) == callback_id({"target": HOOK, "channel": "webhook"})
    assert callback_id(hook) != callback_id({"channel": "webhook", "target": HOOK + "1"})
    assert callback_id(hook).startswith("webhook-")
    assert "s3cret" not in callback_id(hook)
    reply = {"channel": "reply", "task": "a", "queue": "b"}
    assert callback_id(reply) != callback_id({"channel": "reply", "task": "b", "queue": "a"})


def test_callbacks_are_added_once() -> None:
    before = accept(callback_url=HOOK, metadata={"a": 1}, deadline=1.5).options
    hook, other = ({"channel": "webhook", "target": url} for url in (HOOK, "https://other/"))
    assert merge_callbacks(before, []) is None
    assert merge_callbacks(before, [hook, hook]) is None
    after = merge_callbacks(before, [hook, other, other])
    assert after is not None
    assert json.loads(after) == {**json.loads(before), "callbacks": [hook, other]}
    assert merge_callbacks(after, [other, hook]) is None


def test_at_most_eight_callbacks() -> None:
    hooks = [{"channel": "webhook", "target": f"https://h/{number}"} for number in range(9)]
    options = merge_callbacks('{"callbacks":[]}', hooks[:8])
    assert options is not None
    assert merge_callbacks(options, hooks[:8]) is None
    with pytest.raises(InvalidSubmission, match="more than 8"):
        merge_callbacks(options, hooks)


# -- messages -----------------------------------------------------------------------------------


def test_read_body() -> None:
    body = '{"task_ids": ["id1"], "metadata": {"order": 42}, "more": null}'
    expected = (["id1"], {"metadata": {"order": 42}, "more": None})
    assert read_body(body) == read_body(body.encode()) == expected


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", '"id"', "null", "5", "{}", '{"ids": ["a"]}', b"\xff", '{"task_ids": NaN}'],
)
def test_a_body_that_is_refused(body: str | bytes) -> None:
    with pytest.raises(InvalidSubmission) as caught:
        read_body(body)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_body_is_bounded() -> None:
    deep = '{"task_ids": ["a"], "metadata": ' + "[" * 5000 + "]" * 5000 + "}"
    with pytest.raises(InvalidSubmission, match="nested deeper"):
        read_body(deep)
    with pytest.raises(InvalidSubmission, match="longer than"):
        read_body('{"task_ids": ["' + "x" * 2 * 1024 * 1024 + '"]}')


def test_metadata_may_be_as_deep_in_a_body_as_in_a_message() -> None:
    body = json.dumps({"task_ids": "id1", "metadata": nested(32)})
    _, options = read_body(body)
    assert accept(**options) == accept(metadata=nested(32))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (f"see {HOOK}", "see https://shop.example/hook"),
        ({"secret": 1}, "object with 1 members"),
        ([1, 2], "list of 2"),
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        (jsontext.loads("1.50"), "1.50"),
        (math.nan, "float"),
        (b"x", "bytes"),
    ],
)
def test_shown(value: Any, text: str) -> None:
    assert printable(value) == text


def test_what_is_shown_is_short() -> None:
    assert printable("x" * 10_000_000) == "x" * 199 + "…"
    assert printable(10**5000) == "int"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.lists(ANYTHING | st.from_regex(r"\A[a-z0-9.:-]{1,4}\Z")) | ANYTHING,
    st.dictionaries(st.sampled_from(OPTIONS) | st.text(), ANYTHING),
    st.sampled_from([OPEN, CLOSED]),
)
def test_garbage_is_sorted_out(task_ids: Any, options: dict[str, Any], policy: Policy) -> None:
    submissions, refusals = read_submission(task_ids, options, policy)
    assert len({submission.task_id for submission in submissions}) == len(submissions)
    for submission in submissions:
        assert isinstance(jsontext.loads(submission.metadata), dict)
        assert isinstance(jsontext.loads(submission.options)["callbacks"], list)
        "".join((submission.metadata, submission.label, submission.options)).encode()
    for refusal in refusals:
        line = "".join((refusal.what, refusal.value, refusal.reason))
        assert line.isprintable()
        assert len(line) < 500
        json.dumps([refusal.what, refusal.value, refusal.reason]).encode()
    if isinstance(task_ids, list):
        refused = [refusal for refusal in refusals if refusal.what == "task_id"]
        assert len(submissions) + len(refused) >= len({i for i in task_ids if isinstance(i, str)})


def test_countless_unknown_options_make_few_refusals() -> None:
    options = {f"k{n}": n for n in range(140_000)}
    accepted, refused = read_submission(["a"], {**options, "label": "poster"}, Policy())
    assert [submission.label for submission in accepted] == ["poster"]
    assert len(refused) == 51
    assert refused[-1] == Refusal(what="options", value="139950", reason="more options are unknown")
