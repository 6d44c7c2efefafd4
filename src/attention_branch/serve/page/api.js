// Calls of the server; a refusal becomes an Error with the server's own sentence.

async function checked(response) {
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no sentence came along */ }
  const problem = new Error(message);
  problem.status = response.status;
  throw problem;
}

async function answered(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer; is it still running?");
  }
  return checked(response);
}

async function send(path, options) {
  const response = await answered(path, options);
  return response.status === 204 ? null : response.json();
}

const json = (method, value) => ({
  method, headers: { "content-type": "application/json" }, body: JSON.stringify(value),
});

export const start = () => send("/page/start.json");
export const openQueued = (index) => send("/v1/images", json("POST", { queue: index }));
export const openSaved = (name) => send("/v1/images", json("POST", { annotation: name }));
export const opened = (id) => send(`/v1/images/${encodeURIComponent(id)}`);
export function openFile(file) {
  const form = new FormData();
  form.append("files", file, file.name);
  return send("/v1/images", { method: "POST", body: form });
}
export function map(id, method, head, index) {
  const query = new URLSearchParams({ method });
  if (head) query.set("head", head);
  if (index !== null) query.set("index", index); // a name may stand for two classes, or be another's number
  return send(`/v1/images/${id}/map?${query}`);
}
export const reading = (id, head) =>
  send(`/v1/images/${id}/reading${head ? `?head=${encodeURIComponent(head)}` : ""}`);
export const ask = (id, maps, top) => send(`/v1/images/${id}/answer`, json("POST", { maps, top }));
export const annotate = (id, wanted) => send(`/v1/images/${id}/annotation`, json("POST", wanted));
export async function record(id) {
  const response = await answered(`/v1/images/${id}/record`);
  const name = /filename="([^"]+)"/.exec(response.headers.get("content-disposition"))?.[1] ?? "record.json";
  return { name, content: await response.blob() };
}
export const queue = (query) => send(`/v1/queue?${new URLSearchParams(query)}`);
export const mark = (index, state) => send(`/v1/queue/${index}`, json("PUT", { state }));
export const annotations = () => send("/v1/annotations");
export const removeAnnotation = (name) => send(`/v1/annotations/${encodeURIComponent(name)}`, { method: "DELETE" });

export function image(address) {
  return new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error("A picture could not be loaded from the server."));
    picture.src = address;
  });
}
