// The fleet: incidents, counts, endings, workers, and failures.
import { read } from "./api.js";
import { forAll } from "./bulk.js";
import { $, STATES, complain, draw, each, make, moment, opener, place, row, state, svg } from "./dom.js";
import { clock, exact, number, reason, span, t, table } from "./words.js";
import { action } from "./actions.js";
import { describe } from "./list.js";

// -- incidents: the worst one first and largest ---------------------------------------------------
const RESTART = () => t("Correct the settings and restart the workers; harvester doctor checks each step.");
const CIRCUITS = table({
  "upstream:credentials": () => [t("The upstream refuses the app key"), t("Correct SPEEDPIX_APP_KEY or SPEEDPIX_APP_SECRET, then restart the workers.")],
  "upstream:clock": () => [t("The upstream refuses the workers' clocks"), t("Set the workers' clocks (NTP).")],
  "upstream:account": () => [t("The upstream refuses the account"), t("It is overdue, out of quota or barred: settle it with the vendor.")],
  "upstream:request": () => [t("The upstream refuses every request"), t("Check SPEEDPIX_ENDPOINT.")],
  "store:store": () => [t("The store refuses the workers"), RESTART()],
});
const SILENT = table({
  upstream: () => [t("The upstream does not answer"), t("Check SPEEDPIX_ENDPOINT and the network; the fleet recovers by itself.")],
  store: () => [t("The store does not answer"), t("Check AWS_ENDPOINT_URL_S3, the network and the store's own log.")],
  redis: () => [t("Redis refuses writes"), t("Start it, make room in it, or correct REDIS_URL.")],
  broker: () => [t("The broker does not answer"), t("Start it, or correct CELERY_BROKER_URL.")],
  webhooks: () => [t("No webhook gets through"), t("Ask the owners of the hosts.")],
});
const MEANWHILE = table({
  upstream: () => t("No task ends because of this. Files whose addresses are known are still copied."),
  store: () => t("No task ends because of this. The upstream is still polled; files and endings wait."),
  redis: () => t("No task ends. No task is accepted, and no work begins."),
  broker: () => t("Polling, copying and webhooks continue. Celery messages and replies wait."),
  webhooks: () => t("Everything else continues. Each webhook is retried for three days."),
  workers: () => t("Nothing is lost. Tasks are accepted and wait."),
});

// Sets the connection's trouble, or null.
let trouble = null;
export function connection(problem) {
  trouble = problem && { ...problem, since: trouble?.since ?? problem.since };
  document.body.classList.toggle("stale", Boolean(trouble));
  incidents(latest);
}

let latest = null;
function incidents(known) {
  const fleet = trouble ? null : known; // earlier troubles are outdated
  const found = trouble ? [{ ...trouble, asOf: known?.now }] : [];
  if (fleet && !fleet.workers.some((worker) => worker.alive)) {
    found.push({ title: t("No worker is alive"), remedy: t("Start one: harvester worker"), meanwhile: MEANWHILE.workers(),
      since: Math.max(0, ...fleet.workers.map((worker) => worker.last_tick)) });
  }
  const out = Object.entries(fleet?.services || {}).filter(([, service]) => service.out_of_reach_since);
  for (const [name, service] of out) {
    const [title, remedy] = (service.kind ? CIRCUITS[`${name}:${service.kind}`] : SILENT[name])?.()
      || [t("No call to the {name} can succeed", { name }), service.remedy];
    const hosts = name === "webhooks" ? (fleet.webhook_hosts || []).map((one) => `${one.host}: ${one.trouble}`) : [];
    found.push({ title, detail: hosts.join(" · ") || service.trouble, remedy, since: service.out_of_reach_since,
      meanwhile: MEANWHILE[name]?.() || service.meanwhile, mild: name === "webhooks" });
  }
  if (fleet?.clock_step) found.push({ title: t("The clock of Redis has stepped"), detail: fleet.clock_step, remedy: t("Set its machine's clock (NTP)."), mild: true });
  draw("incidents", found, () => $("incidents").replaceChildren(...found.map((one, n) => make("section", [
    make(n ? "h3" : "h2", one.title),
    make("p", [
      one.since ? make("span", [t("since"), " ", moment(one.since)], { class: "since" }) : "",
      one.detail ? make("span", one.detail, { class: "detail" }) : "",
    ]),
    one.remedy ? make("p", [make("strong", `${t("What to do")}: `), one.remedy]) : "",
    one.meanwhile ? make("p", [make("strong", `${t("Meanwhile")}: `), one.meanwhile]) : "",
    one.asOf ? make("p", [t("The figures below are from"), " ", exact(one.asOf)]) : "",
  ], { class: `incident${n ? "" : " worst"}${one.mild ? " mild" : ""}` }))));
}

