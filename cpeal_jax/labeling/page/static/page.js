// One image at a time. What the person does is shown at once, sent in order, and
// shown again if the server does not take it.

import { Link, ask, counted, percent, picture, sharpen } from "./link.js";
import { Answers, Check, WORDS } from "./grid.js";

const KEYS = "1234567890";
const AHEAD = 6; // Images that are loaded before they are shown.
const LONGEST_PAUSE = 60; // Seconds; longer ones are no time spent on an image.
const HIDDEN = "Shown without a suggestion, so that the answer is yours alone.";
// What a stage of the run is called here, by how its name begins.
const STAGES = {
  "read": "Reading the images",
  "decode": "Preparing the images",
  "encode": "Encoding the images",
  "neighbors": "Comparing the images with each other",
  "score": "Predicting the classes of the images",
  "stochastic passes": "Finding out how sure the model is",
  "fit round": "Training on your answers",
};
const el = (id) => document.getElementById(id);

let batch = { classes: [], counts: {}, questions: [], round: -1, asks: "", title: "" };
let news = { phase: "starting", progress: {} };
let view = "label";
let again = null; // An image that is answered again; null for the next open one.
let fixes = false; // Whether `again` was chosen among the answers.
let scrolled = 0; // Where the answers were scrolled to.
let marked = 0; // Which of the listed classes Enter takes while one is typed.
let pauses = [];
let lastAnswer = 0;
const latest = new Map(); // The answer of an image that is not in `batch` yet.
const skipped = []; // Images that come last, in the order of the skips.
let history = []; // What undo takes back: an image, and whether it was skipped.

const link = new Link({
  state(answer, saved) {
    const before = news;
    news = answer;
    for (const operation of saved) {
      if (latest.get(operation.id)?.operation === operation) latest.delete(operation.id);
    }
    if (answer.batch) take(answer.batch);
    if (answer.batch || JSON.stringify(before) !== JSON.stringify(answer)) render();
  },
  refused(operation, text) {
    if (latest.get(operation.id)?.operation === operation) latest.delete(operation.id);
    say(`Not saved: ${text}.`);
    link.refresh();
    render();
  },
  note(text) {
    say(`${text[0].toUpperCase()}${text.slice(1)}.`);
  },
  trouble(text) {
    el("trouble").hidden = !text;
    if (el("trouble").textContent !== text) el("trouble").textContent = text;
  },
});

function take(fresh) {
  if (fresh.asks !== batch.asks) {
    skipped.length = 0;
    history = history.filter((step) => !step.skips);
    if (batch.asks && fresh.round >= 0) say(`${fresh.title}: ${counted(fresh.questions.length, "new image")}.`);
  }
  batch = fresh;
  if (again) again = batch.questions.find((question) => question.id === again.id) ?? again;
}

// --- What is asked

function answerOf(question) {
  return latest.has(question.id) ? latest.get(question.id).answer : question.answer;
}

// The questions, and an image whose answer was just taken back.
function questions() {
  const isNew = again && !answerOf(again) && !batch.questions.some(({ id }) => id === again.id);
  return isNew ? [again, ...batch.questions] : batch.questions;
}

function open() {
  const rest = questions().filter((question) => !answerOf(question));
  const place = (question) => skipped.lastIndexOf(question.id);
  return rest.sort((a, b) => place(a) - place(b));
}

function current() {
  return again ?? open()[0] ?? null;
}

function small() {
  return batch.classes.length <= KEYS.length;
}

// Digits choose a class, unless they may be the beginning of its name.
function digitsChoose() {
  return small() || !batch.classes.some((name) => /\d/.test(name));
}

function listed() {
  const typed = el("filter").value.trim().toLowerCase();
  if (!typed) return batch.classes;
  const starts = (name) => (name.toLowerCase().startsWith(typed) ? 0 : 1);
  return batch.classes
    .filter((name) => name.toLowerCase().includes(typed))
    .sort((a, b) => starts(a) - starts(b));
}

// --- What the person does

