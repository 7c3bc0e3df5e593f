// Markdown as models write it, made into nodes: no markup of theirs is ever read as such. What is not understood
// stays as it was written. Time grows with the text alone, whatever it is: hostile texts come here.

import { copyButton, el } from "./dom.js";

const DEEPEST = 6; // lists and quotes in one another
const LINK_CHARS = 2000;

/** A place that shows a text which may grow: blocks that did not change keep their nodes. */
export class Prose {
  #node;
  #shown = []; // {source, node}

  constructor(node) {
    this.#node = node;
  }

  show(text) {
    const blocks = blocksOf(text.split("\n"), 0);
    let same = 0;
    while (same < blocks.length && this.#shown[same]?.source === blocks[same].source) same++;
    for (const { node } of this.#shown.splice(same)) node.remove();
    for (const block of blocks.slice(same)) {
      const node = build(block);
      this.#node.append(node);
      this.#shown.push({ source: block.source, node });
    }
  }
}

// -- blocks: {kind, source, ...}

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]{0,30})/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}(?:-\s*-\s*-[-\s]*|\*\s*\*\s*\*[*\s]*|_\s*_\s*_[_\s]*)$/;
const ITEM = /^( *)(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?$/; // of a trimmed line

function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [block, next] = blockAt(lines, at, depth);
    blocks.push({ ...block, source: `${block.kind}\n${lines.slice(at, next).join("\n")}` });
    at = next;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  let found;
  if ((found = FENCE.exec(line))) return fenced(lines, at, found);
  if ((found = HEADING.exec(line))) return [{ kind: "heading", level: found[1].length, text: found[2] }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < DEEPEST && QUOTE.test(line)) return quoted(lines, at, depth);
  if (depth < DEEPEST && ITEM.test(line)) return listed(lines, at, depth);
  if (line.includes("|") && TABLE_RULE.test((lines[at + 1] ?? "").trim())) return tabled(lines, at);
  return paragraph(lines, at);
}

function fenced(lines, at, [, mark, language]) {
  let end = at + 1;
  while (end < lines.length && !lines[end].trim().startsWith(mark)) end++;
  return [{ kind: "code", language, text: lines.slice(at + 1, end).join("\n") }, end + 1];
}

function quoted(lines, at, depth) {
  let end = at;
  const inner = [];
  for (let found; end < lines.length && (found = QUOTE.exec(lines[end])); end++) inner.push(found[1]);
  return [{ kind: "quote", blocks: blocksOf(inner, depth + 1) }, end];
}

function listed(lines, at, depth) {
  const [, margin, , number] = ITEM.exec(lines[at]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const found = ITEM.exec(lines[end]);
    if (found && found[1].length <= margin.length + 1) {
      if ((found[3] === undefined) !== (number === undefined)) break;
      items.push([found[4]]);
    } else if (lines[end].trim() === "") {
      const after = lines[end + 1] ?? "";
      if (!after.startsWith(" ".repeat(margin.length + 2)) && !ITEM.test(after)) break;
      items.at(-1).push("");
    } else if (found || lines[end].startsWith(" ".repeat(margin.length + 2))) {
      items.at(-1).push(lines[end].slice(Math.min(margin.length + 2, lines[end].search(/\S/))));
    } else break;
    end++;
  }
  const blocks = items.map((item) => blocksOf(item, depth + 1));
  return [{ kind: "list", start: number === undefined ? null : Number(number), items: blocks }, end];
}

function tabled(lines, at) {
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const rows = [lines[at], ...lines.slice(at + 2, end)].map((line) =>
    line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map((cell) => cell.trim()),
  );
  return [{ kind: "table", rows }, end];
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines[end])) end++;
  return [{ kind: "text", text: lines.slice(at, end).join("\n") }, end];
}

const begins = (line) => FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || ITEM.test(line);

// -- nodes of blocks

function build(block) {
  switch (block.kind) {
    case "code":
      return code(block);
    case "heading": // the page's own headings go down to the second level
      return el(`h${Math.min(6, block.level + 2)}`, {}, ...inline(block.text));
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", {}, ...block.blocks.map(build));
    case "list":
      return list(block);
    case "table":
      return table(block.rows);
    default:
      return el("p", {}, ...inline(block.text));
  }
}

