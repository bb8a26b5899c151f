// Server-sent events over fetch, since EventSource can neither POST nor send headers.

import { request } from "./api.js";

const MIN_WAIT_MS = 500;
const MAX_WAIT_MS = 10_000;
const SILENCE_MS = 45_000; // three heartbeats: the connection is dead, though nobody has said so

/** The events of a text/event-stream response: {event, data (parsed JSON), id}. Fails after `silenceMs` without a byte. */
export async function* events(response, silenceMs) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await within(reader.read(), silenceMs);
      if (done) return; // a last event without its empty line is not whole
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function within(promise, ms) {
  if (!ms) return promise;
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error("silent")), ms); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

function parse(block) {
  const found = { event: "message", id: null };
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^(\w+): ?(.*)$/.exec(line) ?? []; // a comment (heartbeat) has no name
    if (name === "data") data.push(value);
    else if (name === "event" || name === "id") found[name] = value;
  }
  return data.length ? { ...found, data: JSON.parse(data.join("\n")) } : null;
}

/**
 * Follows a stream until `onEvent` returns true, a lost connection notwithstanding: it comes back with Last-Event-ID.
 * `onState` gets "open", "lost", or a Problem that no retry mends.
 */
export async function follow(path, { signal, onEvent, onState = () => {} }) {
  let lastId = null;
  let wait = MIN_WAIT_MS;
  while (!signal.aborted) {
    try {
      const response = await request(path, { signal, headers: lastId ? { "Last-Event-ID": lastId } : {} });
      onState("open");
      for await (const event of events(response, SILENCE_MS)) {
        wait = MIN_WAIT_MS;
        lastId = event.id ?? lastId;
        if (onEvent(event)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) {
        onState(error);
        return;
      }
    }
    if (signal.aborted) return;
    onState("lost");
    await pause(wait, signal);
    wait = Math.min(2 * wait, MAX_WAIT_MS);
  }
}

/** Ends after `ms`, or once `signal` is aborted; whoever waits over and over leaves nothing at the signal. */
export const pause = (ms, signal) => new Promise((resolve) => {
  const end = () => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", end);
    resolve();
  };
  const timer = setTimeout(end, ms);
  signal?.addEventListener("abort", end);
});
