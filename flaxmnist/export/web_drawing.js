// Makes an image like those of MNIST from a drawing, as flaxmnist.pictures does. It finds
// no ink in uneven light, on ruled paper or in noise; `flaxmnist predict` does.

// Pixels in MNIST: side of the digit, side of the image, width of a stroke.
const BOX = 20, SIDE = 28, STROKE = 2.4;
const LEVELS = [0.4, 0.2, 0.1, 0.05];
// An image is {data, height, width}, of floating point.
const image = (height, width, data = new Float32Array(height * width)) => ({ data, height, width });

// The median of bytes.
function median(bytes) {
  const counts = new Uint32Array(256);
  for (const each of bytes) counts[each] += 1;
  let below = 0, value = 0;
  while (2 * (below += counts[value]) < bytes.length) value += 1;
  return value;
}

// As Python does: to the nearest even number.
function roundEven(x) {
  const low = Math.floor(x), rest = x - low;
  return rest === 0.5 ? low + (low % 2) : Math.round(x);
}

// Applies a function to each pixel and its place; a loop is faster than methods of arrays.
function mapped({ data, height, width }, value) {
  const result = image(height, width);
  for (let at = 0; at < data.length; at += 1) result.data[at] = value(data[at], at);
  return result;
}

// Not Math.max(...values): some browsers limit the number of arguments.
const largest = (values) => values.reduce((one, other) => Math.max(one, other), -Infinity);
const over = (ink, threshold) => mapped(ink, (each) => (each > threshold ? 1 : 0));

// Whether a square around each pixel contains a pixel of the mask.
function dilate(mask, reach) {
  const { height, width } = mask, spread = (from, count, step, lines, jump) => {
    const to = image(height, width);
    for (let line = 0; line < lines; line += 1) {
      const first = line * jump;
      for (let at = 0, last = -Infinity; at < count; at += 1) {
        if (from.data[first + at * step]) last = at;
        if (at - last <= reach) to.data[first + at * step] = 1;
      }
      for (let at = count - 1, last = Infinity; at >= 0; at -= 1) {
        if (from.data[first + at * step]) last = at;
        if (last - at <= reach) to.data[first + at * step] = 1;
      }
    }
    return to;
  };
  return spread(spread(mask, width, 1, height, width), height, width, width, 1);
}

const not = (mask) => mapped(mask, (each) => 1 - each);
const erode = (mask, reach) => not(dilate(not(mask), reach));

// The box of the pixels above a threshold; null if there are none.
function boxOf({ data, height, width }, threshold) {
  let top = height, left = width, bottom = 0, right = 0;
  for (let row = 0, at = 0; row < height; row += 1) for (let column = 0; column < width; column += 1, at += 1)
    if (data[at] > threshold) {
      top = Math.min(top, row); bottom = row + 1;
      left = Math.min(left, column); right = Math.max(right, column + 1);
    }
  return bottom ? { top, left, bottom, right } : null;
}

function part(ink, top, left, bottom, right) {
  const result = image(bottom - top, right - left);
  for (let row = top; row < bottom; row += 1)
    result.data.set(ink.data.subarray(row * ink.width + left, row * ink.width + right), (row - top) * result.width);
  return result;
}

function crop(ink) {
  const box = boxOf(ink, 0.05);
  return part(ink, box.top, box.left, box.bottom, box.right);
}

// Numbers connected pixels from 1; returns the labels, and a part with its box per label.
function components(mask) {
  const { height, width } = mask, labels = new Int32Array(height * width), parts = [];
  for (let seed = 0; seed < labels.length; seed += 1) {
    if (!mask.data[seed] || labels[seed]) continue;
    const label = parts.length + 1, stack = [seed];
    const part = { label, top: height, left: width, bottom: 0, right: 0, pixels: stack };
    labels[seed] = label;
    for (let next = 0; next < stack.length; next += 1) {
      const column = stack[next] % width, row = (stack[next] - column) / width;
      part.top = Math.min(part.top, row); part.bottom = Math.max(part.bottom, row + 1);
      part.left = Math.min(part.left, column); part.right = Math.max(part.right, column + 1);
      for (let y = Math.max(0, row - 1); y <= Math.min(height - 1, row + 1); y += 1)
        for (let x = Math.max(0, column - 1); x <= Math.min(width - 1, column + 1); x += 1)
          if (mask.data[y * width + x] && !labels[y * width + x]) {
            labels[y * width + x] = label;
            stack.push(y * width + x);
          }
    }
    parts.push({ ...part, tall: part.bottom - part.top, wide: part.right - part.left });
  }
  return { labels, parts };
}

