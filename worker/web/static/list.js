// The list of tasks. Its filter is in the page's address, so that Back, reload and links work.
import { read } from "./api.js";
import { $, STATES, complain, draw, each, make, moment, opener, place, row, settle, state, taskPath } from "./dom.js";
import { count, clock, number, reason, REASONS, t, table } from "./words.js";
import { forAll } from "./bulk.js";

const STEP = 50, MOST = 1000;
const WITHIN = table({ "1h": [3600e3, t("last hour")], "1d": [86400e3, t("last 24 hours")], "7d": [7 * 86400e3, t("last 7 days")] });
const PARTS = ["state", "reason", "label", "error", "within", "view", "group"];
const FIELDS = ["reason", "label", "error", "within", "view"]; // in the form; a group comes from a link
let filter = new URLSearchParams();
let tasks = [], next = null, loading = 0;

// The form, built once.
for (const name of STATES) {
  $("states").append(make("label", [make("input", "", { type: "checkbox", name: "state", value: name }), state(name)]));
}
$("reason").append(make("option", t("any"), { value: "" }), ...Object.keys(REASONS).map((name) => make("option", reason(name), { value: name })));
$("within").append(make("option", t("any time"), { value: "" }), ...Object.entries(WITHIN).map(([value, [, words]]) => make("option", words, { value })));

// Sets the form and the list to the filter in an address.
export function open(search) {
  filter = new URLSearchParams([...new URLSearchParams(search)].filter(([name, value]) => PARTS.includes(name) && (value || name === "group"))); // tasks without an error are a group too
  for (const box of $("states").querySelectorAll("input")) box.checked = filter.getAll("state").includes(box.value);
  for (const name of FIELDS) $(name).value = filter.get(name) || "";
  tasks = [];
  next = null;
  $("h-list").textContent = title();
  return load().catch((error) => {
    for (const name of ["list", "pictures", "more", "empty"]) $(name).hidden = true; // they show the previous filter
    throw error;
  });
}

export const address = () => {
  const chosen = new URLSearchParams([...$("states").querySelectorAll("input:checked")].map((box) => ["state", box.value]));
  for (const name of FIELDS) if ($(name).value.trim()) chosen.set(name, $(name).value.trim());
  return `/tasks${chosen.size ? "?" : ""}${chosen}`;
};

// A filter in words; empty if it passes everything.
export function describe(filter) {
  return [
    filter.getAll("state").map((name) => t(name)).join(` ${t("or")} `), filter.has("reason") && reason(filter.get("reason")),
    filter.has("label") && `${t("Label")} ${filter.get("label")}`, filter.has("error") && `“${filter.get("error")}”`, WITHIN[filter.get("within")]?.[1], filter.has("group") && t("one kind of error"),
  ].filter(Boolean).join(" · ");
}

export function title() {
  const words = describe(filter);
  return words ? `${t("Tasks")}: ${words}` : t("Newest tasks");
}

function wanted() {
  const asked = new URLSearchParams([...filter].filter(([name]) => !["within", "view"].includes(name)));
  const within = WITHIN[filter.get("within")];
  if (within) asked.set("since", String(Math.floor(clock.now() - within[0])));
  return asked;
}

// Reads the first page, or with `more` the one after the shown ones.
export async function load(more = false) {
  const turn = ++loading;
  const page = await read(`/api/tasks?${wanted()}&limit=${STEP}${more ? `&cursor=${encodeURIComponent(next)}` : ""}`);
  if (turn !== loading) return; // another filter was chosen meanwhile
  tasks = more ? [...tasks, ...page.tasks] : page.tasks;
  next = page.next;
  since = 0;
  show();
}

let since = 0; // endings that came while more than one page was shown
export function news() {
  if (tasks.length <= STEP) return load();
  since += 1;
  $("newer").replaceChildren(count(since, "{n} change since", "{n} changes since"), " ", make("button", t("Show the newest"), { type: "button", onclick: () => load().catch((error) => complain("list", error)) }));
  return Promise.resolve();
}

