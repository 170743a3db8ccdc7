// A picture's pixels to a network's input, exactly as `distilkit predict` does it with Pillow: a canvas resizes in
// another way in every browser. Pixels are 8 bits a channel, rows from the top, channels last.

const BITS = 22; // of the fraction of a filter's weights, which Pillow rounds to integers for 8-bit pixels
const LONGEST = 4; // of a picture longer than so many times its width, only the middle is resized

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (x) => {
      x = Math.abs(x);
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
    },
  },
};

/** Lay unpremultiplied RGBA on white: Pillow's `alpha_composite`, in its integers. Gives RGB. */
export function onWhite(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const alpha = rgba[from + 3];
    for (let channel = 0; channel < 3; channel++) {
      const sum = (rgba[from + channel] * alpha + 255 * (255 - alpha) + 128) << 7;
      rgb[to++] = (((sum >> 8) + sum) >> 8) >> 7;
    }
  }
  return rgb;
}

/** RGB to grey by ITU-R 601-2's luma, in Pillow's integers. */
export function toGrey(rgb) {
  const grey = new Uint8Array(rgb.length / 3);
  for (let to = 0, from = 0; to < grey.length; to++, from += 3)
    grey[to] = (rgb[from] * 19595 + rgb[from + 1] * 38470 + rgb[from + 2] * 7471 + 0x8000) >> 16;
  return grey;
}

/** For every pixel along one side: the first one that it is made of, and the integer weights. */
function weights(filter, length, start, end, target) {
  const scale = (end - start) / target;
  const stretch = Math.max(scale, 1); // antialiasing: a reduced pixel averages over all that it covers
  const support = filter.support * stretch;
  const found = [];
  for (let place = 0; place < target; place++) {
    const centre = start + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(length, Math.trunc(centre + support + 0.5)) - first;
    const exact = Array.from({ length: count }, (_, at) => filter.weight((at + first - centre + 0.5) * (1 / stretch)));
    const sum = exact.reduce((total, weight) => total + weight, 0) || 1;
    const rounded = exact.map((weight) => {
      const scaled = (weight / sum) * 2 ** BITS;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    found.push({ first, rounded });
  }
  return found;
}

/** Resample along one axis, rows ("x") or columns ("y"), from `start` to `end` into `length` pixels of 8 bits. */
function pass(image, axis, length, start, end, filter) {
  const { width, height, channels } = image;
  const across = axis === "x";
  const sums = weights(filter, across ? width : height, start, end, length);
  const made = { ...image, width: across ? length : width, height: across ? height : length };
  const row = width * channels;
  const [lines, line, step] = across ? [height, row, channels] : [width, channels, row];
  const [lineTo, stepTo] = across ? [length * channels, channels] : [channels, row];
  made.pixels = new Uint8Array(made.width * made.height * channels);
  for (let at = 0; at < lines; at++)
    for (let place = 0; place < length; place++) {
      const { first, rounded } = sums[place];
      for (let channel = 0; channel < channels; channel++) {
        let sum = 2 ** (BITS - 1);
        let from = at * line + first * step + channel;
        for (const weight of rounded) {
          sum += image.pixels[from] * weight;
          from += step;
        }
        made.pixels[at * lineTo + place * stepTo + channel] = Math.min(255, Math.max(0, sum >> BITS));
      }
    }
  return made;
}

/**
 * Pillow's `resize(size, filter, box)`, with 8 bits between its two passes.
 *
 * `image`: {pixels, width, height, channels}. `box`: [left, top, right, bottom], also between pixels. Along the rows
 * first, or, as Pillow 13 does it, along the columns where those shrink by far more. An older Pillow always begins with
 * the rows; its pixels may then differ by one level of 255.
 */
export function resize(image, width, height, box = [0, 0, image.width, image.height], filter = FILTERS.bilinear) {
  const [left, top, right, bottom] = box.map(Math.fround); // Pillow keeps the box in single precision
  const passes = [];
  if (width !== image.width || left !== 0 || right !== width) passes.push(["x", width, left, right]);
  if (height !== image.height || top !== 0 || bottom !== height) passes.push(["y", height, top, bottom]);
  const shrinks = image.height - height;
  if (shrinks > 0 && shrinks > (image.width - width) * 2) passes.reverse();
  return passes.reduce((now, [axis, length, start, end]) => pass(now, axis, length, start, end, filter), image);
}

/** Pillow's `ImageOps.fit`: the largest central part of the target's shape, resized. */
function fit(image, width, height, filter) {
  const [have, want] = [image.width / image.height, width / height];
  let [across, down] = [image.width, image.height];
  if (have > want) across = want * image.height;
  else if (have < want) down = image.width / want;
  const [left, top] = [(image.width - across) * 0.5, (image.height - down) * 0.5];
  return resize(image, width, height, [left, top, left + across, top + down], filter);
}

/** Python's `round`: halves go to the even neighbour. */
function rounded(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

function crop(image, left, top, size) {
  const { channels } = image;
  const pixels = new Uint8Array(size * size * channels);
  for (let y = 0; y < size; y++) {
    const from = ((top + y) * image.width + left) * channels;
    pixels.set(image.pixels.subarray(from, from + size * channels), y * size * channels);
  }
  return { pixels, width: size, height: size, channels };
}

/** Bring a picture in its final colours to the square that a network sees. `how`: the file's `preprocessing`. */
export function framed(image, how) {
  const [size, to] = [how.width, how.resize.to];
  if (to === size) return fit(image, size, size);
  const short = Math.min(image.width, image.height);
  if (Math.max(image.width, image.height) > LONGEST * short)
    image = fit(image, Math.min(image.width, LONGEST * short), Math.min(image.height, LONGEST * short), FILTERS.bicubic);
  const [width, height] = [image.width, image.height].map((side) => (side === short ? to : Math.trunc((to * side) / short)));
  return crop(resize(image, width, height), rounded((width - size) / 2), rounded((height - size) / 2), size);
}

/** Unpremultiplied RGBA of any size to the square that a network sees: {pixels, width, height, channels}. */
export function prepare(rgba, width, height, how) {
  const rgb = onWhite(rgba);
  const pixels = how.channels === 1 ? toGrey(rgb) : rgb;
  return framed({ pixels, width, height, channels: how.channels }, how);
}

/** The square as the network's input for `batch` images, all the same: a typed array in its layout and type. */
export function toInput({ pixels, width, height, channels }, how, batch = 1) {
  const one = how.dtype === "uint8" ? new Uint8Array(pixels.length) : new Float32Array(pixels.length);
  const places = width * height;
  for (let place = 0; place < places; place++)
    for (let channel = 0; channel < channels; channel++) {
      const value = pixels[place * channels + channel];
      const to = how.layout === "nchw" ? channel * places + place : place * channels + channel;
      one[to] = how.dtype === "uint8" ? value : value / 255;
    }
  const all = new one.constructor(one.length * batch);
  for (let image = 0; image < batch; image++) all.set(one, image * one.length);
  return all;
}