function code({ language, text }) {
  const shown = el("pre", { tabindex: "0", role: "region", "aria-label": language ? `Code in ${language}` : "Code" }, el("code", {}, text));
  return el("div", { class: "code" }, el("div", { class: "code-bar" }, el("span", {}, language), copyButton(() => text, "the code")), shown);
}

function list({ start, items }) {
  const made = items.map((blocks) => el("li", {}, ...(blocks.length === 1 && blocks[0].kind === "text" ? inline(blocks[0].text) : blocks.map(build))));
  return start === null ? el("ul", {}, ...made) : el("ol", { start: start === 1 ? null : start }, ...made);
}

function table([head, ...rows]) {
  const row = (cells, tag) => el("tr", {}, ...head.map((_, index) => el(tag, tag === "th" ? { scope: "col" } : {}, ...inline(cells[index] ?? ""))));
  return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" },
    el("table", {}, el("thead", {}, row(head, "th")), el("tbody", {}, ...rows.map((cells) => row(cells, "td")))));
}

// -- within a line: code, strong, emphasis, struck, links

const MARK = /`+|\*\*|__|~~|\*|_|\[|\\[\\`*_~[\]#|>-]|https?:\/\/[^\s<>()"'`*]+/g;
const TAGS = { "**": "strong", __: "strong", "~~": "s", "*": "em", _: "em" };

function inline(text, depth = 0) {
  const nodes = [];
  const hopeless = new Set(); // marks that nothing closes from here on
  let from = 0;
  MARK.lastIndex = 0;
  for (let found; (found = nextMark(text, from, nodes)); ) {
    const [node, next] = span(text, found, depth, hopeless) ?? [found[0], found.index + found[0].length];
    nodes.push(node);
    from = next;
  }
  return nodes;
}

/** The next mark; the text before it is kept as it is. */
function nextMark(text, from, nodes) {
  MARK.lastIndex = from;
  const found = MARK.exec(text);
  const plain = text.slice(from, found ? found.index : undefined);
  if (plain) nodes.push(plain);
  return found;
}

function span(text, found, depth, hopeless) {
  const mark = found[0];
  const inside = found.index + mark.length;
  if (mark[0] === "\\") return [mark[1], inside];
  if (mark.startsWith("http")) return [link(mark, [mark]), inside];
  if (mark === "[") return linked(text, inside, hopeless);
  if (hopeless.has(mark) || !opens(text, found, mark)) return null;
  const end = text.indexOf(mark, inside);
  if (end < 0) hopeless.add(mark);
  if (end <= inside) return null;
  const inner = text.slice(inside, end);
  if (mark[0] === "`") return [el("code", {}, inner.trim() || inner), end + mark.length];
  if (/\s$/.test(inner) || depth >= DEEPEST) return null;
  return [el(TAGS[mark], {}, ...inline(inner, depth + 1)), end + mark.length];
}

function opens(text, found, mark) {
  if (mark[0] === "`") return true;
  if (/\s|^$/.test(text[found.index + mark.length] ?? "")) return false;
  return mark[0] !== "_" || !/\w/.test(text[found.index - 1] ?? "");
}

function linked(text, inside, hopeless) {
  if (hopeless.has("[")) return null;
  const middle = text.indexOf("](", inside);
  const end = middle < 0 ? -1 : text.indexOf(")", middle);
  if (end < 0) {
    hopeless.add("[");
    return null;
  }
  const address = text.slice(middle + 2, end);
  const words = text.slice(inside, middle);
  if (words.includes("[") || address.length > LINK_CHARS || !/^https?:\/\/\S+$/.test(address)) return null;
  return [link(address, [words]), end + 1];
}

/** A link, with the host that it leads to where its words are others: a model may say one thing and mean another. */
function link(address, words) {
  let host;
  try {
    host = new URL(address).host;
  } catch {
    return address;
  }
  const more = words[0].includes(host) ? null : el("span", { class: "host" }, ` (${host})`);
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...words, more);
}
