// The page at /: what is typed becomes a request, its events become previews, its pictures a gallery.
// Text from prompts and files only ever becomes text: nothing here writes HTML.

const byId = (id) => document.getElementById(id);
const field = (id) => byId(id).value;
const MOST_KEPT = 500;
const SEEDS = 2 ** 32;
const NOTHING = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

let models = [];
let takes = null;
// The picture to start from, as a data URL.
let start = null;

// The API, with the key if there is one.

class Refused extends Error {}

async function call(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (options.body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401 && (await askKey())) return call(path, options);
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    const wait = answer.headers.get("Retry-After");
    throw new Refused((told?.error?.message ?? `The server answered ${answer.status}.`) + (wait ? ` (${wait} s)` : ""));
  }
  return answer;
}

function askKey() {
  const dialog = byId("ask-key");
  if (dialog.open) return Promise.resolve(false);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = field("key").trim();
      byId("key").value = "";
      if (key) sessionStorage.setItem("key", key);
      resolve(Boolean(key));
    }, { once: true });
  });
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const data = text.slice(0, end).split("\n").find((line) => line.startsWith("data: "));
      text = text.slice(end + 2);
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

// The form.

function sides() {
  const [across, down] = field("ratio").split(":").map(Number);
  const side = Number(field("side"));
  const fit = (length) => Math.max(1, Math.round(length / takes.unit)) * takes.unit;
  return [fit(side * Math.sqrt(across / down)), fit(side * Math.sqrt(down / across))];
}

function showPixels() {
  byId("pixels").value = sides().join(" × ") + " pixels";
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map((value) => new Option(value, value, false, value === chosen)));
}

function offerSides(wanted) {
  const largest = Math.sqrt(takes.limits.pixels);
  const usual = [0.5, 0.75, 1, 1.5, 2, 3, 4].map((share) => Math.round((takes.size * share) / takes.unit) * takes.unit);
  const all = [...usual, wanted].filter((side) => side >= takes.unit && side <= largest);
  options(byId("side"), [...new Set(all)].sort((one, other) => one - other), wanted);
}

function settings() {
  const [width, height] = sides();
  return {
    prompt: field("prompt"),
    negative_prompt: field("negative"),
    size: `${width}x${height}`,
    num_inference_steps: Number(field("steps")),
    guidance_scale: Number(field("guidance")),
    sampler: field("sampler"),
    seed: Number(field("seed")),
    n: Number(field("count")),
    ...(models.length > 1 && { model: field("models") }),
    ...(start && { strength: Number(field("strength")) }),
  };
}

function chooseModel(name) {
  const model = models.find((each) => each.id === name) ?? models[0];
  takes = model.takes;
  byId("models").value = model.id;
  byId("model").textContent = `model ${model.id}`;
  byId("steps").max = takes.limits.steps;
  byId("steps").value = takes.num_inference_steps;
  byId("guidance").value = takes.guidance_scale;
  byId("count").max = takes.limits.pictures;
  byId("prompt").maxLength = byId("negative").maxLength = takes.limits.prompt;
  options(byId("sampler"), takes.samplers, takes.sampler);
  offerSides(takes.size);
  showPixels();
}

const showShare = () => (byId("share").value = `${Math.round(100 * field("strength"))} %`);

// Start from a picture, or from none.
async function startFrom(file) {
  start = file ? await asAddress(file) : null;
  byId("start-shown").hidden = !start;
  if (!start) return byId("start-picture").removeAttribute("src");
  const picture = byId("start-picture");
  picture.src = start;
  try {
    await picture.decode();
  } catch {
    await startFrom(null);
    throw new Refused("This file cannot be read as a picture.");
  }
  const distance = (ratio) => {
    const [across, down] = ratio.value.split(":").map(Number);
    return Math.abs(Math.log((across / down) * (picture.naturalHeight / picture.naturalWidth)));
  };
  const nearest = [...byId("ratio").options].reduce((one, other) => (distance(other) < distance(one) ? other : one));
  byId("ratio").value = nearest.value;
  showPixels();
}

// Fill the form from the settings of a picture, ours or of another program's; returns what could not be taken over.
function restore(found) {
  const missed = [];
  const number = (value) => (value === undefined || value === "" || value === null ? NaN : Number(value));
  if (models.some((each) => each.id === found.model)) chooseModel(found.model);
  byId("prompt").value = found.prompt ?? "";
  byId("negative").value = found.negative_prompt ?? "";
  byId("negative-part").open = Boolean(found.negative_prompt);
  for (const [id, name] of [["steps", "num_inference_steps"], ["guidance", "guidance_scale"]]) {
    if (Number.isFinite(number(found[name]))) byId(id).value = number(found[name]);
  }
  const seed = number(found.seed);
  if (Number.isSafeInteger(seed) && seed >= 0) {
    byId("seed").value = seed;
    byId("each").checked = false;
  } else missed.push("seed");
  if (takes.samplers.includes(found.sampler)) byId("sampler").value = found.sampler;
  else missed.push("sampler");
  let [width, height] = [number(found.width), number(found.height)];
  const size = /^(\d+)x(\d+)$/.exec(found.size ?? "");
  if (size) [width, height] = [Number(size[1]), Number(size[2])];
  if (!chooseSize(width, height)) missed.push("size");
  byId("count").value = 1;
  if (Number.isFinite(number(found.strength))) missed.push("the picture that it started from");
  return missed;
}

