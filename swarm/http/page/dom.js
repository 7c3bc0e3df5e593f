// Elements from texts. Nothing here or anywhere reads markup: what strangers say can only become text.

/**
 * An element. `props`: `class`, `on` (listeners), `data`, `vars` (custom properties), anything else an attribute;
 * null and false leave one out. Children are nodes or texts.
 */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

const SVG = "http://www.w3.org/2000/svg";

/** The same of SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, hear] of Object.entries(value)) node.addEventListener(event, hear);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "vars") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The element with this id, which the page has. */
export const byId = (id) => document.getElementById(id);

/** Set a text, only where it is another: screen readers and selections are left alone else. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A button that copies what `text()` gives, and says so. */
export function copyButton(text, what, speech) {
  const button = el("button", { type: "button", class: "copy", "aria-label": `Copy ${what}` }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copy(text());
    button.textContent = done ? "Copied" : "Cannot copy";
    speech?.say(done ? `Copied ${what}` : "This browser does not let pages copy here");
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // by plain HTTP from another machine browsers give no clipboard
  }
}

function copyBySelection(text) {
  const area = el("textarea", { class: "unseen", readonly: true });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

/** Whether things may move. */
export const moves = () => !matchMedia("(prefers-reduced-motion: reduce)").matches;
