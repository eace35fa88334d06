// Nodes, and errors that stay in their place. Text only: no data is parsed as HTML.
import { ago, exact, t } from "./words.js";

export const $ = (id) => document.getElementById(id);
export const STATES = ["waiting", "copying", "stored", "partial", "failed"];

export function make(tag, content, more = {}) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(more)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...[content ?? ""].flat());
  return node;
}

export const svg = (tag, more) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(more)) node.setAttribute(name, value);
  return node;
};

export const row = (...cells) => make("tr", cells.map((cell) => make("td", cell)));
export const state = (name, text = t(name)) =>
  make("span", text, { class: `state ${STATES.includes(name) ? name : ""}` });
export const taskPath = (id) => `/tasks/${encodeURIComponent(id)}`;
export const opener = (id) => make("a", id, { class: "id", href: taskPath(id) });

// A relative time, with the absolute one on hover; `tick` keeps it up to date.
export function moment(ms) {
  if (!(ms > 0 && ms < 8.64e15)) return "";
  return make("time", ago(ms), { datetime: new Date(ms).toISOString(), title: exact(ms), class: "ago", "aria-live": "off" });
}

export function tick() {
  for (const node of document.querySelectorAll("time.ago")) {
    const text = ago(Date.parse(node.dateTime));
    if (node.textContent !== text) node.textContent = text;
  }
}

// Redraws only what has changed, which keeps focus and selection, and does not disturb screen readers.
const drawn = new Map();
export function draw(name, data, render) {
  const text = JSON.stringify(data);
  if (drawn.get(name) === text) return;
  drawn.set(name, text);
  render(data);
}
export const forget = (name) => drawn.delete(name);

// Puts one node for each item into `parent`, and keeps the nodes of unchanged items.
const kept = new WeakMap();
export function each(parent, items, key, render) {
  const before = kept.get(parent) || new Map(), now = new Map();
  const nodes = items.map((item) => {
    const text = JSON.stringify(item), old = before.get(key(item));
    const node = old && old.text === text ? old.node : render(item);
    now.set(key(item), { text, node });
    return node;
  });
  kept.set(parent, now);
  if (parent.children.length !== nodes.length || nodes.some((node, n) => parent.children[n] !== node)) {
    const focused = parent.contains(document.activeElement) ? document.activeElement : null;
    parent.replaceChildren(...nodes);
    if (focused) (parent.contains(focused) ? focused : parent.closest("section").querySelector("h2")).focus({ preventScroll: true });
  }
}

// -- errors: each in the place where it happened, until someone dismisses it ---------------------------
const MOST = 50;
const faults = new Map();

export function place(name) {
  return make("div", faults.has(name) ? faults.get(name) : "", { "data-place": name });
}

export const complain = (name, error) => say(name, error.message || String(error), true);

// Shows a message in its place; each place shows one at a time.
export function say(name, text, wrong = false) {
  const spot = [...document.querySelectorAll("[data-place]")].find((node) => node.dataset.place === name);
  const close = make("button", "×", { type: "button", "aria-label": t("Dismiss"), onclick: () => settle(name) });
  const node = make("p", [make("span", text), close], { class: wrong ? "fault" : "note", role: wrong ? "alert" : "status" });
  settle(name);
  if (faults.size >= MOST) settle(faults.keys().next().value);
  faults.set(name, node);
  (spot || document.querySelector("[data-place=page]")).append(node);
}

export function settle(name) {
  faults.get(name)?.remove();
  faults.delete(name);
}

// -- questions ------------------------------------------------------------------------------------
export function ask(title, text, yes) {
  const dialog = $("ask");
  if (dialog.open) return Promise.resolve(false);
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