// The shape and size that give exactly these pixels, if any do.
function chooseSize(width, height) {
  const before = [field("ratio"), field("side")];
  const middle = Math.sqrt(width * height);
  const near = [0, -1, 1, -2, 2].map((step) => Math.round(middle / takes.unit + step) * takes.unit);
  for (const ratio of byId("ratio").options) {
    for (const side of near) {
      byId("ratio").value = ratio.value;
      if (Number.isFinite(side)) offerSides(side);
      const [across, down] = sides();
      if (across === width && down === height) {
        showPixels();
        return true;
      }
    }
  }
  byId("ratio").value = before[0];
  offerSides(Number(before[1]));
  showPixels();
  return false;
}

const newSeed = () => (byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS);

// A request on its way.

async function draw() {
  if (!takes || !byId("form").reportValidity()) return;
  byId("message").textContent = "";
  if (byId("each").checked) newSeed();
  const wanted = settings();
  const initial = start;
  const [width, height] = sides();
  const run = byId("run-template").content.firstElementChild.cloneNode(true);
  const [state, bar, stop] = [run.querySelector(".run-state"), run.querySelector("progress"), run.querySelector("button")];
  run.querySelector(".run-prompt").textContent = wanted.prompt;
  const pictures = Array.from({ length: wanted.n }, () => {
    const picture = new Image(width, height);
    picture.alt = "";
    picture.src = NOTHING;
    run.querySelector(".run-pictures").append(picture);
    return picture;
  });
  const done = new Array(wanted.n).fill(0);
  const abort = new AbortController();
  stop.addEventListener("click", () => abort.abort());
  byId("running").prepend(run);

  const show = (index, steps, total) => {
    done[index] = steps / total;
    bar.value = done.reduce((sum, share) => sum + share, 0) / wanted.n;
  };
  const react = async (event) => {
    switch (event.type) {
      case "lineardit.waiting":
        state.textContent = event.position ? `Waiting, ${event.position} ahead` : "Next in the queue";
        break;
      case "lineardit.progress":
        show(event.index, event.step, event.total);
        state.textContent = `Step ${event.step} of ${event.total}`;
        if (event.preview && done[event.index] < 1) {
          pictures[event.index].src = `data:image/png;base64,${event.preview}`;
          pictures[event.index].className = "rough";
        }
        break;
      case "lineardit.note":
        byId("message").textContent = event.text;
        break;
      case "image_generation.completed":
      case "image_edit.completed": {
        pictures[event.index].remove();
        show(event.index, 1, 1);
        await keep(asBlob(event.b64_json), { ...wanted, seed: wanted.seed + event.index, width, height, n: 1 });
        byId("news").textContent = `Finished: ${wanted.prompt}`;
        break;
      }
      case "error":
        throw new Refused(event.error.message);
    }
  };

  try {
    const images = initial && [{ image_url: initial }];
    const body = JSON.stringify({ ...wanted, stream: true, progress: true, ...(images && { images }) });
    const path = images ? "/v1/images/edits" : "/v1/images/generations";
    const answer = await call(path, { method: "POST", body, signal: abort.signal });
    for await (const event of events(answer)) await react(event);
    if (done.some((share) => share < 1)) throw new Refused("The connection ended early.");
    run.remove();
  } catch (error) {
    if (abort.signal.aborted) {
      byId("news").textContent = "Cancelled";
      run.remove();
      return;
    }
    run.classList.add("failed");
    state.textContent = error instanceof Refused ? error.message : "The server cannot be reached.";
    byId("news").textContent = state.textContent;
    stop.textContent = "Dismiss";
    stop.addEventListener("click", () => run.remove());
  }
}

function asBlob(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

// The gallery: a database of this browser.

const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open("lineardit", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});

