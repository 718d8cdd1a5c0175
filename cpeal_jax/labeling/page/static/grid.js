// Many images at a time: all that the model takes for a class, to be confirmed,
// and all that have an answer, to be answered again.

import { ask, counted, percent, picture, sharpen } from "./link.js";

const AT_ONCE = 48;
const el = (id) => document.getElementById(id);
export const WORDS = { cannot_tell: "cannot tell", unusable: "none of these" };

function thumbnail(entry, text) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  image.loading = "lazy";
  image.alt = entry.id;
  image.addEventListener("load", sharpen);
  image.src = picture(entry.id, "small");
  button.type = "button";
  button.dataset.id = entry.id;
  button.title = entry.id;
  button.append(image, Object.assign(document.createElement("small"), { textContent: text }));
  return button;
}

function fill(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map(([value, text]) => new Option(text, value)));
  if (names.some(([value]) => value === before)) select.value = before;
}

export class Check {
  constructor(link, say) {
    this.link = link;
    this.say = say;
    this.offset = 0;
    el("check-class").addEventListener("change", () => this.load(0));
    el("check-more").addEventListener("click", () => this.load(this.offset + AT_ONCE));
    el("confirm").addEventListener("click", () => this.confirm());
    el("check-images").addEventListener("click", (event) => this.toggle(event.target.closest("button")));
  }

  open(batch) {
    fill(el("check-class"), batch.classes.map((name) => [name, name]));
    this.load(0);
  }

  async load(offset) {
    const name = el("check-class").value;
    const { content } = await ask(`grid?class=${encodeURIComponent(name)}&offset=${offset}&count=${AT_ONCE}`);
    // Another class may have been chosen in the meantime.
    if (!content?.images || name !== el("check-class").value) return;
    if (offset && !content.images.length) return this.load(0);
    this.offset = offset;
    this.name = name;
    el("check-images").replaceChildren(...content.images.map((entry) => {
      const button = thumbnail(entry, `${percent(entry.confidence)} %`);
      button.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-label", `${entry.id} is wrong`);
      return button;
    }));
    const last = offset + content.images.length;
    el("check-count").textContent = content.total ? `${offset + 1} to ${last} of ${content.total}, the surest first` : "None at the moment.";
    el("check-more").disabled = content.total <= AT_ONCE;
    this.count();
  }

  buttons() {
    return [...el("check-images").children];
  }

  right() {
    return this.buttons().filter((button) => button.getAttribute("aria-pressed") === "false");
  }

  count() {
    const count = this.right().length;
    el("confirm").textContent = `Confirm ${count} as ${this.name}`;
    el("confirm").disabled = !count;
  }

  toggle(button) {
    if (!button) return;
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
    this.count();
  }

  // Those that are marked as wrong stay without an answer, so that they may be
  // asked about later.
  confirm() {
    const right = this.right();
    for (const button of right) {
      this.link.send({ op: "answer", grid: true, id: button.dataset.id, label: this.name, seen: null });
    }
    this.say(`${counted(right.length, "image is", "images are")} confirmed as ${this.name}.`);
    // The next ones are asked for when these are saved.
    const wait = setInterval(() => {
      if (this.link.queue.length) return;
      clearInterval(wait);
      this.load(this.offset);
    }, 100);
  }

  onKey(event) {
    const buttons = this.buttons();
    const place = buttons.indexOf(document.activeElement);
    const row = getComputedStyle(el("check-images")).gridTemplateColumns.split(" ").length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row };
    if (!(event.key in steps) || event.target.matches("select")) return;
    event.preventDefault();
    const target = place < 0 ? 0 : Math.min(Math.max(place + steps[event.key], 0), buttons.length - 1);
    buttons[target]?.focus();
  }
}

export class Answers {
  // `choose` is called with an image that the person wants to answer again.
  constructor(choose) {
    this.choose = choose;
    el("answers-class").addEventListener("change", () => this.load(0));
    el("answers-more").addEventListener("click", () => this.load(el("answers-images").children.length));
  }

  open(batch) {
    const names = batch.classes.map((name) => [name, name]);
    fill(el("answers-class"), [["", "of all classes"], ...names, ...Object.entries(WORDS)]);
    this.load(0);
  }

  async load(offset) {
    const name = el("answers-class").value;
    const { content } = await ask(`answered?class=${encodeURIComponent(name)}&offset=${offset}&count=${AT_ONCE}`);
    if (!content?.images) return;
    const buttons = content.images.map((entry) => this.button(entry));
    if (offset) el("answers-images").append(...buttons);
    else el("answers-images").replaceChildren(...buttons);
    const count = el("answers-images").children.length;
    el("answers-count").textContent = `${count} of ${content.total}, the last first`;
    el("answers-more").hidden = count >= content.total;
  }

  button(entry) {
    const answer = entry.label ?? WORDS[entry.kind];
    const button = thumbnail(entry, answer);
    button.setAttribute("aria-label", `${entry.id}: ${answer}`);
    button.addEventListener("click", () => this.choose(entry));
    return button;
  }

  // Goes back to an image, which has another answer now if one is given. The
  // others stay where they are, so that a series of them can be corrected.
  back(entry, value) {
    let button = [...el("answers-images").children].find((other) => other.dataset.id === entry.id);
    if (button && value) {
      const changed = this.button({ id: entry.id, round: entry.round, ...value });
      button.replaceWith(changed);
      button = changed;
    }
    button?.focus();
  }
}