function answer(value) {
  const question = current();
  if (!question || news.phase === "ended") return;
  const operation = { op: "answer", id: question.id, seen: answerOf(question) ?? null, ...value };
  latest.set(question.id, { answer: value, operation });
  link.send(operation);
  history.push({ question, skips: false });
  const now = performance.now() / 1000;
  if (lastAnswer && now - lastAnswer < LONGEST_PAUSE) pauses = [...pauses.slice(-19), now - lastAnswer];
  lastAnswer = now;
  const words = value.label ?? WORDS[value.kind];
  if (fixes) return leave(`Changed to: ${words}.`, value);
  again = null;
  next(`Answered: ${words}.`);
}

// Goes back to where an image was chosen to be answered again.
function leave(said, value) {
  const entry = again;
  again = null;
  el("filter").value = "";
  if (!fixes) return render();
  fixes = false;
  render();
  window.scrollTo(0, scrolled);
  answers.back(entry, value);
  say(said);
}

function skip() {
  const question = current();
  if (!question) return;
  if (fixes) return leave("Left as it was.");
  if (!answerOf(question)) {
    skipped.push(question.id);
    history.push({ question, skips: true });
  }
  again = null;
  next("Skipped; it comes again at the end.");
}

async function undo() {
  const step = history.pop();
  let question = step?.question;
  if (step?.skips) {
    skipped.splice(skipped.lastIndexOf(question.id), 1);
    show("label");
    again = batch.questions.find((other) => other.id === question.id && !answerOf(other)) ?? null;
    return next("Skip taken back.");
  }
  if (!question) {
    const { content } = await ask("answered?count=1");
    question = content?.images[0];
    if (!question) return say("There is no answer to take back.");
  }
  const operation = { op: "undo", id: question.id };
  latest.set(question.id, { answer: null, operation });
  link.send(operation);
  show("label");
  again = batch.questions.find((other) => other.id === question.id) ?? { ...question, answer: null };
  const isEarlier = question.round < batch.round && batch.title.startsWith("Round");
  next(isEarlier ? `Taken back your answer of round ${question.round + 1}.` : "Taken back.");
}

function next(said) {
  el("filter").value = "";
  marked = 0;
  render();
  const question = current();
  const suggestion = question?.suggestion ? ` Suggestion: ${question.suggestion}.` : "";
  say(question ? `${said} ${open().length} left.${suggestion}` : said);
}

function accept() {
  const typed = el("filter").value.trim();
  const chosen = typed ? listed()[marked] : current()?.suggestion;
  if (chosen) answer({ label: chosen });
  else say(typed ? "No class is called so." : "There is no suggestion to accept.");
}

function addClass(name) {
  const operation = { op: "class", name };
  link.send(operation);
  link.refresh();
  el("name").value = "";
  say(`Class ${name} is added. The model learns it when an image has it.`);
}

function stop() {
  el("really").close();
  ask("stop", {});
  say("Stopping.");
}

// --- Keys

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || el("really").open) return;
  if (view === "check") return check.onKey(event);
  if (event.key === "Escape") {
    if (again && !el("filter").value) return leave("Left as it was.");
    el("filter").value = "";
    return render();
  }
  if (el("label").hidden || event.target === el("name")) return;
  // A key that is held down must not answer all that follows.
  if (event.repeat && !event.key.startsWith("Arrow") && event.key !== "Backspace") return event.preventDefault();
  if (event.key === "Enter") {
    if (event.target.matches("button, summary, select")) return;
    event.preventDefault();
    return accept();
  }
  const number = KEYS.indexOf(event.key);
  if (number >= 0 && digitsChoose()) {
    event.preventDefault();
    const name = listed()[number];
    if (name) answer({ label: name });
    return;
  }
  // While classes are found by typing, a small letter is part of a name.
  const commands = { "?": cannotTell, U: undo, S: skip, N: unusable };
  const command = commands[small() ? event.key.toUpperCase() : event.key];
  if (command) {
    event.preventDefault();
    return command();
  }
  if (!small()) typeInto(event);
}

function typeInto(event) {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    const step = event.key === "ArrowDown" ? 1 : -1;
    marked = Math.min(Math.max(marked + step, 0), Math.max(listed().length - 1, 0));
    return renderClasses(current());
  }
  // A letter that is typed anywhere goes into the field.
  if ((event.key.length === 1 && event.key !== " ") || event.key === "Backspace") el("filter").focus();
}

const cannotTell = () => answer({ kind: "cannot_tell" });
const unusable = () => answer({ kind: "unusable" });

// --- What is shown

