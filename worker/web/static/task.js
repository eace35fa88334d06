// One task, in a dialog that is kept up to date until it is closed.
import { read } from "./api.js";
import { action } from "./actions.js";
import { $, complain, draw, forget, make, moment, settle, state } from "./dom.js";
import { media } from "./list.js";
import { bytes, clock, count, exact, number, reason, t } from "./words.js";

const RECORD = 200_000, FACTS = 50, FILES = 60, STEPS = 100; // limits of what is shown
const OPEN = 10; // with more lost files, their list is closed at first
const GAP = 10_000; // milliseconds between two reads of a settled task
let shown = null, looked = 0, settled = false, turn = 0;

export const showing = () => shown;
const unix = (value) => { const at = Number(value); return at > 1e11 ? at : at * 1000; };

// What happened to a task, as [milliseconds, words], oldest first.
function timeline(task) {
  const upstream = task.upstream || {}, files = (task.files || []).filter((file) => file.stored_at);
  const steps = [[task.submitted_at, t("submitted")],
    [unix(upstream.taskBeginTime), t("began upstream")], [unix(upstream.taskEndTime), t("ended upstream")]];
  if (files.length) steps.push([files.reduce((last, file) => Math.max(last, file.stored_at), 0), count(files.length, "{n} file in the bucket", "{n} files in the bucket")]);
  if (task.finished_at) steps.push([task.finished_at, [t(task.state), task.reason && reason(task.reason)].filter(Boolean).join(" · ")]);
  else steps.push([task.updated_at, count(task.polls, "polled {n} time so far", "polled {n} times so far")]);
  if (task.last_error) steps.push([task.last_error_at, `${t("held up")} · ${task.last_error}`]);
  for (const told of task.told || []) {
    const target = { channel: told.channel, target: told.target };
    if (told.done_at) steps.push([told.done_at, told.last_error ? `${t("gave up the {channel} {target}", target)} · ${told.last_error}` : t("sent the {channel} {target}", target)]);
    else if (told.attempts) steps.push([told.log?.at(-1)?.at, `${t("could not send the {channel} {target}", target)} · ${told.last_error}`]);
  }
  return steps.filter(([at]) => at > 0 && at < 8.64e15).sort((a, b) => a[0] - b[0]).slice(-STEPS);
}

function facts(task) {
  const text = (value) => typeof value === "string" ? value : JSON.stringify(value);
  const options = Object.entries(task.options || {}).filter(([name]) => name !== "callbacks");
  const found = [
    [t("Reason"), task.reason && [reason(task.reason), " ", make("code", task.reason)]], [t("Error"), task.error || task.last_error],
    [t("Label"), task.label && make("a", task.label, { href: `/tasks?${new URLSearchParams({ label: task.label })}` })],
    ...Object.entries(task.metadata || {}).map(([name, value]) => [name, text(value).slice(0, 500)]),
    ...options.map(([name, value]) => [name, text(value)]),
    [t("Run"), task.run > 1 && number(task.run)], [t("Restored"), task.restored && t("from its manifest")],
  ].filter(([, value]) => value);
  if (found.length > FACTS) found.splice(FACTS, Infinity, ["…", t("and {n} more; the record has them all", { n: number(found.length - FACTS) })]);
  return found.flatMap(([name, value]) => [make("dt", name), make("dd", value)]);
}