// -- figures --------------------------------------------------------------------------------------
const WORKERS = 20; // shown at most, silent ones first
const DUE = table({ poll: () => t("polling the upstream"), copy: () => t("copying"), fetch: () => t("fetching files"), tell: () => t("callbacks") });

export function show(fleet) {
  latest = fleet;
  document.body.classList.toggle("reader", fleet.may_act === false); // a read-only token
  trouble = null;
  document.body.classList.remove("stale");
  clock.set(fleet.now);
  tiles();
  figures(fleet);
  incidents(fleet);
}

// Counts link to their lists; the shown one is marked.
export function tiles() {
  if (!latest) return;
  const fleet = latest, asked = new URLSearchParams(location.search).getAll("state").join();
  draw("counts", [fleet.tasks, location.pathname, asked], () => $("counts").replaceChildren(...STATES.map((name) => make("li",
    make("a", [make("strong", number(fleet.tasks[name])), make("span", t(name))], {
      href: `/tasks?state=${name}`, class: "tile",
      "aria-current": location.pathname === "/tasks" && asked === name ? "true" : undefined,
    }), { class: name, id: `count-${name}` }))));
}

function figures(fleet) {
  draw("due", fleet.due, () => $("due").tBodies[0].replaceChildren(...Object.entries(fleet.due).map(([name, set]) => make("tr", [
    make("th", DUE[name]?.() || name, { scope: "row" }), make("td", number(set.size), { class: "number" }),
    make("td", set.late_seconds < 1 ? t("no") : span(set.late_seconds), { class: `number${set.late_seconds > 60 ? " state failed" : ""}` }),
  ]))));
  const silent = fleet.workers.filter((worker) => !worker.alive), living = fleet.workers.filter((worker) => worker.alive);
  const workers = [...silent, ...living].slice(0, WORKERS).map((worker) => [worker.name, worker.alive, worker.alive ? 0 : worker.last_tick]);
  draw("workers", workers, () => $("workers").tBodies[0].replaceChildren(...(workers.length ? workers.map(([name, alive, last]) =>
    row(name, alive ? t("just now") : make("span", [t("silent since"), " ", moment(last)], { class: "state failed" })))
    : [make("tr", make("td", t("no worker has ticked within the last hour"), { colspan: 2, class: "empty" }))])));
  const rate = `${t("{alive} alive, {silent} silent", { alive: number(living.length), silent: number(silent.length) })} · ` + t("{rate} upstream calls a second", { rate: number(fleet.rate.limit) })
    + (fleet.rate.factor < 0.99 ? `, ${t("throttled to {percent} %", { percent: Math.round(fleet.rate.factor * 100) })}` : "");
  if ($("rate").textContent !== rate) $("rate").textContent = rate;
}

// -- endings, counted by the server ---------------------------------------------------------------
const HEIGHT = 80, ENDED = ["stored", "partial", "failed"];

