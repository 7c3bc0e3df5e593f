// An answer as it comes: what OpenAI's stream says, with what the swarm adds, in four kinds of news.

/**
 * Ask for an answer and yield {kind, ...}: "begun" {route}, "text" {text}, "happened" {event, route}, "ended" {how,
 * timings, reason}. Throws: Refused; AbortError; Error, where the answer breaks off.
 */
export async function* ask(line, body, signal) {
  let whole = false;
  for await (const said of line.events("/v1/chat/completions", { body: { ...body, stream: true }, signal })) {
    if (said === null) continue;
    if (said.data === "[DONE]") return;
    const chunk = JSON.parse(said.data);
    if (chunk.error) throw new Error(chunk.error.message);
    for (const news of read(chunk)) {
      whole ||= news.kind === "ended";
      yield news;
    }
  }
  if (!whole) throw new Error("The connection broke off in mid-answer.");
}

/** What one chunk says. Pure. */
export function* read(chunk) {
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { route, event } = chunk.swarm ?? {};
  if (choice.finish_reason) {
    yield { kind: "ended", how: chunk.swarm ?? {}, timings: chunk.timings ?? {}, reason: choice.finish_reason };
  } else if (event) yield { kind: "happened", event, route };
  else if (route) yield { kind: "begun", route };
  if (choice.delta?.content) yield { kind: "text", text: choice.delta.content };
}