function say(text) {
  el("said").textContent = text;
}

function show(name) {
  view = name;
  if (fixes) again = null;
  fixes = false;
  for (const other of ["label", "check", "answers"]) {
    el(`view-${other}`).setAttribute("aria-pressed", String(other === name));
  }
  if (name === "check") check.open(batch);
  if (name === "answers") answers.open(batch);
  render();
}

function render() {
  const question = current();
  const asks = Boolean(question) && news.phase !== "ended";
  const waits = news.phase === "ended" || (view === "label" && !asks);
  el("wait").hidden = !waits;
  el("label").hidden = waits || !(view === "label" || fixes);
  el("check").hidden = waits || view !== "check";
  el("answers").hidden = waits || view !== "answers" || fixes;
  for (const button of document.querySelectorAll("header button")) button.disabled = news.phase === "ended";
  if (news.phase === "ended") say("");
  if (waits) renderWait();
  if (!el("label").hidden) renderQuestion(question);
  const total = questions().length;
  const done = total - open().length;
  el("bar").setAttribute("aria-valuemax", total);
  el("bar").setAttribute("aria-valuenow", done);
  el("bar").firstElementChild.style.width = total ? `${(100 * done) / total}%` : "0";
  document.title = asks ? `${total - done} left – Labeling` : "Labeling";
  el("where").textContent = total ? whereText(done, total) : "";
  renderEstimate(batch.estimate);
}

function whereText(done, total) {
  const sorted = [...pauses].sort((a, b) => a - b);
  const seconds = (total - done) * (sorted[sorted.length >> 1] ?? 0);
  const time = seconds >= 90 ? `, about ${Math.round(seconds / 60)} min to go` : seconds >= 5 ? `, about ${Math.round(seconds)} s to go` : "";
  const certified = news.certified ? ` ${news.certified}.` : "";
  return `${batch.title}: ${done} of ${total}${time}.${certified} ${batch.answered} of ${batch.pool} images have an answer.`;
}

function renderWait() {
  const { phase, progress, ended, heading, trained } = news;
  const titles = { starting: "Getting ready", asking: "Getting ready", working: "Learning from your answers", ended: heading };
  el("wait-title").textContent = titles[phase];
  const bar = el("wait-bar");
  bar.hidden = phase === "ended";
  if (progress.total > 1) {
    bar.max = progress.total;
    bar.value = progress.done;
  } else {
    bar.removeAttribute("value");
  }
  const name = progress.stage ?? "";
  const begins = Object.keys(STAGES).find((beginning) => name.startsWith(beginning));
  const words = STAGES[begins] ?? name;
  const stage = progress.total > 1 ? `${words}: ${progress.done} of ${progress.total} ${progress.unit}.` : words && `${words}.`;
  // Programs are compiled at the first training after each start.
  const isFirst = !trained && (phase === "working" || begins === "fit round");
  const text = ended || [stage, isFirst ? "The first time takes up to a minute." : ""].join(" ").trim();
  // What is between backticks is a command.
  el("wait-text").replaceChildren(...text.split("`").map((part, place) => (
    place % 2 ? Object.assign(document.createElement("code"), { textContent: part }) : part
  )));
}

function renderQuestion(question) {
  const image = el("image");
  const address = picture(question.id, "large");
  if (image.getAttribute("src") !== address) {
    el("broken").hidden = true;
    image.classList.remove("tiny");
    image.src = address;
  }
  image.alt = `The image to label: ${question.id}`;
  el("caption").textContent = question.id;
  const before = answerOf(question);
  const confidence = question.confidence ? `, ${percent(question.confidence)} %` : "";
  el("question").textContent = before ? `Your answer was: ${before.label ?? WORDS[before.kind]}` : "What is this?";
  el("accept").hidden = Boolean(before) || !question.suggestion;
  el("cancel").hidden = !before;
  // Without a suggestion a space keeps the button's height.
  el("suggestion").textContent = `${question.suggestion}${confidence}` || "\u00a0";
  el("suggestion").title = question.suggestion ?? "";
  el("why").textContent = before ? "Answer it again, or cancel." : question.suggestion ? `Why this one: ${question.why}` : question.why || HIDDEN;
  el("filter").hidden = small();
  el("classes").classList.toggle("many", !small());
  for (const [id, letter] of Object.entries({ unusable: "N", skip: "S", undo: "U" })) {
    el(id).firstElementChild.textContent = small() ? letter : `Shift ${letter}`;
    el(id).setAttribute("aria-keyshortcuts", small() ? letter : `Shift+${letter}`);
  }
  renderClasses(question);
  for (const other of open().slice(0, AHEAD)) new Image().src = picture(other.id, "large");
}

