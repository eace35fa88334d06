// The page: its addresses and updates. `/` is the fleet, `/tasks?…` a list, `/tasks/ID` a task.
import { follow, signIn } from "./api.js";
import { afterwards } from "./actions.js";
import { afterwards as afterAll } from "./bulk.js";
import { $, complain, settle, taskPath, tick } from "./dom.js";
import * as fleet from "./fleet.js";
import * as list from "./list.js";
import * as task from "./task.js";
import { clock, t, translate } from "./words.js";

translate(document);

// -- addresses ------------------------------------------------------------------------------------
let behind = null; // the address of the view behind a task

function idOf(path) {
  if (!path.startsWith("/tasks/")) return null;
  try {
    return decodeURIComponent(path.slice(7)) || null;
  } catch {
    return path.slice(7); // not percent-encoded: shown as is, and not found
  }
}

function route({ focus = false } = {}) {
  if (!signedIn) return;
  const id = idOf(location.pathname);
  const under = id === null ? location.pathname + location.search : history.state?.behind || behind || "/tasks";
  if (under !== behind) {
    behind = under;
    const url = new URL(under, location.origin);
    $("title").textContent = url.pathname === "/tasks" ? t("Tasks") : t("Overview");
    document.body.dataset.view = url.pathname === "/tasks" ? "list" : "overview";
    for (const link of $("views").children) if (link.pathname === url.pathname) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    settle("list");
    list.open(url.pathname === "/tasks" ? url.search : "").catch((error) => complain("list", error));
    if (url.pathname !== "/tasks") figures();
    if (focus && id === null) (url.pathname === "/tasks" ? $("h-list") : $("title")).focus();
  }
  if ($("ask").open) $("ask").close();
  if (id === null) task.hide();
  else task.show(id);
  document.title = `${id || (behind === "/" ? t("Overview") : list.title())} · comfy-harvester`;
  fleet.tiles();
}

function go(address) {
  const inside = idOf(new URL(address, location.origin).pathname) !== null;
  history.pushState(inside ? { behind, inside: true } : null, "", address);
  route({ focus: true });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='/']");
  if (!link || link.target || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  if (link.pathname + link.search !== location.pathname + location.search) go(link.pathname + link.search);
  else if (behind !== "/") $("h-list").focus();
});
window.addEventListener("popstate", () => route({ focus: true }));
$("task").addEventListener("close", () => {
  if (task.showing() === null) return; // a change of address closed it
  task.hide();
  if (history.state?.inside) history.back();
  else { history.replaceState(null, "", behind); route(); }
});
$("filter").addEventListener("submit", (event) => {
  event.preventDefault();
  const address = list.address();
  if (address !== location.pathname + location.search) go(address);
  else { settle("list"); list.load().catch((error) => complain("list", error)); }
});
$("find-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("find").value.trim()) go(taskPath($("find").value.trim()));
});

// -- news -----------------------------------------------------------------------------------------
const REST = 3000; // milliseconds between two refreshes, at least
let signedIn = false, counted = "", refreshed = 0, planned = 0;

// A failed refresh shows no error: the connection's own trouble is shown, and the next refresh follows.
function figures() {
  fleet.endings().catch(() => {});
  fleet.failures().catch(() => {});
}

function refresh() {
  planned = 0;
  if (document.hidden) return;
  refreshed = Date.now();
  if (document.body.dataset.view === "overview") figures();
  list.news().catch(() => {});
}

function later() {
  if (!planned) planned = setTimeout(refresh, Math.max(300, refreshed + REST - Date.now()));
}

function live(text) {
  if ($("live").textContent !== text) $("live").textContent = text;
}

afterAll(later);
afterwards((id) => { later(); task.follow({ id }); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) later(); });
setInterval(tick, 1000);
setInterval(() => { if (signedIn && !document.hidden && document.body.dataset.view === "overview") figures(); }, 15_000);

function lost(error) {
  const redis = error.services?.redis; // a problem, or an event, that is about Redis
  const title = redis ? t("Redis is out of reach") : t("No connection to the fleet");
  live(title);
  fleet.connection({
    title, detail: redis ? redis.trouble : error.message, since: redis?.out_of_reach_since ?? clock.now(),
    remedy: redis ? t(redis.remedy) : t("Check that harvester web runs and can be reached from here."),
    meanwhile: redis ? t(redis.meanwhile) : t("The workers do not need this page and continue."),
  });
}

follow({
  opened() {
    if (!signedIn) {
      signedIn = true;
      $("sign-in").hidden = true;
      $("rest").hidden = $("views").hidden = $("find-form").hidden = false;
      route();
    } else later();
    fleet.connection(null);
    live(t("live"));
  },
  event(name, data) {
    if (name === "unavailable") lost(data);
    if (name !== "stats") { if (name === "final") { later(); task.follow({ id: data.task_id }); } return; }
    live(t("live"));
    fleet.show(data);
    task.follow();
    if (counted !== JSON.stringify(data.tasks)) { counted = JSON.stringify(data.tasks); later(); }
  },
  lost,
  refused(given) {
    signedIn = false;
    behind = null;
    task.hide();
    fleet.connection(null);
    live(t("signed out"));
    $("rest").hidden = $("views").hidden = $("find-form").hidden = true;
    $("sign-in").hidden = false;
    $("sign-in-fault").textContent = given ? t("The token is wrong.") : "";
    $("token").toggleAttribute("aria-invalid", given);
    $("token").focus();
  },
});

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  $("sign-in-fault").textContent = "";
  signIn($("token").value.trim());
});
