"use strict";
// Data from the server is inserted as text, never as markup.
const at = (id) => document.getElementById(id);
const models = new Map();
let token = "";

async function request(path, options = {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  const answer = await response.json().catch(() => ({ error: `HTTP ${response.status}` }));
  at("access").hidden = response.status !== 401;
  if (!response.ok) throw new Error(answer.error || `HTTP ${response.status}`);
  return answer;
}

function cell(row, text) {
  row.insertCell().textContent = text;
}

const shapeOf = (tensor) => `${tensor.name}: ${tensor.datatype} [${tensor.shape.map((n) => (n < 0 ? "n" : n)).join(", ")}]`;

async function refresh() {
  try {
    const found = await request("models");
    const body = at("models").tBodies[0];
    body.replaceChildren();
    models.clear();
    for (const model of found.models) {
      const row = body.insertRow();
      const failures = Object.entries(model.failed).map(([version, why]) => `version ${version}: ${why}`);
      cell(row, model.name);
      cell(row, model.version ? `version ${model.version}${model.canary ? `, canary ${model.canary}` : ""} (${model.traffic})` : "no version yet");
      cell(row, (model.inputs || []).map(shapeOf).join("; "));
      cell(row, (model.outputs || []).map(shapeOf).join("; "));
      cell(row, failures.join("; ") || "none");
      if (model.inputs) models.set(model.name, model);
    }
    const before = at("model").value;
    at("model").replaceChildren(...[...models.keys()].map((name) => new Option(name, name, false, name === before)));
    at("state").textContent = found.trouble ? `The store does not answer: ${found.trouble}` : models.size ? "" : "No model is served yet.";
    at("models").hidden = !found.models.length;
    at("try").hidden = !models.size;
    choose();
  } catch (error) {
    at("state").textContent = error.message;
  }
}

function chosen() {
  const model = models.get(at("model").value);
  const shape = model ? model.inputs[0].shape.slice(1).map((n) => (n < 0 ? 1 : n)) : [];
  return { model, shape, count: shape.reduce((a, b) => a * b, 1) };
}

const pictureOf = (shape) => {
  const [height, width, channels = 1] = shape;
  return (shape.length === 2 || shape.length === 3) && (channels === 1 || channels === 3) ? { height, width, channels } : null;
};

const columnsOf = (model) => (model && model.parameters && model.parameters.columns) || [];

function choose() {
  const { model, shape, count } = chosen();
  const columns = columnsOf(model);
  at("picture").hidden = columns.length > 0 || !pictureOf(shape);
  at("numbers").hidden = columns.length > 0;
  at("fields").hidden = !columns.length;
  at("count").textContent = `${count} required`;
  const shown = JSON.stringify(columns);
  if (at("fields").dataset.shown === shown) return; // keep the values that a person has entered
  at("fields").dataset.shown = shown;
  at("fields").replaceChildren(...columns.map(field));
}

function field(column) {
  const label = document.createElement("label");
  label.textContent = `${column.name} `;
  const choices = column.kind === "boolean" ? ["yes", "no"] : column.kind === "category" ? column.categories || [] : [];
  const input = document.createElement(choices.length ? "select" : "input");
  if (choices.length) input.append(...(column.missing ? [["", "missing"]] : []).concat(choices.map((one) => [one, one])).map(([value, text]) => new Option(text, value)));
  else if (column.kind === "number") [input.type, input.step] = ["number", "any"];
  else if (column.kind === "date") input.type = "date";
  input.name = column.name;
  if (column.missing && !choices.length) input.placeholder = "may be missing";
  label.append(input);
  return label;
}

// Every cell is sent as text, which the server parses as it parses a CSV file.
const cells = (model) => [...at("fields").querySelectorAll("input, select")].map((input) => ({ name: input.name, datatype: "BYTES", shape: [1], data: [input.value] }));

async function read(file) {
  const { model, shape } = chosen();
  const picture = pictureOf(shape);
  const bitmap = await createImageBitmap(file, { resizeWidth: picture.width, resizeHeight: picture.height, resizeQuality: "pixelated" });
  const canvas = at("shown");
  [canvas.width, canvas.height] = [picture.width, picture.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
  const { minimum, maximum } = model.parameters.spread || { minimum: 0, maximum: 1 };
  const scaled = (value) => (model.inputs[0].datatype.startsWith("FP") ? minimum + ((maximum - minimum) * value) / 255 : Math.round(value));
  const row = [];
  for (let i = 0; i < pixels.length; i += 4) {
    const [red, green, blue] = pixels.subarray(i, i + 3);
    if (picture.channels === 3) row.push(...[red, green, blue].map(scaled));
    else row.push(scaled(0.299 * red + 0.587 * green + 0.114 * blue));
  }
  at("row").value = row.map((value) => +value.toFixed(5)).join(", ");
  await ask();
}

async function ask() {
  const { model, shape, count } = chosen();
  for (const id of ["error", "answer"]) at(id).textContent = "";
  at("bars").tBodies[0].replaceChildren();
  const columns = columnsOf(model);
  const row = columns.length ? [] : at("row").value.split(/[\s,;]+/).filter(Boolean).map(Number);
  try {
    if (row.some(Number.isNaN)) throw new Error("Not all of these are numbers.");
    if (!columns.length && row.length !== count) throw new Error(`These are ${row.length} numbers, but the model takes ${count}.`);
    if (!columns.length && model.inputs.length > 1) throw new Error("The model takes more than one input, but this page can send only one.");
    const inputs = columns.length ? cells(model) : [{ name: model.inputs[0].name, datatype: model.inputs[0].datatype, shape: [1, ...shape], data: row }];
    const started = performance.now();
    const answer = await request(`v2/models/${encodeURIComponent(model.name)}/infer`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ inputs }),
    });
    show(model, answer, performance.now() - started);
  } catch (error) {
    at("error").textContent = error.message;
  }
}

function show(model, answer, milliseconds) {
  const classes = model.parameters.classes;
  const given = answer.outputs[0].data;
  const binary = given.length === 1 && classes.length === 2 && given[0] >= 0 && given[0] <= 1;
  const values = binary ? [1 - given[0], given[0]] : given;
  const names = classes.length === values.length ? classes : values.map((_, i) => String(i));
  const order = values.map((_, i) => i).sort((a, b) => values[b] - values[a]);
  const isShare = values.length > 1 && Math.abs(values.reduce((a, b) => a + b, 0) - 1) < 1e-3;
  at("answer").textContent = isShare
    ? `${names[order[0]]}, ${(100 * values[order[0]]).toFixed(1)} % (version ${answer.model_version}, ${milliseconds.toFixed(0)} ms)`
    : `${values.slice(0, 20).join(", ")} (version ${answer.model_version}, ${milliseconds.toFixed(0)} ms)`;
  for (const i of isShare ? order.slice(0, 10) : []) {
    const row = at("bars").tBodies[0].insertRow();
    cell(row, names[i]);
    const meter = document.createElement("meter");
    meter.value = values[i];
    row.insertCell().append(meter);
    cell(row, `${(100 * values[i]).toFixed(1)} %`);
  }
}

at("model").addEventListener("change", choose);
at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  if (file) read(file).catch(() => { at("error").textContent = "The browser cannot read this file as a picture."; });
});
at("ask").addEventListener("click", ask);
at("access").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value;
  refresh();
});
refresh();
setInterval(refresh, 10000);
