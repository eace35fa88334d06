// The page: reads the API, writes text only. Nothing from elsewhere is ever parsed as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const STATES = ["waiting", "copying", "stored", "partial", "failed"];
const MINUTES = 5;
const endings = []; // [time, state] of the last minutes
let token = sessionStorage.getItem("token") || "";
let next = null;
let seeded = false; // whether endings from before the page was opened are drawn

function make(tag, content, more = {}) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(more)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...(Array.isArray(content) ? content : [content ?? ""]));
  return node;
}

const row = (...cells) => make("tr", cells.map((cell) => make("td", cell)));
const fill = (id, rows, columns, empty) => $(id).tBodies[0].replaceChildren(
  ...(rows.length ? rows : [make("tr", make("td", empty, { colspan: columns, class: "empty" }))]));
const when = (ms) => ms ? new Date(ms).toLocaleString() : "";
const state = (name, text = name) => make("span", text, { class: `state ${STATES.includes(name) ? name : ""}` });
const opener = (id) => make("button", id, { class: "link", onclick: () => open(id) });

function span(seconds) {
  if (seconds < 1) return "no";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

async function api(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (response.status === 401) $("sign-in").hidden = false;
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(problem.detail || response.statusText);
  }
  return response;
}

const read = async (path) => (await api(path)).json();

function alertOf(text) { return make("p", text, { class: "alert" }); }

function stats(fleet) {
  $("counts").replaceChildren(...STATES.map((name) => make("li",
    [make("strong", String(fleet.tasks[name])), make("span", name)], { class: name, id: `count-${name}` })));
  fill("due", Object.entries(fleet.due).map(([name, set]) =>
    row(name, String(set.size), span(set.late_seconds))), 3, "");
  fill("workers", fleet.workers.map((worker) => row(worker.name,
    worker.alive ? `${span((fleet.now - worker.last_tick) / 1000).replace("no", "just now")}`
      : make("span", `silent for ${span((fleet.now - worker.last_tick) / 1000)}`, { class: "state failed" }))),
  2, "no worker has ticked within the last hour");
  const throttled = fleet.rate.factor < 0.99;
  $("rate").textContent = `${fleet.rate.limit} upstream calls a second`
    + (throttled ? `, throttled to ${Math.round(fleet.rate.factor * 100)} %` : "");
  const alerts = Object.entries(fleet.circuits).map(([name, circuit]) =>
    alertOf(`Circuit ${name} is open (${circuit.kind}): ${circuit.message}`));
  if (fleet.clock_step) alerts.push(alertOf(`Set its machine's clock right: ${fleet.clock_step}.`));
  if (!fleet.workers.some((worker) => worker.alive)) alerts.push(alertOf("No worker is alive."));
  $("alerts").replaceChildren(...alerts);
  draw();
}

function draw() {
  const now = Date.now(), slots = 60, width = MINUTES * 60000 / slots;
  while (endings.length && endings[0][0] < now - MINUTES * 60000) endings.shift();
  const good = new Array(slots).fill(0), bad = new Array(slots).fill(0);
  for (const [at, name] of endings) {
    const slot = Math.max(0, slots - 1 - Math.floor((now - at) / width));
    (name === "failed" ? bad : good)[slot] += 1;
  }
  const most = Math.max(1, ...good.map((n, i) => n + bad[i]));
  const bars = [];
  for (let i = 0; i < slots; i += 1) {
    let top = 80;
    for (const [count, kind] of [[good[i], ""], [bad[i], "bad"]]) {
      const height = count / most * 76;
      if (!height) continue;
      top -= height;
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [n, v] of Object.entries({ x: i * 5 + 0.5, y: top, width: 4, height, class: kind })) bar.setAttribute(n, v);
      bars.push(bar);
    }
  }
  $("rates").replaceChildren(...bars);
  $("rates-text").textContent = `${endings.length} endings in the last ${MINUTES} minutes`;
}

async function failed() {
  const page = await read("/api/tasks?state=failed&state=partial&limit=10");
  fill("failed", page.tasks.map((task) => row(opener(task.task_id),
    [state(task.state, task.reason || task.state), make("div", task.error, { class: "dim" })],
    when(task.finished_at), action(task.task_id, "retry"))), 4, "nothing");
}

function action(id, name) {
  return make("button", name, { onclick: async (event) => {
    event.target.disabled = true;
    try {
      await api(`/api/tasks/${encodeURIComponent(id)}/${name}`, { method: "POST" });
      event.target.textContent = "asked for";
    } catch (error) { $("alerts").append(alertOf(error.message)); }
  } });
}

async function list(more = false) {
  const query = new URLSearchParams({ limit: "50" });
  if ($("state").value) query.set("state", $("state").value);
  if ($("label").value) query.set("label", $("label").value);
  if (more && next) query.set("cursor", next);
  const page = await read(`/api/tasks?${query}`);
  const rows = page.tasks.map((task) => row(opener(task.task_id),
    task.last_error ? [state(task.state), make("div", task.last_error, { class: "dim" })] : state(task.state), task.label,
    task.files ? `${task.files_stored} of ${task.files}` : "", when(task.finished_at || task.submitted_at)));
  if (more) $("list").tBodies[0].append(...rows);
  else fill("list", rows, 5, "no task");
  if (!seeded) {
    seeded = true;
    endings.unshift(...page.tasks.filter((task) => task.finished_at).map((task) => [task.finished_at, task.state]).reverse());
    draw();
  }
  next = page.next;
  $("more").hidden = !next;
}