// Adds contrast and score to a part: see flaxmnist/pictures/components.py.
function measure(part, labels, { mark, inner, top, left, height, width }, threshold) {
  let first = 0, second = 0, outline = 0, contact = 0;
  for (const at of part.pixels) {
    const column = at % mark.width, row = (at - column) / mark.width, value = mark.data[at];
    first += value; second += value * value; outline += 1 - inner.data[at];
    contact += (top + row === 0) + (top + row === height - 1) + (left + column === 0) + (left + column === width - 1);
  }
  const contrast = second / Math.max(first, 1e-9), ratio = contrast / threshold;
  contact /= outline + 1;
  const extent = Math.max(part.tall, part.wide), room = roundEven(0.6 * extent);
  const step = Math.max(1, Math.floor((part.tall + 2 * room) / 64));
  let beside = 0, light = 0;
  for (let row = Math.max(-top, part.top - room); row < Math.min(height - top, part.bottom + room); row += step)
    for (let column = Math.max(-left, part.left - room); column < Math.min(width - left, part.right + room); column += step) {
      const at = row * mark.width + column, isInside = row >= 0 && row < mark.height && column >= 0 && column < mark.width;
      if (isInside && labels[at] === part.label) continue;
      beside += 1;
      light += !isInside || mark.data[at] <= 0.4 * contrast;
    }
  let score = contrast * (beside ? light / beside : 0) * Math.sqrt(Math.min(extent / Math.max(height, width), 0.5));
  score *= Math.exp(-(Math.log(ratio / 2) ** 2)) * (part.wide > 3 * part.tall ? 0.1 : 1);
  const isTight = part.tall >= 0.95 * height && part.wide >= 0.95 * width;
  if (contact) score *= 0.7 * Math.exp(-6 * Math.max(0, contact - (isTight ? 0.3 : 0.05)));
  const isInk = part.pixels.length >= 6 && ratio >= 1.35 && ratio <= 3.2 && contrast >= 0.06;
  return { ...part, contrast, contact, score: isInk ? score : 0 };
}

// Returns whether a part belongs to the digit, or is another digit beside it.
function belongs(part, best) {
  if (Math.max(part.tall, part.wide) > 2.5 * Math.max(best.tall, best.wide) || part.contact > best.contact + 0.02) return false;
  if (part.contrast < 0.5 * best.contrast || (part.wide > 3 * part.tall && part.wide > 1.1 * best.wide)) return false;
  const down = Math.max(part.top - best.bottom, best.top - part.bottom, 0);
  const across = Math.max(part.left - best.right, best.left - part.right, 0);
  const isDigit = part.tall >= 0.4 * best.tall && part.score >= 0.2 * best.score && part.contrast >= 0.7 * best.contrast;
  return isDigit || Math.hypot(down, across) < 0.15 * best.tall;
}

