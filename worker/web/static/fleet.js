// The fleet: incidents, counts, endings, workers, and failures.
import { read } from "./api.js";
import { forAll } from "./bulk.js";
import { $, STATES, complain, draw, each, make, moment, opener, place, row, state, svg } from "./dom.js";
import { clock, exact, number, reason, span, t, table } from "./words.js";
import { action } from "./actions.js";
import { describe } from "./list.js";

// -- incidents: the worst one first and largest ---------------------------------------------------
const TITLES = table({
  "upstream": t("The upstream does not answer"), "upstream:credentials": t("The upstream refuses the app key"), "upstream:clock": t("The upstream refuses the workers' clocks"),
  "upstream:account": t("The upstream refuses the account"), "upstream:request": t("The upstream refuses every request"),
  "store": t("The store does not answer"), "store:store": t("The store refuses the workers"),
  "redis": t("Redis refuses writes"), "broker": t("The broker does not answer"), "webhooks": t("No webhook gets through"),
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
    found.push({ title: t("No worker is alive"), remedy: t("Start one: harvester worker"), meanwhile: t("Nothing is lost. Tasks are accepted and wait."),
      since: Math.max(0, ...fleet.workers.map((worker) => worker.last_tick)) });
  }
  const out = Object.entries(fleet?.services || {}).filter(([, service]) => service.out_of_reach_since);
  for (const [name, service] of out) {
    const title = TITLES[[name, service.kind].filter(Boolean).join(":")] ?? t("No call to the {name} can succeed", { name });
    const hosts = name === "webhooks" ? (fleet.webhook_hosts || []).map((one) => `${one.host}: ${one.trouble}`) : [];
    found.push({ title, detail: hosts.join(" · ") || service.trouble, remedy: t(service.remedy), since: service.out_of_reach_since,
      meanwhile: t(service.meanwhile), mild: name === "webhooks" });
  }
  if (fleet?.clock_step) found.push({ title: t("The clock of Redis has stepped"), detail: fleet.clock_step, remedy: t("Set its machine's clock (NTP)."), mild: true });
  draw("incidents", found, () => $("incidents").replaceChildren(...found.map((one, n) => make("section", [
    make(n ? "h3" : "h2", one.title),
    make("p", [
      one.since ? make("span", [t("began"), " ", moment(one.since)], { class: "since" }) : "",
      one.detail ? make("span", one.detail, { class: "detail" }) : "",
    ]),
    one.remedy ? make("p", [make("strong", `${t("What to do")}: `), one.remedy]) : "",
    one.meanwhile ? make("p", [make("strong", `${t("Meanwhile")}: `), one.meanwhile]) : "",
    one.asOf ? make("p", [t("The figures below are from"), " ", exact(one.asOf)]) : "",
  ], { class: `incident${n ? "" : " worst"}${one.mild ? " mild" : ""}` }))));
}

// -- figures --------------------------------------------------------------------------------------
const WORKERS = 20; // shown at most, silent ones first
const DUE = table({ poll: t("polling the upstream"), copy: t("copying"), fetch: t("fetching files"), tell: t("callbacks") });

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
    make("th", DUE[name] || name, { scope: "row" }), make("td", number(set.size), { class: "number" }),
    make("td", set.late_seconds < 1 ? t("no") : span(set.late_seconds), { class: `number${set.late_seconds > 60 ? " state failed" : ""}` }),
  ]))));
  const silent = fleet.workers.filter((worker) => !worker.alive), living = fleet.workers.filter((worker) => worker.alive);
  const workers = [...silent, ...living].slice(0, WORKERS).map((worker) => [worker.name, worker.alive, worker.alive ? 0 : worker.last_tick]);
  draw("workers", workers, () => $("workers").tBodies[0].replaceChildren(...(workers.length ? workers.map(([name, alive, last]) =>
    row(name, alive ? t("just now") : make("span", [t("silent; last seen"), " ", moment(last)], { class: "state failed" })))
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
const SHOWN = 5;
const filterOf = (group) => [["state", group.state], ["reason", group.reason], ["group", group.group]];

export async function failures() {
  const { groups, read: looked, of: all } = await read("/api/groups?state=failed&state=partial");
  const page = await read(`/api/tasks?state=failed&state=partial&limit=${SHOWN + 1}`);
  $("groups-note").textContent = all > looked ? t("Of the newest {count}:", { count: number(looked) }) : "";
  const shown = groups.map((group) => ({ ...group, error: page.tasks.length > SHOWN ? group.error : "" }));
  const key = (group) => `group ${group.state} ${group.reason} ${group.group}`;
  each($("groups"), shown, key, (group) => make("li", [
    make("strong", number(group.count), { class: "amount" }),
    make("div", [
      make("a", reason(group.reason), { href: `/tasks?${new URLSearchParams(filterOf(group))}` }), " ", group.reason ? make("code", group.reason) : "",
      make("p", [group.error, group.error ? " · " : "", moment(group.newest)], { class: "dim" }),
    ]),
    forAll("retry", () => filterOf(group), "groups", describe(new URLSearchParams(filterOf(group))), group.count),
  ]));
  const tasks = page.tasks.slice(0, SHOWN);
  $("h-latest").hidden = $("failed").hidden = !tasks.length;
  each($("failed").tBodies[0], tasks, (task) => task.task_id, (task) => row(opener(task.task_id),
    [state(task.state, reason(task.reason)), make("div", task.error, { class: "dim" }), place(`failed ${task.task_id}`)],
    moment(task.finished_at), action(task.task_id, "retry", `failed ${task.task_id}`)));
  if (!tasks.length) $("groups").replaceChildren(make("li", t("Nothing has failed."), { class: "empty" }));
}

$("span").addEventListener("change", () => endings().catch((error) => complain("page", error)));