// What happened to a task, as [milliseconds, words], oldest first.
function timeline(task) {
  const upstream = task.upstream || {}, files = (task.files || []).filter((file) => file.stored_at);
  const unix = (value) => { const number = Number(value); return number > 1e11 ? number : number * 1000; };
  const steps = [[task.submitted_at, task.run > 1 ? "handed in" : "submitted"],
    [unix(upstream.taskBeginTime), "began upstream"], [unix(upstream.taskEndTime), "ended upstream"]];
  if (files.length) steps.push([Math.max(...files.map((file) => file.stored_at)), files.length > 1 ? `${files.length} files in the bucket` : "file in the bucket"]);
  if (task.finished_at) steps.push([task.finished_at, [task.state, task.reason, task.error].filter(Boolean).join(" · ")]);
  else steps.push([task.updated_at, `asked ${task.polls} ${task.polls === 1 ? "time" : "times"} so far`]);
  if (task.last_error) steps.push([task.last_error_at, `could not go on · ${task.last_error}`]);
  for (const told of task.told) {
    const tries = `${told.channel} ${told.target}`;
    if (told.done_at) steps.push([told.done_at, told.last_error ? `gave up telling ${tries} · ${told.last_error}` : `told ${tries}`]);
    else if (told.attempts) steps.push([told.log.at(-1)?.at, `could not tell ${tries} · ${told.last_error}`]);
  }
  return steps.filter(([at]) => at > 0 && at < 8.64e15).sort((a, b) => a[0] - b[0]);
}

async function open(id) {
  try {
    const path = `/api/tasks/${encodeURIComponent(id)}`;
    const task = await read(path);
    $("task-title").replaceChildren(`${task.task_id} `, state(task.state));
    const actions = task.finished_at ? [] : ["cancel"];
    if (task.state === "waiting") actions.unshift("look");
    if (["failed", "partial"].includes(task.state)) actions.push("retry");
    if (task.finished_at && task.options.callbacks.length) actions.push("notify");
    $("task-actions").replaceChildren(...actions.map((name) => action(id, name)));
    $("timeline").replaceChildren(...timeline(task).map(([at, what]) =>
      make("li", [make("time", when(at), { datetime: new Date(at).toISOString(), class: "dim" }), ` ${what}`])));
    $("record").textContent = JSON.stringify(task, null, 2);
    $("gallery").replaceChildren();
    $("task").showModal();
    if ((task.files || []).some((file) => file.key)) gallery(await read(`${path}/urls`));
  } catch (error) { $("alerts").append(alertOf(error.message)); }
}

function gallery(answer) {
  $("gallery").replaceChildren(...answer.files.map((file) => {
    const kind = file.content_type.split("/")[0];
    const link = make("a", file.name, { href: file.url, rel: "noreferrer", target: "_blank" });
    const shown = kind === "image" && !file.content_type.includes("svg")
      ? [make("img", "", { src: file.url, alt: file.name, loading: "lazy" })]
      : ["video", "audio"].includes(kind) ? [make(kind, "", { src: file.url, controls: "", preload: "metadata" })] : [];
    return make("figure", [...shown, make("figcaption", [link, ` ${file.content_type}`])]);
  }));
}

// EventSource cannot send a token, so the stream is read by hand.
async function follow() {
  let last = "", stale = true;
  for (;;) {
    try {
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const reader = (await api("/api/events", { headers })).body.pipeThrough(new TextDecoderStream()).getReader();
      $("live").textContent = "live";
      $("sign-in").hidden = true;
      if (stale) { stale = false; refresh(); }
      for (let text = ""; ;) {
        const { value, done } = await reader.read();
        if (done) break;
        const parts = (text + value).split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          const fields = Object.fromEntries(part.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 2)]));
          if (fields.id) last = fields.id;
          if (fields.event === "stats") stats(JSON.parse(fields.data));
          if (fields.event === "final") { endings.push([Date.now(), JSON.parse(fields.data).state]); later(); }
          if (fields.event === "unavailable") $("live").textContent = "Redis is out of reach";
          else $("live").textContent = "live";
        }
      }
    } catch (error) { $("live").textContent = error.message; }
    stale = true;
    await new Promise((resolve) => { setTimeout(resolve, 2000); });
  }
}

let waiting = false;
function later() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => { waiting = false; refresh(); }, 1000);
}

function refresh() {
  failed().catch((error) => { $("live").textContent = error.message; });
  if ($("list").tBodies[0].rows.length <= 50) list().catch((error) => { $("live").textContent = error.message; });
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("token", token);
});
$("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("find").value.trim()) open($("find").value.trim());
  else list().catch((error) => $("alerts").append(alertOf(error.message)));
});
$("more").addEventListener("click", () => list(true));
$("task").addEventListener("close", () => $("gallery").replaceChildren());
follow();