function renderClasses(question) {
  const typed = el("filter").value.trim();
  const counts = { ...batch.counts };
  for (const other of batch.questions.filter(({ id }) => latest.has(id))) {
    const [before, now] = [other.answer?.label, answerOf(other)?.label];
    if (before) counts[before] -= 1;
    if (now) counts[now] = (counts[now] ?? 0) + 1;
  }
  const focused = document.activeElement.closest("#classes button")?.dataset.name;
  el("classes").replaceChildren(
    ...listed().map((name, place) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.name = name;
      if (name === question?.suggestion) button.classList.add("suggested");
      if (typed && place === marked) button.classList.add("chosen");
      const key = digitsChoose() ? KEYS[place] : undefined;
      if (key) {
        button.setAttribute("aria-keyshortcuts", key);
        button.append(Object.assign(document.createElement("kbd"), { textContent: key }));
      }
      const count = counts[name] ?? 0;
      button.append(
        Object.assign(document.createElement("span"), { className: "name", textContent: name }),
        Object.assign(document.createElement("span"), { className: "count", textContent: count, title: `${counted(count, "image has", "images have")} this class` }),
      );
      button.addEventListener("click", () => answer({ label: name }));
      item.append(button);
      return item;
    }),
  );
  if (focused) [...el("classes").querySelectorAll("button")].find((button) => button.dataset.name === focused)?.focus();
  el("classes").querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
}

function renderEstimate(estimate) {
  el("estimate").hidden = !estimate;
  el("short").hidden = !estimate || estimate.accuracy === null;
  if (!estimate) return;
  const { accuracy, low, high, audits, certified_share: share } = estimate;
  const isBetween = low !== null && high !== null;
  const [right, least, most] = [accuracy, low, high].map(percent);
  const between = isBetween ? ` (${least} to ${most} %, with 95 % confidence)` : "";
  const judged = audits === null ? "" : `, judged by ${counted(audits, "audit")}`;
  el("short").textContent = `${right} % right${isBetween ? ` (${least} to ${most})` : ""}`;
  el("accuracy").textContent = accuracy === null ? "" :
    `The model is right on ${right} %${between} of the images not picked for training${judged}.`;
  el("certified").hidden = share === null;
  el("share").textContent = percent(share);
  el("sentence").textContent = estimate.sentence;
}

// --- Beginning

const check = new Check(link, say);
const answers = new Answers((entry) => {
  scrolled = window.scrollY;
  again = { ...entry, answer: entry.label ? { label: entry.label } : { kind: entry.kind } };
  fixes = true;
  el("filter").value = "";
  render();
  window.scrollTo(0, 0);
});
for (const name of ["label", "check", "answers"]) {
  el(`view-${name}`).addEventListener("click", () => show(name));
}
el("accept").addEventListener("click", () => answer({ label: current().suggestion }));
el("cannot_tell").addEventListener("click", cannotTell);
el("unusable").addEventListener("click", unusable);
el("skip").addEventListener("click", skip);
el("undo").addEventListener("click", undo);
el("cancel").addEventListener("click", () => leave("Left as it was."));
el("image").addEventListener("load", sharpen);
el("image").addEventListener("error", () => { el("broken").hidden = false; });
el("filter").addEventListener("input", () => { marked = 0; renderClasses(current()); });
el("add").addEventListener("submit", (event) => {
  event.preventDefault();
  if (el("name").value.trim()) addClass(el("name").value.trim());
});
el("stop").addEventListener("click", () => el("really").showModal());
el("really-not").addEventListener("click", () => el("really").close());
el("really-stop").addEventListener("click", stop);
// A button that was clicked does not keep the focus, or Enter would press it
// again instead of accepting the next suggestion.
el("label").addEventListener("click", (event) => {
  if (event.detail && event.target.closest("button")) document.activeElement.blur();
});
document.addEventListener("keydown", onKey);
render();
