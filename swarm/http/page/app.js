// The page: puts its parts together.

import { Chat } from "./chat.js";
import { Commands } from "./commands.js";
import { byId, el, say } from "./dom.js";
import { Line } from "./line.js";
import { SwarmMap } from "./map.js";
import { News } from "./news.js";
import { Plots } from "./plots.js";
import { Settings } from "./settings.js";
import { Speech } from "./speech.js";
import { Swarm } from "./swarm.js";
import { clock, count, describe } from "./words.js";

const THEME = "swarm-theme";
const SPOKEN = new Set(["rerouted", "silent", "waiting", "joined"]);

function start() {
  const speech = new Speech(byId("said"));
  const line = new Line(askKey);
  const swarm = new Swarm();
  const settings = new Settings(byId("settings"), swarm);
  new SwarmMap(swarm, { map: byId("map"), verdict: byId("verdict"), holes: byId("holes") }, speech);
  new Plots(swarm, byId("plots"));
  new Commands(swarm, byId("commands"), () => line.key !== null, speech);
  const at = { turns: byId("turns"), form: byId("asking"), question: byId("question"), send: byId("send"), stop: byId("stop") };
  const chat = new Chat({ line, swarm, settings, speech, at });
  byId("new-chat").addEventListener("click", () => chat.clear());
  foldSettings();
  chooseTheme();
  chooseView();
  swarm.on("changed", () => showHead(swarm));
  swarm.on("happened", (event) => showEvents(swarm, event, speech));
  new News(line, (name, fields) => swarm.hear(name, fields), showLink);
}

/** The key that somebody gives; null, where they close the dialog. */
function askKey(wrong) {
  const dialog = byId("key-dialog");
  if (wrong) say(byId("key-why"), "That key was not taken. Whoever runs this server has it.");
  dialog.showModal();
  return new Promise((found) => {
    const form = byId("key-form");
    const given = (event) => {
      event.preventDefault();
      dialog.close(byId("key").value.trim());
    };
    form.addEventListener("submit", given);
    dialog.addEventListener("close", () => {
      form.removeEventListener("submit", given);
      byId("key").value = "";
      found(dialog.returnValue || null);
      dialog.returnValue = "";
    }, { once: true });
  });
}

function showHead(swarm) {
  const { model, nodes } = swarm;
  const name = swarm.status?.model?.name;
  if (!name) return say(byId("model"), "entering the swarm");
  const served = nodes.filter((node) => node.taken).length;
  const doing = swarm.status.doing;
  const parts = [name, model && count(model.layers, "layer"), count(served, "node"), model?.complete ? "complete" : "incomplete", doing.waiting && `${doing.waiting} in line`];
  say(byId("model"), parts.filter(Boolean).join(" · "));
}

function showLink(state, words) {
  byId("link").dataset.state = state;
  say(byId("link-words"), words);
}

function showEvents(swarm, newest, speech) {
  if (SPOKEN.has(newest.kind) && !newest.answers && !newest.past) speech.say(describe(newest).text);
  byId("happened").replaceChildren(...swarm.events.map((event) => {
    const { mark, tone, text, more } = describe(event);
    return el("li", { data: { tone } }, el("time", {}, clock(event.at)), el("span", { class: "mark", "aria-hidden": "true" }, mark),
      el("span", {}, text, more && el("small", {}, ` ${more}`)));
  }));
}

function foldSettings() {
  const button = byId("settings-open");
  button.addEventListener("click", () => {
    const open = (byId("settings").hidden = !byId("settings").hidden);
    button.setAttribute("aria-expanded", String(!open));
  });
}

function chooseTheme() {
  const choice = byId("theme");
  const set = () => (document.documentElement.dataset.theme = choice.value);
  choice.value = localStorage.getItem(THEME) ?? "auto";
  set();
  choice.addEventListener("change", () => {
    localStorage.setItem(THEME, choice.value);
    set();
  });
}

/** On a narrow screen one of both halves is seen. */
function chooseView() {
  const buttons = document.querySelectorAll("nav.views button");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      document.body.dataset.view = button.dataset.view;
      for (const each of buttons) each.setAttribute("aria-pressed", String(each === button));
    });
  }
}

start();
