import { describe, readMetadata } from "./metadata.js";
import { prepare, toInput } from "./picture.js";

const RUNTIME = "./node_modules/onnxruntime-web/dist/";
const MEGAPIXELS = 64; // four bytes each, twice: as much as a phone's browser spares
const TOP = 5;

const at = (id) => document.getElementById(id);
const shown = { model: null, picture: null };
const turns = { model: 0, picture: 0 }; // of each, what was dropped last counts, whichever is ready first

function say(text) {
  at("error").hidden = true;
  at("status").textContent = text;
}

function complain(error) {
  at("status").textContent = "";
  at("error").textContent = error.message;
  at("error").hidden = false;
}

async function runtime() {
  let ort;
  try {
    ort = await import(`${RUNTIME}ort.wasm.min.mjs`);
  } catch {
    throw new Error("onnxruntime-web is not here. Type “npm install” in the folder of this page, then load it again.");
  }
  ort.env.wasm.wasmPaths = new URL(RUNTIME, import.meta.url).href;
  ort.env.wasm.numThreads = 1; // more need headers that a plain server of files does not send
  ort.env.logLevel = "error";
  return ort;
}

const firstLine = (error) => String(error?.message ?? error).trim().split("\n")[0];

async function openModel(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let about;
  try {
    about = readMetadata(bytes);
  } catch {
    throw new Error(`${file.name} is not an ONNX file, or is not whole.`);
  }
  const { classes, how } = describe(about, file.name);
  const ort = await runtime();
  let session;
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`${file.name} cannot be opened by onnxruntime-web: ${firstLine(error)}`);
  }
  const model = { name: file.name, about, classes, how, session, ort };
  const shape = session.inputMetadata?.[0]?.shape ?? [];
  model.batch = typeof shape[0] === "number" && shape[0] > 0 ? shape[0] : 1;
  try {
    // The first run allocates memory, and shows whether the file keeps what it says.
    await probabilities(model, new Uint8Array(how.width * how.height * how.channels));
  } catch (error) {
    await session.release();
    throw new Error(`${file.name} contradicts itself: ${firstLine(error)}`);
  }
  return model;
}

/** The classes' probabilities for one framed picture, and the milliseconds that the run took. */
async function probabilities({ ort, session, how, classes, batch }, pixels) {
  const { width, height, channels } = how;
  const input = toInput({ pixels, width, height, channels }, how, batch);
  const size = how.layout === "nchw" ? [channels, height, width] : [height, width, channels];
  const tensor = new ort.Tensor(how.dtype, input, [batch, ...size]);
  const began = performance.now();
  const outputs = await session.run({ [session.inputNames[0]]: tensor }, ["probabilities"]);
  const took = performance.now() - began;
  const values = Array.from(outputs.probabilities.data.subarray(0, classes.length));
  if (outputs.probabilities.data.length !== batch * classes.length)
    throw new Error(`it does not give the probabilities of its ${classes.length} classes`);
  if (!values.every(Number.isFinite)) throw new Error("the network's probabilities are not finite numbers");
  return { values, took };
}

async function openPicture(file) {
  const url = URL.createObjectURL(file);
  const unreadable = new Error(
    `${file.name} is not a picture that this browser can read. JPEG, PNG, WebP, GIF and BMP work in all.`,
  );
  try {
    // The element knows a picture's size before it decodes it.
    const element = new Image();
    await new Promise((resolve, reject) => {
      element.onload = resolve;
      element.onerror = () => reject(unreadable);
      element.src = url;
    });
    const [width, height] = [element.naturalWidth, element.naturalHeight];
    if (!width || !height) throw unreadable;
    if (width * height > MEGAPIXELS * 1e6)
      throw new Error(`${file.name} has ${width} × ${height} pixels; this page takes up to ${MEGAPIXELS} million.`);
    return { name: file.name, url, ...(await decode(file, unreadable)) };
  } catch (error) {
    URL.revokeObjectURL(url);
    throw error;
  }
}

/** A picture's pixels as unpremultiplied RGBA, turned as its EXIF data say, its colour profile ignored. */
async function decode(file, unreadable) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" }).catch(() => {
    throw unreadable;
  });
  const { width, height } = bitmap;
  try {
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const rgba = context.getImageData(0, 0, width, height).data;
    return { width, height, rgba: (await unpremultiplied(file, rgba, width, height)) ?? rgba };
  } catch (error) {
    throw new Error(`${file.name} needs more memory than this browser gives: ${firstLine(error)}`);
  } finally {
    bitmap.close();
  }
}

/** A canvas keeps colours multiplied by their alpha, which rounds them. Where the browser can, they are read again. */
async function unpremultiplied(file, rgba, width, height) {
  let place = 3;
  while (place < rgba.length && (rgba[place] === 0 || rgba[place] === 255)) place += 4;
  if (place >= rgba.length || !("ImageDecoder" in globalThis)) return null;
  try {
    const decoder = new ImageDecoder({ data: await file.arrayBuffer(), type: file.type, colorSpaceConversion: "none" });
    const { image } = await decoder.decode();
    const upright = !image.rotation && !image.flip && image.codedWidth === width && image.codedHeight === height;
    const again = new Uint8ClampedArray(rgba.length);
    if (upright) await image.copyTo(again, { format: "RGBA" });
    image.close();
    decoder.close();
    return upright ? again : null;
  } catch {
    return null;
  }
}