// Answers once it is committed: what is only asked for is lost when the page is left.
async function stored(mode, use) {
  const transaction = (await database).transaction("pictures", mode);
  const asked = use(transaction.objectStore("pictures"));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(asked.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

async function keep(blob, about) {
  const entry = { blob, about };
  try {
    entry.id = await stored("readwrite", (store) => store.add({ blob, about }));
  } catch {
    byId("message").textContent = "This browser keeps no pictures: download those you like.";
  }
  hang(entry);
  const shown = byId("gallery").children;
  while (shown.length > MOST_KEPT) await takeDown(shown[shown.length - 1]);
}

async function takeDown(item) {
  URL.revokeObjectURL(item.querySelector("img").src);
  item.remove();
  showEmptiness();
  if (item.dataset.id) await stored("readwrite", (store) => store.delete(Number(item.dataset.id)));
}

function hang({ id, blob, about }) {
  const item = byId("picture-template").content.firstElementChild.cloneNode(true);
  const address = URL.createObjectURL(blob);
  if (id !== undefined) item.dataset.id = id;
  const picture = item.querySelector("img");
  picture.src = address;
  picture.alt = about.prompt;
  const link = item.querySelector("a");
  link.href = address;
  link.download = `${about.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${about.seed}.png`;
  item.querySelector(".picture").addEventListener("click", () => {
    told(restore(about));
    byId("prompt").focus();
  });
  const actions = {
    large: () => showLarge(address, about),
    start: () => startFrom(blob).then(() => byId("start-file").scrollIntoView({ block: "nearest" })),
    copy: () => copy(blob),
    remove: () => takeDown(item),
  };
  for (const button of item.querySelectorAll("[data-do]")) {
    if (button.dataset.do === "copy" && !window.ClipboardItem) button.remove();
    else button.addEventListener("click", actions[button.dataset.do]);
  }
  byId("gallery").prepend(item);
  showEmptiness();
}

function showEmptiness() {
  const none = byId("gallery").children.length === 0;
  byId("empty").hidden = !none;
  byId("clear").hidden = none;
}

function showLarge(address, about) {
  byId("large-picture").src = address;
  byId("large-picture").alt = about.prompt;
  const { prompt, negative_prompt: negative, ...rest } = about;
  byId("large-text").textContent = [prompt, negative && `without: ${negative}`,
    `${rest.width} × ${rest.height}, ${rest.num_inference_steps} steps, guidance ${rest.guidance_scale}, ` +
    `${rest.sampler}, seed ${rest.seed}`].filter(Boolean).join("\n");
  byId("large").showModal();
}

async function copy(blob) {
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    byId("news").textContent = "Copied";
  } catch {
    byId("message").textContent = "The browser did not let the picture be copied.";
  }
}

// A PNG that was dropped or chosen gives its settings; a picture that has none is one to start from.

function asAddress(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function settingsOf(file) {
  const address = await asAddress(file);
  const body = JSON.stringify({ image: address.slice(address.indexOf(",") + 1) });
  return (await call("/sdapi/v1/png-info", { method: "POST", body })).json();
}

async function saying(work) {
  byId("message").textContent = "";
  try {
    await work();
  } catch (error) {
    byId("message").textContent = error instanceof Refused ? error.message : "This file cannot be read.";
  }
}

const readFile = (file) => saying(async () => {
  const found = await settingsOf(file);
  told(restore(found.lineardit ?? found.parameters));
  byId("prompt").focus();
});

const startFromFile = (file) => saying(async () => {
  await startFrom(file);
  byId("news").textContent = "Starts from this picture";
});

const takeDropped = (file) => saying(async () => {
  const found = await settingsOf(file).catch((error) => {
    if (error instanceof Refused) return null;
    throw error;
  });
  if (found) told(restore(found.lineardit ?? found.parameters));
  else await startFromFile(file);
  byId("prompt").focus();
});

function told(missed) {
  byId("message").textContent = missed.length ? `Not taken over: ${missed.join(", ")}.` : "";
  byId("news").textContent = "Settings taken over";
}

// What happens when.

function listen() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    draw();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      draw();
    }
  });
  byId("dice").addEventListener("click", newSeed);
  for (const id of ["ratio", "side"]) byId(id).addEventListener("change", showPixels);
  byId("file").addEventListener("change", (event) => {
    if (event.target.files[0]) readFile(event.target.files[0]);
    event.target.value = "";
  });
  byId("start-file").addEventListener("change", (event) => {
    if (event.target.files[0]) startFromFile(event.target.files[0]);
    event.target.value = "";
  });
  byId("start-off").addEventListener("click", () => startFrom(null));
  byId("strength").addEventListener("input", showShare);
  byId("models").addEventListener("change", () => chooseModel(field("models")));
  byId("clear").addEventListener("click", async () => {
    if (!confirm("Remove all pictures from the gallery?")) return;
    await stored("readwrite", (store) => store.clear());
    byId("gallery").replaceChildren();
    showEmptiness();
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", kind === "dragover");
      const file = kind === "drop" && event.dataTransfer.files[0];
      if (file) (byId("start").contains(event.target) ? startFromFile : takeDropped)(file);
    });
  }
  byId("theme").value = localStorage.getItem("theme") ?? "";
  const paint = () => {
    document.documentElement.dataset.theme = field("theme");
    localStorage.setItem("theme", field("theme"));
  };
  byId("theme").addEventListener("change", paint);
  paint();
}

async function begin() {
  listen();
  showShare();
  for (const entry of await stored("readonly", (store) => store.getAll()).catch(() => [])) hang(entry);
  showEmptiness();
  try {
    models = (await (await call("/v1/models")).json()).data;
    options(byId("models"), models.map((each) => each.id), models[0].id);
    byId("models-part").hidden = models.length < 2;
    chooseModel(models[0].id);
    newSeed();
  } catch (error) {
    byId("message").textContent = error instanceof Refused ? error.message : "The server cannot be reached.";
  }
}

begin();
