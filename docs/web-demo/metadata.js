// What an ONNX file says of itself. onnxruntime-web does not hand it over, so it is read from the protobuf message:
// ModelProto has `metadata_props` as field 14, each a message with `key` (field 1) and `value` (field 2).

const METADATA_PROPS = 14;
const LENGTH_DELIMITED = 2;

/** The fields of a protobuf message, as [number, wire type, bytes or null]. Throws where it is none. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; scale < 2 ** 70; scale *= 128) {
      if (at >= bytes.length) break;
      const byte = bytes[at++];
      value += (byte & 127) * scale; // not shifted: lengths may need more than 31 bits
      if (byte < 128) return value;
    }
    throw new Error("not a protobuf message");
  };
  while (at < bytes.length) {
    const tag = varint();
    const [number, type] = [Math.floor(tag / 8), tag % 8];
    const length = type === 0 ? (varint(), 0) : type === 1 ? 8 : type === 5 ? 4 : type === LENGTH_DELIMITED ? varint() : NaN;
    if (!number || !(at + length <= bytes.length)) throw new Error("not a protobuf message");
    yield [number, type, bytes.subarray(at, at + length)];
    at += length;
  }
}

/** The metadata of an ONNX file as an object of strings. Throws where the bytes are no protobuf message. */
export function readMetadata(bytes) {
  const text = new TextDecoder("utf-8", { fatal: true });
  const found = {};
  for (const [number, type, entry] of fields(bytes)) {
    if (number !== METADATA_PROPS || type !== LENGTH_DELIMITED) continue;
    const pair = { 1: "", 2: "" };
    for (const [part, , value] of fields(entry)) pair[part] = text.decode(value);
    found[pair[1]] = pair[2];
  }
  return found;
}

const SIZE = (value) => Number.isInteger(value) && value > 0;

/**
 * The classes' names and how a picture becomes the input, from a file's metadata.
 *
 * Throws an `Error` whose message is for people where the file is no export of distilkit, or asks for steps that this
 * page does not know: what is not understood is not guessed.
 */
export function describe(about, name) {
  if (!("distilkit_version" in about))
    throw new Error(
      `${name} was not exported by distilkit: it says neither its classes nor how pictures are prepared. ` +
        "Choose a file that “distilkit export” wrote.",
    );
  if (!("preprocessing" in about && "classes" in about))
    throw new Error(
      `${name} was exported by distilkit ${about.distilkit_version}, which did not write down how pictures are ` +
        "prepared. Export the run again.",
    );
  let classes, how;
  try {
    [classes, how] = [JSON.parse(about.classes), JSON.parse(about.preprocessing)];
  } catch {
    throw new Error(`The metadata of ${name} are damaged. Export the run again.`);
  }
  const understood = [
    Array.isArray(classes) && classes.length > 0 && classes.every((each) => typeof each === "string"),
    how?.format === 1,
    SIZE(how?.width) && how.height === how.width && SIZE(how.resize?.to) && how.resize.to >= how.width,
    how?.channels === 3 ? how.colour === "rgb" : how?.channels === 1 && how.colour === "grey",
    how?.layout === "nchw" || how?.layout === "nhwc",
    how?.dtype === "float32" || how?.dtype === "uint8",
    how?.range?.[0] === 0 && how.range[1] === (how.dtype === "uint8" ? 255 : 1),
    how?.orientation === "exif" && how.transparency === "white" && how.crop === "centre",
    how?.resize?.filter === "bilinear" && how.resize.antialias === true,
    how?.resize?.rule === (how?.resize?.to === how?.width ? "central-square" : "shorter-side"),
  ];
  if (understood.includes(false))
    throw new Error(`${name} asks for pictures to be prepared in a way that this page does not know.`);
  return { classes, how };
}