function percent(probability) {
  return `${(100 * probability).toFixed(2)} %`;
}

function showModel(model) {
  const { about, how, classes } = model;
  at("model-name").textContent = model.name;
  const facts = {
    network: about.architecture,
    "trained on": about.dataset,
    method: about.method,
    member: about.member,
    classes: classes.length,
    pictures: `${how.width} × ${how.height}, ${how.colour}`,
    "test error": about.top1_error_percent ? `${Number(about.top1_error_percent).toFixed(2)} %` : "",
  };
  at("model-facts").replaceChildren(
    ...Object.entries(facts)
      .filter(([, value]) => value !== undefined && value !== "")
      .flatMap(([name, value]) => {
        const [term, fact] = [document.createElement("dt"), document.createElement("dd")];
        [term.textContent, fact.textContent] = [name, value];
        return [term, fact];
      }),
  );
}

function showPicture(picture) {
  at("picture-name").textContent = `${picture.name}, ${picture.width} × ${picture.height}`;
  at("picture").src = picture.url;
  at("picture").alt = `The picture ${picture.name}`;
  at("pictures").hidden = false;
}

function showSeen({ pixels, width, height, channels }) {
  const image = new ImageData(width, height);
  for (let place = 0; place < width * height; place++) {
    for (let channel = 0; channel < 3; channel++)
      image.data[4 * place + channel] = pixels[place * channels + (channels === 3 ? channel : 0)];
    image.data[4 * place + 3] = 255;
  }
  Object.assign(at("seen"), { width, height });
  at("seen").getContext("2d").putImageData(image, 0, 0);
  at("seen-figure").hidden = false;
}

function showResult(classes, values, took) {
  // Stable: of equal ones the first class, as in Python.
  const best = values.map((_, place) => place).sort((one, other) => values[other] - values[one] || one - other);
  const row = at("row").content;
  at("classes").replaceChildren(
    ...best.slice(0, TOP).map((place) => {
      const item = row.cloneNode(true);
      item.querySelector(".class").textContent = classes[place];
      item.querySelector(".percent").textContent = percent(values[place]);
      item.querySelector(".percent").value = values[place];
      item.querySelector(".bar").style.inlineSize = `${100 * values[place]}%`;
      return item;
    }),
  );
  at("time").textContent = `One run took ${took.toFixed(1)} ms in this browser, on one thread.`;
  at("result").hidden = false;
  say(`Most probable: ${classes[best[0]]}, ${percent(values[best[0]])}`);
}

function hideResult() {
  at("result").hidden = true;
  at("seen-figure").hidden = true;
}

async function answer() {
  const { model, picture } = shown;
  if (!model || !picture) {
    say(
      picture
        ? "There is no model yet: choose an .onnx file that “distilkit export” wrote."
        : `${model.name} is ready. Now choose, drop or paste a picture.`,
    );
    return;
  }
  say("Running …");
  const square = prepare(picture.rgba, picture.width, picture.height, model.how);
  const { values, took } = await probabilities(model, square.pixels);
  if (model !== shown.model || picture !== shown.picture) return;
  showSeen(square);
  showResult(model.classes, values, took);
}

let working = 0;

function busy(change) {
  working += change;
  document.querySelector("main").ariaBusy = working > 0;
}

const isModel = (file) => /\.onnx$/i.test(file.name);

async function take(file) {
  const kind = isModel(file) ? "model" : "picture";
  const mine = ++turns[kind];
  // What was here before goes at once: its answer must not stand under another's name.
  const before = shown[kind];
  shown[kind] = null;
  hideResult();
  at(`${kind}-name`).textContent = "none yet";
  say(`Reading ${file.name} …`);
  busy(1);
  try {
    if (kind === "model") {
      at("model-facts").replaceChildren();
      await before?.session.release();
      const model = await openModel(file);
      if (mine !== turns.model) return void (await model.session.release());
      showModel((shown.model = model));
    } else {
      at("pictures").hidden = true;
      if (before) URL.revokeObjectURL(before.url);
      const picture = await openPicture(file);
      if (mine !== turns.picture) return;
      showPicture((shown.picture = picture));
    }
    await answer();
  } catch (error) {
    if (mine === turns[kind]) complain(error);
  } finally {
    busy(-1);
  }
}

/** One of each at most: a model and a picture that are dropped together belong together. */
async function takeAll(files) {
  const all = [...files];
  const model = all.find(isModel);
  const picture = all.find((file) => !isModel(file));
  if (model) await take(model);
  if (picture && (!model || shown.model)) await take(picture);
}

for (const id of ["model-file", "picture-file"])
  at(id).addEventListener("change", async ({ target }) => {
    await takeAll(target.files);
    target.value = ""; // so that the same file can be chosen again
  });

let inside = 0; // dragenter and dragleave come for every element below the pointer
const dragging = (change) => document.body.classList.toggle("dragging", (inside = change) > 0);
document.addEventListener("dragenter", () => dragging(inside + 1));
document.addEventListener("dragleave", () => dragging(inside - 1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  dragging(0);
  if (event.dataTransfer.files.length) takeAll(event.dataTransfer.files);
  else complain(new Error("What was dropped is no file. Save the picture first, or copy it and paste it here."));
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) takeAll(event.clipboardData.files);
});
busy(0);
say("Choose an .onnx file that “distilkit export” wrote.");