export async function endings() {
  const found = await read(`/api/endings?minutes=${$("span").value}`);
  draw("endings", [found.begin, found.step, found.counts], () => {
    const slots = found.counts.stored.map((_, n) => ENDED.map((name) => found.counts[name][n]));
    const sum = (counts) => counts.reduce((all, one) => all + one, 0);
    const most = Math.max(1, ...slots.map(sum)), width = 300 / slots.length;
    const bars = [];
    slots.forEach((counts, n) => {
      let top = HEIGHT;
      ENDED.forEach((name, kind) => {
        if (!counts[kind]) return;
        const height = Math.max(1.5, counts[kind] / most * (HEIGHT - 4));
        top -= height;
        const bar = svg("rect", { x: n * width + 0.5, y: Math.max(0, top), width: width - 1, height, class: name });
        const title = svg("title", {});
        title.textContent = `${exact(found.begin + n * found.step)}: ${number(counts[kind])} ${t(name)}`;
        bar.append(title);
        bars.push(bar);
      });
    });
    $("rates").replaceChildren(...bars);
    $("axis").replaceChildren(make("span", exact(found.begin, true)), make("span", t("at most {most} in one bar", { most: number(most) })), make("span", t("now")));
    const totals = ENDED.map((name) => [name, sum(found.counts[name])]).filter(([, total]) => total);
    const words = $("span").selectedOptions[0].textContent;
    $("rates-text").textContent = totals.length
      ? `${words}: ${totals.map(([name, total]) => `${number(total)} ${t(name)}`).join(", ")}`
      : `${words}: ${t("no task ended")}`;
  });
}

// -- what failed ----------------------------------------------------------------------------------
const NEWEST = 200, SHOWN = 5;
const filterOf = (group) => [
  ...(group.state ? [group.state] : ["failed", "partial"]).map((name) => ["state", name]), ["reason", group.reason], ...(group.group === undefined ? [] : [["group", group.group]]),
];

// Counted by the server; if it cannot, `among` counts the newest.
async function counted() {
  try {
    return await read("/api/groups?state=failed&state=partial");
  } catch (error) {
    if (error.status !== 404) throw error;
    return null;
  }
}

function among(page) {
  const groups = new Map();
  for (const task of page.tasks) {
    const group = groups.get(task.reason) || { reason: task.reason, count: 0, newest: task.finished_at, error: task.error };
    group.count += 1;
    groups.set(task.reason, group);
  }
  return { groups: [...groups.values()].sort((a, b) => b.count - a.count), read: page.tasks.length, of: page.next ? Infinity : 0 };
}

export async function failures() {
  const answer = await counted();
  const page = await read(`/api/tasks?state=failed&state=partial&limit=${answer ? SHOWN + 1 : NEWEST}`);
  const { groups, read: looked, of: all, until } = answer || among(page);
  $("groups-note").textContent = all > looked ? t("Of the newest {count}:", { count: number(looked) }) : "";
  const shown = groups.map((group) => ({ ...group, error: page.tasks.length > SHOWN ? group.error : "" }));
  const key = (group) => `group ${group.state} ${group.reason} ${group.group}`;
  each($("groups"), shown, key, (group) => make("li", [
    make("strong", number(group.count), { class: "amount" }),
    make("div", [
      make("a", reason(group.reason), { href: `/tasks?${new URLSearchParams(filterOf(group))}` }), " ", group.reason ? make("code", group.reason) : "",
      make("p", [group.error, group.error ? " · " : "", moment(group.newest)], { class: "dim" }),
    ]),
    until ? forAll("retry", () => filterOf(group), "groups", describe(new URLSearchParams(filterOf(group))), group.count) : "",
  ]));
  const tasks = page.tasks.slice(0, SHOWN);
  $("h-latest").hidden = $("failed").hidden = !tasks.length;
  each($("failed").tBodies[0], tasks, (task) => task.task_id, (task) => row(opener(task.task_id),
    [state(task.state, reason(task.reason)), make("div", task.error, { class: "dim" }), place(`failed ${task.task_id}`)],
    moment(task.finished_at), action(task.task_id, "retry", `failed ${task.task_id}`)));
  if (!tasks.length) $("groups").replaceChildren(make("li", t("Nothing has failed."), { class: "empty" }));
}

$("span").addEventListener("change", () => endings().catch((error) => complain("page", error)));