// Returns the ink of a gray picture, 0 to 1; null if there is none.
function findInk(gray) {
  const paper = median(gray.data) / 255, isLight = paper < 0.5, ground = isLight ? 1 - paper : paper;
  const whole = mapped(gray, (each) => (isLight ? each / 255 - paper : paper - each / 255) / ground);
  const box = boxOf(whole, 0.04), { height, width } = gray;
  if (!box) return null;
  // The ink, with room for the squares below.
  const top = Math.max(0, box.top - 8), left = Math.max(0, box.left - 8);
  const mark = part(whole, top, left, Math.min(height, box.bottom + 8), Math.min(width, box.right + 8));
  for (const threshold of LEVELS) {
    const gap = Math.max(height, width) < 400 ? 1 : 2;
    const closed = erode(dilate(over(mark, threshold), gap), gap);
    const place = { mark, inner: erode(closed, 1), top, left, height, width };
    const { labels, parts } = components(closed);
    const found = parts.map((each) => measure(each, labels, place, threshold)).filter((each) => each.score > 0);
    if (!found.length) continue;
    const best = found.reduce((one, other) => (other.score > one.score ? other : one));
    const mask = image(mark.height, mark.width);
    for (const each of found) if (each === best || belongs(each, best)) for (const at of each.pixels) mask.data[at] = 1;
    const room = dilate(mask, 2).data;
    const strong = mark.data.filter((each, at) => room[at] && each > best.contrast / 2).sort();
    const rank = 0.6 * (strong.length - 1), low = Math.floor(rank), next = Math.min(low + 1, strong.length - 1);
    const level = strong[low] + (rank - low) * (strong[next] - strong[low]), floor = 0.1 * level;
    return mapped(mark, (each, at) => (room[at] ? Math.min(Math.max((each - floor) / (level - floor), 0), 1) : 0));
  }
  return null;
}

// Removes specks; also returns the number of digits side by side.
function clean(ink) {
  const { height, width } = ink;
  const { parts } = components(over(ink, 0.3));
  const sizes = parts.map((part) => part.pixels.reduce((sum, at) => sum + ink.data[at], 0));
  const least = 0.03 * largest(sizes);
  const kept = parts.filter((_, index) => sizes[index] >= least), result = image(height, width);
  for (const part of kept) for (const at of part.pixels) {
    const column = at % width, row = (at - column) / width;
    for (let i = -2; i <= 2; i += 1) for (let j = Math.abs(i) - 2; j <= 2 - Math.abs(i); j += 1)
      if (row + i >= 0 && row + i < height && column + j >= 0 && column + j < width)
        result.data[at + i * width + j] = ink.data[at + i * width + j];
  }
  const tallest = largest(kept.map((part) => part.tall));
  let digits = 0, right = -1;
  for (const part of kept.filter((each) => each.tall > 0.6 * tallest).sort((one, other) => one.left - other.left)) {
    digits += part.left >= right;
    right = Math.max(right, part.right);
  }
  return [result, digits];
}

function pad(ink, room) {
  const result = image(ink.height + 2 * room, ink.width + 2 * room);
  for (let row = 0; row < ink.height; row += 1)
    result.data.set(ink.data.subarray(row * ink.width, (row + 1) * ink.width), (row + room) * result.width + room);
  return result;
}

// Whether thinning removes a pixel in the first half of a pass (1), the second (2), both
// (3) or none, by its eight neighbours: bits from the upper left one clockwise. Measured
// on scikit-image, whose skeletonize varies Zhang and Suen (1984, "A Fast Parallel
// Algorithm for Thinning Digital Patterns").
const THIN = Uint8Array.from(
  "0001001300111013000000002020303300000000300000000000000020003022" +
  "0000000000000000000000000000000020000000200020003000000030003020" +
  "0031001300000001000000000000000131000000000000002000000000000000" +
  "2313001300000001000000000000000023010001000000003301000022002000");

// Returns the number of pixels of the skeleton.
function skeletonLength(stroke) {
  const { data, width } = pad(stroke, 1), around = [-1 - width, -width, 1 - width, 1, 1 + width, width, width - 1, -1];
  let pixels = [...data.keys()].filter((at) => data[at]);
  for (let before = -1; before !== pixels.length;) {
    before = pixels.length;
    for (const half of [1, 2]) {
      const kept = [], removed = [];
      for (const at of pixels) {
        let near = 0;
        for (let bit = 0; bit < 8; bit += 1) if (data[at + around[bit]]) near |= 1 << bit;
        (THIN[near] & half ? removed : kept).push(at);
      }
      for (const at of removed) data[at] = 0;
      pixels = kept;
    }
  }
  return pixels.length;
}

