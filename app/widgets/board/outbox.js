// Ratings on their way to the server: sent at once and in order, kept in the browser until the server has them on disk.

const OUTBOX = "ddpo-studio/outbox/";
const ASIDE_MS = 60000; // how long a run that is not there is not asked for again
const PATIENCE_MS = 45000; // how long an answer may take; the server itself waits 30 s for its disk
const MOST_BYTES = 60000; // of what outlives the page browsers send 64 KiB at most
const KEPT_MS = 30 * 24 * 3600 * 1000; // how long what was said of such a run is kept

/** An id that no other event has, also on pages without https, where randomUUID does not exist. */
function newId() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The browser's storage, or memory where that is full or forbidden: then a reload loses what is not sent yet. */
function safeStorage() {
  const memory = new Map();
  const keep = (use, otherwise) => { try { return use(); } catch { return otherwise(); } };
  return {
    get: (key) => memory.get(key) ?? keep(() => localStorage.getItem(key), () => null),
    set: (key, text) => keep(() => localStorage.setItem(key, text), () => memory.set(key, text)),
    remove: (key) => { memory.delete(key); keep(() => localStorage.removeItem(key), () => {}); },
    keys: () => [...memory.keys(), ...keep(() => Object.keys(localStorage), () => [])],
  };
}

class Outbox {
  /** `onChange` hears of every step; `onAck(entry, result)` hears what the server made of each event. */
  constructor(storage, onChange, onAck) {
    Object.assign(this, { storage, onChange, onAck, failures: 0, refused: "", sending: null, timer: 0, serial: 0, closed: false, absent: new Map() });
  }

  /** What waits here, oldest first; also what an earlier page of this browser left behind. */
  entries() {
    return this.keys().sort().map((key) => [key, this.storage.get(key)]).filter(([, text]) => text).map(([key, text]) => ({ key, ...JSON.parse(text) }));
  }

  keys() {
    return this.storage.keys().filter((key) => key.startsWith(OUTBOX));
  }

  /** What can be sent now; the rest is of runs that were not there. */
  due() {
    return this.entries().filter((entry) => !((this.absent.get(entry.url) ?? 0) > Date.now()));
  }

  get size() {
    return this.absent.size ? this.due().length : this.keys().length;
  }

  /** How many wait for a run that is not there. */
  get aside() {
    return this.keys().length - this.size;
  }

  /** Keep an event and send it. */
  add(url, run, event) {
    this.serial += 1;
    const key = `${OUTBOX}${String(Date.now()).padStart(15, "0")}-${String(this.serial).padStart(6, "0")}-${event.client_id}`;
    this.storage.set(key, JSON.stringify({ url, run, event }));
    this.flush();
  }

  /** Send what waits. Resolves to true when nothing waits any more that can be sent. */
  async flush() {
    while (!this.closed && this.size) {
      this.sending ??= this.send().finally(() => { this.sending = null; });
      const sent = await this.sending;
      this.onChange();
      if (!sent) return false;
    }
    return true;
  }

  /** One request: as many of the oldest events as go to the same run. */
  async send() {
    clearTimeout(this.timer);
    const waiting = this.due();
    const other = waiting.findIndex((entry) => entry.url !== waiting[0].url);
    const batch = waiting.slice(0, Math.min(other < 0 ? waiting.length : other, 200));
    this.onChange();
    try {
      const body = JSON.stringify(batch.map((entry) => entry.event));
      const headers = { "Content-Type": "application/json" };
      const answer = await fetch(batch[0].url, { method: "POST", headers, body, keepalive: new TextEncoder().encode(body).length < MOST_BYTES, signal: AbortSignal.timeout(PATIENCE_MS) });
      if (answer.ok) this.settle(batch, (await answer.json()).results);
      else if (answer.status === 404) this.setAside(batch);
      else throw new Error(answer.status === 401 || answer.status === 403 ? "signed out" : "");
    } catch (error) {
      return this.postpone(error);
    }
    this.failures = 0;
    this.refused = "";
    return true;
  }

  /** The run is not there: it was deleted, or another folder of runs is open. What was said waits for it, and holds nothing else up. */
  setAside(batch) {
    this.absent.set(batch[0].url, Date.now() + ASIDE_MS);
    setTimeout(() => this.flush(), ASIDE_MS + 1);
    for (const { key } of batch) if (Number(key.slice(OUTBOX.length).split("-")[0]) < Date.now() - KEPT_MS) this.storage.remove(key);
  }

  /** Forget what the server has or will never take; keep what it could not write just now. */
  settle(batch, results) {
    const later = results.some((result) => result.status >= 500);
    batch.forEach((entry, i) => {
      if (results[i].status >= 500) return;
      this.storage.remove(entry.key);
      this.onAck(entry, results[i]);
    });
    if (later) throw new Error("");
  }

  postpone(error) {
    this.failures += 1;
    this.refused = error.message === "signed out" ? error.message : "";
    this.timer = setTimeout(() => this.flush(), Math.min(500 * 2 ** (this.failures - 1), 8000));
    return false;
  }

  stop() {
    this.closed = true;
    clearTimeout(this.timer);
  }
}