function show() {
  const pictures = filter.get("view") === "pictures";
  if (!since) $("newer").replaceChildren(next && tasks.length >= MOST ? t("Only the newest {n} are shown; a filter finds others.", { n: number(tasks.length) }) : "");
  $("h-list").textContent = title();
  $("list").hidden = pictures || !tasks.length;
  $("pictures").hidden = !pictures || !tasks.length;
  if (pictures) each($("pictures"), tasks, (task) => task.task_id, picture);
  else each($("list").tBodies[0], tasks, (task) => task.task_id, line);
  $("more").hidden = !next || tasks.length >= MOST;
  $("empty").hidden = tasks.length > 0;
  const plain = [...filter.keys()].every((name) => name === "view");
  $("empty").replaceChildren(...(plain && !next
    ? [make("p", t("No task yet. Submit one:")), make("code", "harvester submit ID")]
    : [make("p", next ? t("No task among those checked matches this filter.") : t("No task matches this filter."))]));
  const states = filter.getAll("state"), only = (...names) => states.length > 0 && states.every((name) => names.includes(name));
  const bulk = only("failed", "partial") || (!states.length && filter.has("reason")) ? "retry" : only("waiting", "copying") ? "cancel" : "";
  draw("list-actions", [bulk && tasks.length > 0, filter.toString()], ([shown]) => $("list-actions").replaceChildren(shown ? forAll(bulk, wanted, "list", describe(filter)) : ""));
}

function line(task) {
  const why = task.error || task.last_error;
  return row(opener(task.task_id),
    [state(task.state), task.reason ? [" ", make("a", reason(task.reason), { href: `/tasks?${new URLSearchParams({ reason: task.reason })}` })] : "",
      why ? make("div", why, { class: "dim" }) : ""].flat(),
    task.label ? make("a", task.label, { href: `/tasks?${new URLSearchParams({ label: task.label })}`, class: "plain" }) : "",
    task.files ? t("{stored} of {all}", { stored: number(task.files_stored), all: number(task.files) }) : "",
    moment(task.finished_at || task.submitted_at));
}

// -- pictures: fetched as they come into view, a few at a time ------------------------------------
const AT_ONCE = 4;
const waiting = [];
let running = 0;
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    waiting.push(entry.target);
  }
  pump();
}, { rootMargin: "300px" });

function pump() {
  while (running < AT_ONCE && waiting.length) {
    const frame = waiting.shift();
    if (!frame.isConnected) continue;
    running += 1;
    read(`/api/tasks/${encodeURIComponent(frame.dataset.id)}/urls`).then((answer) => fill(frame, answer.files))
      .catch((error) => { frame.textContent = error.message; })
      .finally(() => { running -= 1; pump(); });
  }
}

const typeOf = (file) => file.content_type || "";
const shows = (file) => typeOf(file).startsWith("image/") && !typeOf(file).includes("svg");
export function media(file, more = {}) {
  const kind = typeOf(file).split("/")[0];
  const note = () => make("span", more.told ? t("could not be loaded from {host}", { host: new URL(file.url, location).host }) : t("cannot be shown"), { class: "dim" });
  const gone = (event) => event.target.replaceWith(note());
  // this browser may also not support the format: the player stays
  const mute = (event) => event.target.after(note(), more.told ? t(", or cannot be played here") : "");
  if (shows(file)) return make("img", "", { src: file.url, alt: more.alt ?? file.name, loading: "lazy", decoding: "async", onerror: gone });
  if (kind === "video" || kind === "audio") return make(kind, "", { src: file.url, controls: more.controls ?? true, preload: more.preload || "metadata", "aria-label": file.name, tabindex: more.tabindex, onerror: mute });
  return null;
}

function fill(frame, files) {
  const first = files.find(shows) || files.find((file) => typeOf(file).startsWith("video/"));
  const shown = first && media(first, { alt: "", controls: false, tabindex: "-1" });
  frame.replaceChildren(shown || make("span", files[0] ? typeOf(files[0]) : "", { class: "dim" }));
}

function picture(task) {
  const frame = make("div", task.files_stored ? "" : t(task.state), { class: "frame", "data-id": task.task_id });
  if (task.files_stored) seen.observe(frame);
  const files = task.files ? t("{stored} of {all}", { stored: number(task.files_stored), all: number(task.files) }) : "";
  return make("li", [make("a", [frame, make("span", task.label || task.task_id, { class: "name" })], { href: taskPath(task.task_id), "aria-label": `${task.label} ${task.task_id}` }),
    make("p", [state(task.state), files ? ` ${files}` : "", " · ", moment(task.finished_at || task.submitted_at)], { class: "dim" })]);
}

$("more").addEventListener("click", () => { settle("list"); load(true).catch((error) => complain("list", error)); });