// Widens strokes that would be thinner than MNIST's after scaling.
function thicken(ink, scale) {
  const stroke = over(ink, 0.5);
  const area = stroke.data.reduce((sum, each) => sum + each, 0);
  const radius = (STROKE / scale - area / Math.max(skeletonLength(stroke), 1)) / 2;
  if (radius < 0.5) return ink;
  const room = Math.ceil(radius), result = pad(ink, room), wide = pad(stroke, room), { height, width } = result;
  // Distance to the stroke within a column, then in both directions.
  const vertical = new Float32Array(height * width).fill(Infinity);
  for (let at = 0; at < vertical.length; at += 1)
    vertical[at] = wide.data[at] ? 0 : at < width ? Infinity : vertical[at - width] + 1;
  for (let at = vertical.length - width - 1; at >= 0; at -= 1) vertical[at] = Math.min(vertical[at], vertical[at + width] + 1);
  for (let row = 0; row < height; row += 1) for (let column = 0; column < width; column += 1) {
    let nearest = Infinity;
    for (let near = Math.max(0, column - room - 1); near <= Math.min(width - 1, column + room + 1); near += 1)
      nearest = Math.min(nearest, (near - column) ** 2 + vertical[row * width + near] ** 2);
    const at = row * width + column, value = Math.min(radius + 0.5 - Math.sqrt(nearest), 1);
    result.data[at] = Math.max(value, result.data[at]);
  }
  return result;
}

// Weights of a bicubic filter as in Pillow: the kernel widens where an image shrinks.
function filters(from, to) {
  const scale = from / to, wide = Math.max(scale, 1), a = -0.5;
  const kernel = (x) => (x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0);
  return Array.from({ length: to }, (_, index) => {
    const center = (index + 0.5) * scale, first = Math.max(0, Math.floor(center - 2 * wide + 0.5));
    const last = Math.min(from, Math.floor(center + 2 * wide + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) => kernel(Math.abs((i + first - center + 0.5) / wide)));
    const total = weights.reduce((sum, each) => sum + each, 0);
    return { first, weights: weights.map((each) => each / total) };
  });
}

function product(weights, data, first, step) {
  let sum = 0;
  for (let i = 0; i < weights.length; i += 1) sum += weights[i] * data[first + i * step];
  return sum;
}

function resize(ink, scale) {
  const [height, width] = [ink.height, ink.width].map((side) => Math.max(1, roundEven(side * scale)));
  const narrow = image(ink.height, width), small = image(height, width);
  filters(ink.width, width).forEach(({ first, weights }, column) => {
    for (let row = 0; row < ink.height; row += 1)
      narrow.data[row * width + column] = product(weights, ink.data, row * ink.width + first, 1);
  });
  filters(ink.height, height).forEach(({ first, weights }, row) => {
    for (let column = 0; column < width; column += 1)
      small.data[row * width + column] = product(weights, narrow.data, first * width + column, width);
  });
  return small;
}

// Returns {bytes, warnings} of a gray picture; bytes is null if no digit is found.
function prepare(gray) {
  const found = findInk(gray);
  if (!found) return { bytes: null, warnings: ["no digit found"] };
  let [ink, digits] = clean(found);
  ink = crop(ink);
  ink = crop(thicken(ink, BOX / Math.max(ink.height, ink.width)));
  const small = resize(ink, BOX / Math.max(ink.height, ink.width)), top = Math.max(...small.data, 1e-6);
  const values = small.data.map((each) => Math.min(Math.max(each / top, 0), 1));
  let total = 0, y = 0, x = 0;
  values.forEach((each, at) => { total += each; y += each * Math.floor(at / small.width); x += each * (at % small.width); });
  const place = (center, side) => Math.min(Math.max(roundEven(SIDE / 2 - center), 0), SIDE - side);
  const rows = place(y / total, small.height), columns = place(x / total, small.width), bytes = new Uint8Array(SIDE * SIDE);
  values.forEach((each, at) => {
    bytes[(rows + Math.floor(at / small.width)) * SIDE + columns + at % small.width] = roundEven(each * 255);
  });
  return { bytes, warnings: digits > 1 ? [`${digits} digits, taken for one`] : [] };
}
