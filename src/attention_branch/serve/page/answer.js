// What the page says of an open image: the answer before and after, the reading, where it came from.

const $ = (id) => document.getElementById(id);

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const answerOf = (reply, head) => (reply.heads ? reply.heads[head] : reply);

// The probabilities with the network's own map, and with the map that was drawn where there is one.
export function showAnswer(classes, before, after) {
  $("prediction").textContent = before.prediction.class;
  $("probability").textContent = percent(before.prediction.probability);
  $("after-line").hidden = !after;
  if (after) {
    $("after-prediction").textContent = after.prediction.class;
    $("after-probability").textContent = percent(after.prediction.probability);
    $("after-line").classList.toggle("changed", after.prediction.index !== before.prediction.index);
  }
  showStrip(before, after);
  const indices = new Set(before.top.map((share) => share.index));
  if (after) after.top.slice(0, 3).forEach((share) => indices.add(share.index));
  const rows = [...indices].slice(0, 7).map((index) => {
    const shares = [before.probabilities[index], ...(after ? [after.probabilities[index]] : [])];
    return shareRow(classes[index], shares);
  });
  $("shares").tBodies[0].replaceChildren(...rows);
  document.querySelector(".key").hidden = !after;
}

function shareRow(name, shares) {
  const row = document.createElement("tr"), title = document.createElement("th"), bars = document.createElement("td");
  title.textContent = name;
  title.title = name;
  title.scope = "row";
  shares.forEach((share, which) => {
    const bar = document.createElement("div");
    bar.className = `share ${which ? "after" : "before"}`;
    bar.style.width = `${100 * share}%`;
    bars.append(bar);
  });
  const numbers = document.createElement("td");
  numbers.className = "number";
  numbers.textContent = shares.map(percent).join(" → ");
  row.append(title, bars, numbers);
  return row;
}

// On a phone the card with the answer is far below the picture.
function showStrip(before, after) {
  const first = document.createElement("b");
  first.textContent = before.prediction.class;
  const parts = [first, ` ${percent(before.prediction.probability)}`];
  if (after) {
    const second = document.createElement("span");
    second.className = "after";
    second.textContent = `${after.prediction.class} ${percent(after.prediction.probability)}`;
    parts.push(" → ", second, " with your map");
  }
  $("strip").replaceChildren(...parts);
  $("strip").hidden = false;
}

export function showReading(sentences) {
  $("reading").replaceChildren(...sentences.map(({ text, verdict }) => {
    const item = document.createElement("li");
    item.textContent = text;
    item.className = verdict;
    return item;
  }));
  $("reading-card").hidden = false;
}

export function showTrace(reply) {
  const listed = (values) => Object.entries(values).map(([name, value]) => `${name} ${value}`).join(", ");
  const trace = [["picture", `${reply.file}, ${reply.width}×${reply.height}`], ["picture SHA-256", reply.image_sha256],
    ["model", reply.model], ["model SHA-256", reply.model_sha256], ["preprocessing", listed(reply.preprocessing)],
    ["computed by", reply.engine], ["versions", listed(reply.versions)], ["time", reply.time]];
  $("trace").replaceChildren(...trace.flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
}
