// Actions on many tasks at once: counted first, then confirmed, then done in steps.
import { post } from "./api.js";
import { ask, complain, make, say, settle } from "./dom.js";
import { count, number, t } from "./words.js";

const STEPS = 2000; // calls at most, of 500 tasks each
const WORDS = {
  retry: {
    label: t("Retry all"), title: (n) => count(n, "Retry {n} task?", "Retry {n} tasks?"),
    text: t("Each starts again as a new run and keeps the files it has. Tasks that fail from now on are not affected."),
    done: (n) => count(n, "{n} task queued for retry", "{n} tasks queued for retry"),
  },
  cancel: {
    label: t("Cancel all"), title: (n) => count(n, "Cancel {n} task?", "Cancel {n} tasks?"),
    text: t("They end as failed, with the reason canceled. Files that are stored by then stay."),
    done: (n) => count(n, "cancellation of {n} task requested", "cancellation of {n} tasks requested"),
  },
};
let after = () => {};
export const afterwards = (call) => { after = call; };

// A button that does `name` to all tasks of a filter, which `about` describes. Pressing it calls `filter`.
export function forAll(name, filter, spot, about, amount = null) {
  const words = WORDS[name];
  const label = amount === null ? words.label : `${words.label} (${number(amount)})`;
  const button = make("button", label, { type: "button", "data-bulk": name, onclick: async () => {
    if (button.getAttribute("aria-disabled")) return;
    button.setAttribute("aria-disabled", "true");
    settle(spot);
    try {
      await run(name, filter(), spot, about);
    } catch (error) {
      complain(spot, error);
    }
    button.removeAttribute("aria-disabled");
  } });
  return make("span", button, { class: "action" });
}

async function run(name, filter, spot, about) {
  const call = async (more) => (await post(`/api/bulk/${name}?${new URLSearchParams([...filter, ...Object.entries(more)])}`)).json();
  const plan = await call({ dry_run: "true" });
  if (!plan.done) return say(spot, t("nothing to do"));
  const sure = await ask(WORDS[name].title(plan.done) + (plan.next ? ` ${t("There are more, which are included.")}` : ""), `${about}. ${WORDS[name].text}`, WORDS[name].label);
  if (!sure) return undefined;
  let done = 0, left = 0, cursor = null;
  try {
    for (let step = 0; step < STEPS; step += 1) {
      const answer = await call({ until: String(plan.until), ...(cursor ? { cursor } : {}) });
      done += answer.done;
      left += Object.values(answer.not_done || {}).reduce((all, one) => all + one, 0);
      say(spot, [WORDS[name].done(done), left && count(left, "{n} could not be", "{n} could not be")].filter(Boolean).join(" · "));
      if (!answer.next || answer.next === cursor) break;
      cursor = answer.next;
    }
  } finally {
    after();
  }
  return undefined;
}
