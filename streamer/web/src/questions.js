/** Questions that were asked here, and their answers; they are kept when another page is opened. */
import { signal } from "@preact/signals-core";
import { api } from "./api.js";
import { withPiece } from "./format.js";
import { followQuery } from "./store.js";

const KEPT = 160;

/** Newest first: signals of `{id, key, prompt, stream or streams, since, until, state, position, text, result, error}`. */
export const questions = signal([]);

/** Return a question after a step of its answer. */
export function after(question, step, data) {
  if (step === "progress") return { ...question, state: data.status, position: data.position, done: data.done, windows: data.windows };
  if (step === "delta") return { ...question, state: "writing", text: withPiece(question.text, data.at, data.text) };
  if (step === "error") return { ...question, state: "failed", error: data };
  if (step === "result") {
    const { result, status } = data;
    return {
      ...question,
      state: status,
      result,
      text: result?.text ?? question.text,
      error: result?.error ?? (status === "cancelled" ? { message: "Cancelled." } : null),
    };
  }
  return question;
}

/** Whether there is more to come. */
export function pending({ state }) {
  return !["done", "failed", "cancelled"].includes(state);
}

let key = 0;

/** Ask a question; return its signal. */
export function ask({ prompt, stream = null, streams = null, since = null, until = null, group = null }) {
  const question = signal({ key: ++key, id: null, group, prompt, stream, streams, since, until, asked: Date.now(), state: "sending", position: null, text: "", result: null, error: null });
  questions.value = [question, ...questions.value].slice(0, KEPT);
  send(question);
  return question;
}

async function send(question) {
  const { prompt, stream, streams, since, until } = question.value;
  try {
    const body = streams ? { prompt, streams } : { prompt, stream };
    if (since) Object.assign(body, { since, until });
    const query = await api.ask(body);
    question.value = { ...question.value, id: query.id, state: query.status };
    const stop = followQuery(query.id, (step, data) => {
      question.value = after(question.value, step, data);
      if (!pending(question.value)) stop();
    });
  } catch (error) {
    question.value = { ...question.value, state: "failed", error };
  }
}

/** Ask the same again. */
export function again(question) {
  question.value = { ...question.value, id: null, state: "sending", position: null, text: "", result: null, error: null };
  send(question);
}

/** Cancel a question that has no answer yet. */
export function cancel(question) {
  if (question.value.id && pending(question.value)) api.cancel(question.value.id).catch(() => {});
}

/** Take a question off the page. */
export function forget(question) {
  cancel(question);
  questions.value = questions.value.filter((each) => each !== question);
}
