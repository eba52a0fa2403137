"use strict";
const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("page-data").textContent);
const DECODE = { premultiplyAlpha: "none", imageOrientation: "from-image" };  // a photo's colors become sRGB, as in Python
const SAME_COLOR = 4;  // levels of 255 by which programs that convert colors differ
const TOLERANCE = 0.02;  // of a probability: layers in float round otherwise on other processors
const READY = "Ready, and checked: it answers here as it did where it was made.";
const TOO_LARGE = "This photo is larger than this browser can draw. Make it smaller, or use another browser.";
let session, Tensor;
const unturned = new Set();  // kinds of files that this browser shows as they lie, whatever they say of the camera
let last = Promise.resolve();  // one photo at a time

function fromBase64(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
  return bytes;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function unpack(id) {
  let bytes;
  try {
    const packed = new Blob([fromBase64(byId(id).textContent)]).stream();
    bytes = new Uint8Array(await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
  } catch (error) {
    console.info(error);
  }
  if (bytes && await sha256(bytes) === page.sha256[id]) return bytes;
  throw new Error("This page was changed or damaged on its way, so the program in it cannot be trusted. Get the page again.");
}

function blobOf(uri) {
  const [head, text] = uri.split(",");
  return new Blob([fromBase64(text)], { type: head.slice(5, head.indexOf(";")) });
}

function newCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

function kindOf(bytes) {
  const start = String.fromCharCode(...bytes.subarray(0, 12));
  if (start.startsWith("\x89PNG")) return "png";
  if (start.startsWith("RIFF") && start.endsWith("WEBP")) return "webp";
  return start.endsWith("ftypavif") ? "avif" : "other";
}

function find(bytes, name, from = 0) {
  const letters = Array.from(name, (letter) => letter.charCodeAt(0));
  for (let place = from; place < bytes.length - 8; place++) {
    if (letters.every((letter, number) => bytes[place + number] === letter)) return place + letters.length;
  }
  return -1;
}

// how the camera was held, 1 to 8 as in EXIF, by the chunk of PNG or WebP
function exifOrientation(bytes, kind) {
  const chunk = find(bytes, kind === "png" ? "eXIf" : "EXIF");
  const start = chunk < 0 ? -1 : Math.min(...["II*\0", "MM\0*"].map((mark) => find(bytes, mark, chunk)).filter((place) => place > 0)) - 4;
  if (!(start > 0 && start < chunk + 16)) return 1;
  const data = new DataView(bytes.buffer, bytes.byteOffset + start), little = bytes[start] === 0x49;
  const table = data.getUint32(4, little);
  for (let entry = table + 2, left = data.getUint16(table, little); left > 0; entry += 12, left--) {
    if (data.getUint16(entry, little) === 0x0112) return data.getUint16(entry + 8, little);
  }
  return 1;
}

// the same by AVIF's own words: quarter turns to the left, then a mirror
function avifOrientation(bytes) {
  const start = bytes.subarray(0, 4096), turned = find(start, "irot"), mirrored = find(start, "imir");
  const angle = turned < 0 ? 0 : start[turned] & 3;
  if (mirrored < 0) return [1, 8, 3, 6][angle];
  return (start[mirrored] & 1 ? [2, 7, 4, 5] : [4, 5, 2, 7])[angle];
}

function orientationOf(bytes) {
  const kind = kindOf(bytes);
  if (!unturned.has(kind)) return 1;
  try {
    return kind === "avif" ? avifOrientation(bytes) : exifOrientation(bytes, kind);
  } catch {
    return 1;  // damaged EXIF, as in Python
  }
}

// photo → upright RGB pixels on white; also what the page shows
async function decode(blob) {
  const [bitmap, bytes] = await Promise.all([createImageBitmap(blob, DECODE), blob.arrayBuffer()]);
  const orientation = orientationOf(new Uint8Array(bytes)), { width, height } = bitmap;
  const canvas = orientation > 4 ? newCanvas(height, width) : newCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const turn = {
    2: [-1, 0, 0, 1, width, 0], 3: [-1, 0, 0, -1, width, height], 4: [1, 0, 0, -1, 0, height], 5: [0, 1, 1, 0, 0, 0],
    6: [0, 1, -1, 0, height, 0], 7: [0, -1, -1, 0, height, width], 8: [0, -1, 1, 0, 0, width],
  }[orientation];
  if (turn) context.setTransform(...turn);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { canvas, rgb: readPixels(context, canvas) };
}

function readPixels(context, { width, height }) {
  let rgba = [];
  try {
    rgba = context.getImageData(0, 0, width, height).data;
  } catch (error) {
    console.info(error);
  }
  // beyond its limits, a canvas stays empty: not even the white is there
  if (rgba[3] !== 255 || rgba[rgba.length - 1] !== 255) throw Object.assign(new Error(TOO_LARGE), { isPlain: true });
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

async function answer({ canvas, rgb }) {
  const output = await session.run({ image: new Tensor("uint8", rgb, [1, canvas.height, canvas.width, 3]) });
  const probabilities = Array.from(output.probabilities.data), sure = Math.max(...probabilities);
  return {
    label: page.classes[probabilities.indexOf(sure)],
    probabilities,
    unsure: sure < page.abstain_below,
    unknown: Boolean(output.novelty && page.novelty_above !== null && output.novelty.data[0] > page.novelty_above),
  };
}

async function load() {
  if (!self.crypto?.subtle || !self.DecompressionStream) {
    throw new Error("This browser is too old for the program, or the page came over http. Save the page and open the file in a current browser.");
  }
  const [code, binary, model] = await Promise.all(["runtime-code", "runtime-binary", "model"].map(unpack));
  const ort = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.numThreads = 1;  // threads need a server's headers
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  Tensor = ort.Tensor;
  for (const [kind, uri] of Object.entries(page.self_test.turned)) {
    const probe = await createImageBitmap(blobOf(uri), DECODE).catch(() => null);  // none where it cannot read the kind
    if (probe && probe.width > probe.height) unturned.add(kind);
  }
  const seen = await decode(blobOf(page.self_test.photo));
  if (await sha256(seen.rgb) !== page.self_test.pixels) {
    throw new Error("This browser alters the colors of photos before a page sees them, as protection against tracking does. Answers would be wrong. Allow this page to read images, or use another browser.");
  }
  const profiled = (await decode(blobOf(page.self_test.with_profile))).rgb;
  if (profiled.some((value, place) => Math.abs(value - seen.rgb[place]) > SAME_COLOR)) {
    throw new Error("This browser does not show the colors that photos of many phones mean (their color profiles). Answers would be wrong. Use another browser.");
  }
  const { probabilities } = await answer(seen);
  if (probabilities.some((value, place) => !(Math.abs(value - page.self_test.probabilities[place]) <= TOLERANCE))) {
    throw new Error("In this browser the program does not give the answers that it should. Use another browser.");
  }
}

async function look(blob) {
  await window.ready;
  const start = performance.now(), photo = await decode(blob), found = await answer(photo);
  return { found: { ...found, ms: performance.now() - start }, canvas: photo.canvas };
}

function queue(blob) {
  const result = last.then(() => look(blob));
  last = result.catch(() => {});
  return result;
}

// for others: blob → {label, probabilities, unsure, unknown, ms}
window.classify = async (blob) => (await queue(blob)).found;
window.ready = load();
window.ready.then(
  () => { byId("inputs").hidden = false; byId("state").textContent = READY; },
  (error) => { byId("state").textContent = error.message; byId("state").className = "problem"; },
);

function element(name, text, className = "") {
  return Object.assign(document.createElement(name), { textContent: text, className });
}

function percent(value) {
  return value > 0.995 && value < 1 ? "over 99 %" : `${Math.round(100 * value)} %`;
}

function thumbnail(canvas) {
  const scale = Math.min(1, 240 / Math.max(canvas.width, canvas.height));
  const small = newCanvas(Math.max(1, canvas.width * scale), Math.max(1, canvas.height * scale));
  small.getContext("2d").drawImage(canvas, 0, 0, small.width, small.height);
  return small;
}

function describe(item, found) {
  const title = element("p", "", "label");
  title.append(element("bdi", found.label));
  item.append(title);
  if (found.unknown || found.unsure) {
    title.append(element("span", found.unknown ? "unknown" : "unsure", "badge doubt"));
    item.append(element("p", found.unknown ? "It resembles no photo that it learned from; this class comes nearest." : "Too close to call: look for yourself."));
  }
  const order = found.probabilities.map((_, place) => place).sort((a, b) => found.probabilities[b] - found.probabilities[a]);
  const bars = element("div", "", "bars");
  for (const place of order.slice(0, 3)) {
    const bar = Object.assign(document.createElement("meter"), { value: found.probabilities[place] });
    bar.setAttribute("aria-label", `probability of ${page.classes[place]}`);
    bars.append(element("bdi", page.classes[place]), bar, element("span", percent(found.probabilities[place])));
  }
  item.append(bars);
}

async function show(blob, name) {
  const item = element("li", ""), text = element("div", "");
  try {
    const { found, canvas } = await queue(blob);
    item.append(thumbnail(canvas), text);
    describe(text, found);
    text.append(element("p", `${name} · ${Math.round(found.ms)} ms`, "file"));
  } catch (error) {
    console.info(error);
    item.className = "problem";
    const reason = "cannot be read as a photo here. It may be damaged, or of a kind that this browser does not know; JPEG, PNG and WebP work.";
    item.append(element("div", error.isPlain ? `${name}: ${error.message}` : `${name} ${reason}`));
  }
  byId("results").prepend(item);
}

async function showAll(files) {
  for (let done = 0; done < files.length && !byId("inputs").hidden; done++) {
    byId("state").textContent = `Photo ${done + 1} of ${files.length} …`;
    await show(files[done], files[done].name);
    byId("state").textContent = READY;
  }
}

for (const id of ["choose", "camera"]) {
  byId(id).addEventListener("change", async (event) => { await showAll([...event.target.files]); event.target.value = ""; });
}
for (const button of document.querySelectorAll(".sample")) {
  button.addEventListener("click", () => show(blobOf(button.firstElementChild.src), `In truth: ${button.dataset.name}`));
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); showAll([...event.dataTransfer.files]); });
document.addEventListener("paste", (event) => showAll([...event.clipboardData.files]));
addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("details")) folded.open = true; });
