// Talks with the server: sends what the person does, in order, and asks again
// and again what is new.

const POLL = 400; // Milliseconds between two questions.
const RETRY = 1000; // Before something is sent again that did not arrive.
const AT_ONCE = 500; // Operations in one request.
// Answers of the server after which the same request may succeed later.
const LATER = [408, 409, 500, 502, 503, 504, 507];
const OLD_PAGE = "This page is from an earlier start of the program. Open the address that it printed last.";
const GONE = "There is no connection to the program. If it has ended, run the same command again and open the address that it prints.";

export class Link {
  // handlers: state(answer, saved) for news, where `saved` are the operations
  // that the news include; refused(operation, text); note(text); and
  // trouble(text), with an empty text when it is over.
  constructor(handlers) {
    this.handlers = handlers;
    this.tab = Array.from(crypto.getRandomValues(new Uint32Array(4)), (x) => x.toString(36)).join("");
    this.count = 0;
    this.queue = [];
    this.saved = [];
    this.version = "";
    this.sending = false;
    this.ended = false;
    window.addEventListener("beforeunload", (event) => {
      if (this.queue.length && !this.ended) event.preventDefault();
    });
    this.poll();
  }

  // Sends an operation behind those that were sent before.
  send(operation) {
    operation.n = this.count++;
    this.queue.push(operation);
    this.drain();
  }

  async drain() {
    if (this.sending) return;
    this.sending = true;
    while (this.queue.length) {
      const operations = this.queue.slice(0, AT_ONCE);
      const { status, content } = await ask("record", { tab: this.tab, operations });
      if (status === 200) {
        this.queue.splice(0, operations.length);
        this.trouble("");
        content.results.forEach((result, i) => this.took(operations[i], result));
      } else if (status === 0 || LATER.includes(status)) {
        const why = content?.error ?? GONE;
        this.trouble(why);
        await sleep(RETRY);
      } else {
        this.queue.splice(0, operations.length);
        const why = status === 403 ? OLD_PAGE : content?.error ?? `The server refused it (${status}).`;
        operations.forEach((operation) => this.handlers.refused(operation, why));
      }
    }
    this.sending = false;
  }

  took(operation, result) {
    if (result.ok) {
      this.saved.push(operation);
      if (result.note) this.handlers.note(result.note);
    } else {
      this.handlers.refused(operation, result.error);
    }
  }

  // Says what is wrong, and how many answers are not saved because of it.
  trouble(text) {
    const left = this.queue.length;
    this.handlers.trouble(text && left ? `${left} not saved yet. ${text}` : text);
  }

  async poll() {
    while (!this.ended) {
      const saved = this.saved;
      this.saved = [];
      const { status, content } = await ask(`state?tab=${this.tab}&version=${this.version}`);
      if (status === 200) {
        this.version = content.version ?? "";
        this.ended = content.phase === "ended";
        if (!this.queue.length) this.trouble("");
        this.handlers.state(content, saved);
      } else {
        this.saved = saved.concat(this.saved);
        this.trouble(status === 403 ? OLD_PAGE : GONE);
      }
      await sleep(status === 200 ? POLL : RETRY);
    }
  }

  // Asks for the next news at once, and for all of them.
  refresh() {
    this.version = "";
  }
}

// Sends `body`, or asks with GET if there is none. A status of 0 says that there
// is no connection.
export async function ask(address, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  try {
    const response = await fetch(address, { ...options, signal: AbortSignal.timeout(30000) });
    const content = await response.json().catch(() => undefined);
    return { status: response.status, content };
  } catch {
    return { status: 0 };
  }
}

export function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

export function picture(id, side) {
  return `image?side=${side}&id=${encodeURIComponent(id)}`;
}

// A small image is enlarged without blurring its pixels.
export function sharpen(event) {
  event.target.classList.toggle("tiny", event.target.naturalWidth < 33);
}

// A share in percent. Near 0 and 1 it has a decimal, so that it is not rounded to
// what it is not.
export function percent(share) {
  const value = 100 * share;
  if ((value <= 0 || value >= 1) && (value <= 99 || value >= 100)) return String(Math.round(value));
  return Math.min(Math.max(value, 0.1), 99.9).toFixed(1);
}

// A number with the words for it, such as "1 image" or "2 images".
export function counted(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}
