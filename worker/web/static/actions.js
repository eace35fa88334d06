// Actions on one task; an error stays next to its button.
import { post } from "./api.js";
import { ask, complain, make, settle } from "./dom.js";
import { t } from "./words.js";

const WORDS = {
  retry: [t("Retry"), t("queued for retry")],
  cancel: [t("Cancel"), t("cancellation requested")],
  notify: [t("Send callbacks again"), t("callbacks queued")],
  look: [t("Poll now"), t("polled as soon as possible")],
};
let after = () => {};
export const afterwards = (call) => { after = call; };

export function action(id, name, spot) {
  const [label, done] = WORDS[name];
  const said = make("span", "", { role: "status", class: "dim" });
  const button = make("button", label, { type: "button", "data-action": name, onclick: async () => {
    if (button.getAttribute("aria-disabled")) return;
    const sure = name !== "cancel" || await ask(t("Cancel this task?"),
      t("{id} ends as failed, with the reason canceled. Files that are stored by then stay.", { id }), t("Cancel the task"));
    if (!sure) return;
    button.setAttribute("aria-disabled", "true");
    settle(spot);
    try {
      await post(`/api/tasks/${encodeURIComponent(id)}/${name}`);
      said.textContent = done;
      after(id);
    } catch (error) {
      button.removeAttribute("aria-disabled");
      complain(spot, error);
    }
  } });
  return make("span", [button, " ", said], { class: "action" });
}