function render(task) {
  $("task-state").replaceChildren(state(task.state), " ", moment(task.finished_at || task.updated_at));
  const names = task.finished_at ? [] : ["cancel"];
  if (task.state === "waiting") names.unshift("look");
  if (["failed", "partial"].includes(task.state)) names.push("retry");
  if (task.finished_at && (task.options?.callbacks || []).length) names.push("notify");
  draw("task-actions", [task.task_id, task.run, names], () => $("task-actions").replaceChildren(...names.map((name) => action(task.task_id, name, "task"))));
  draw("task-facts", [task.task_id, task.label, task.metadata, task.options, task.error, task.last_error, task.reason, task.run], () => $("task-facts").replaceChildren(...facts(task)));
  const lost = (task.files || []).filter((file) => !file.key);
  draw("task-lost", [task.task_id, lost], () => $("task-lost").replaceChildren(...(lost.length ? [
    make("details", [make("summary", count(lost.length, "{n} file lost", "{n} files lost")), make("ul", lost.slice(0, FILES).map((file) => make("li", [make("code", file.name), " ", file.filename ? `(${file.filename}) ` : "", make("span", file.error || "", { class: "dim" })]))),
    lost.length > FILES ? make("p", t("and {n} more; the record has them all", { n: number(lost.length - FILES) }), { class: "dim" }) : ""], { open: lost.length <= OPEN }),
  ] : [])));
  const steps = timeline(task);
  draw("timeline", [task.task_id, steps], () => $("timeline").replaceChildren(...steps.map(([at, what]) =>
    make("li", [make("time", exact(at), { datetime: new Date(at).toISOString(), class: "dim" }), " ", what]))));
  const text = JSON.stringify(task, null, 2);
  $("record").textContent = text.length > RECORD ? `${text.slice(0, RECORD)}\n… ${t("cut here; the API has all of it")}` : text;
}

async function gallery(task) {
  const stored = (task.files || []).filter((file) => file.key);
  const key = [task.task_id, stored.map((file) => file.key)];
  let changed = false;
  draw("gallery", key, () => { changed = true; });
  if (!changed) return;
  $("gallery").replaceChildren();
  if (!stored.length) return;
  const { files } = await read(`/api/tasks/${encodeURIComponent(task.task_id)}/urls`).catch((error) => {
    if (error.status === 403) return { files: stored }; // a read-only token: names without addresses
    forget("gallery");
    throw error;
  });
  if (shown !== task.task_id) return;
  const about = new Map(stored.map((file) => [file.name, file]));
  const figures = files.map((file, n) => () => {
    const known = about.get(file.name) || {};
    const link = known === file ? file.name : make("a", file.name, { href: file.url, rel: "noreferrer", target: "_blank" });
    const size = [file.content_type, known.width && `${known.width} × ${known.height}`, known.duration && `${known.duration} s`, bytes(known.bytes)].filter(Boolean).join(" · ");
    return make("figure", [(known !== file && media(file, { told: true, preload: n < 8 ? "metadata" : "none" })) || "", make("figcaption", [link, make("span", size, { class: "dim" })])]);
  });
  const rest = figures.splice(FILES);
  $("gallery").replaceChildren(...figures.map((made) => made()));
  if (rest.length) {
    const all = make("button", t("Show {n} more", { n: number(rest.length) }), { type: "button", onclick: () => all.replaceWith(...rest.map((made) => made())) });
    $("gallery").append(all);
  }
}

async function look() {
  const id = shown, mine = ++turn;
  looked = Date.now();
  let task;
  try {
    task = await read(`/api/tasks/${encodeURIComponent(id)}`);
  } catch (error) {
    if (error.status === 404 && shown === id) {
      settled = true;
      $("task-state").textContent = t("There is no task with this id. Records are removed some time after their end; submit the id again.");
      return;
    }
    throw error;
  }
  if (shown !== id || mine !== turn) return;
  settled = Boolean(task.finished_at) && (task.told || []).every((told) => told.done_at);
  render(task);
  await gallery(task);
}

// Shows a task; an error stays in the dialog.
export function show(id) {
  if (shown === id) return;
  hide();
  shown = id;
  settle("task");
  for (const name of ["task-actions", "task-facts", "task-lost", "gallery", "timeline"]) { forget(name); $(name).replaceChildren(); }
  $("record").textContent = "";
  $("task-state").textContent = t("loading");
  $("task-title").textContent = id;
  $("task").showModal();
  look().catch((error) => complain("task", error));
}

export function hide() {
  if (shown === null) return;
  shown = null;
  $("gallery").replaceChildren(); // stops playback
  if ($("task").open) $("task").close();
}

// Called at every event of the server: reads the task again if it may have changed. A failure shows no
// error: the next read comes in two seconds, and the connection's own trouble is shown above.
export function follow({ id, now = false } = {}) {
  if (shown === null || (id && id !== shown)) return;
  if (now || id || !settled || Date.now() - looked > GAP) look().catch(() => {});
}
