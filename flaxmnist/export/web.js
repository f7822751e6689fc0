// Computes the layers of a network and the gradient of its input. No library is needed.
// A tensor is {data, shape}. A layer returns its output and a function that maps the
// gradient of the output to that of the input.

const size = (shape) => shape.reduce((product, side) => product * side, 1);
const tensor = (shape, data = new Float32Array(size(shape))) => ({ data, shape });

// Adds the products of inputs and rows of a kernel. Four at a time, the outputs are read
// and written less often.
function addProducts(out, to, cout, given, from, cin, kernel, tap) {
  let c = 0, k = tap;
  for (; c + 3 < cin; c += 4, k = tap + c * cout) {
    const a = given[from + c], b = given[from + c + 1], d = given[from + c + 2], e = given[from + c + 3];
    if (a || b || d || e) for (let o = 0; o < cout; o += 1, k += 1)
      out[to + o] += a * kernel[k] + b * kernel[k + cout] + d * kernel[k + 2 * cout] + e * kernel[k + 3 * cout];
  }
  for (; c < cin; c += 1, k = tap + c * cout) {
    const value = given[from + c];
    if (value) for (let o = 0; o < cout; o += 1, k += 1) out[to + o] += value * kernel[k];
  }
}

// Calls visit(output, input, kernel) with the first index of each, for all pairs of a
// pixel and a tap of the kernel.
function slide(x, layer, [rows, columns], visit) {
  const [height, width] = x.shape, [kh, kw, cin, cout] = layer.kernel.shape;
  const [[top], [left]] = layer.padding, [sh, sw] = layer.strides;
  for (let row = 0; row < rows; row += 1) for (let column = 0; column < columns; column += 1)
    for (let i = 0; i < kh; i += 1) for (let j = 0; j < kw; j += 1) {
      const y = row * sh + i - top, z = column * sw + j - left;
      if (y >= 0 && y < height && z >= 0 && z < width)
        visit((row * columns + column) * cout, (y * width + z) * cin, (i * kw + j) * cin * cout);
    }
}

function conv(x, layer) {
  const [height, width] = x.shape, [kh, kw, cin, cout] = layer.kernel.shape;
  const [[top, bottom], [left, right]] = layer.padding, [sh, sw] = layer.strides;
  const rows = Math.floor((height + top + bottom - kh) / sh) + 1;
  const columns = Math.floor((width + left + right - kw) / sw) + 1;
  const y = tensor([rows, columns, cout]), kernel = layer.kernel.data, out = y.data, given = x.data;
  for (let at = 0; at < out.length; at += cout) out.set(layer.bias.data, at);
  slide(x, layer, y.shape, (to, from, tap) => addProducts(out, to, cout, given, from, cin, kernel, tap));
  const back = (grad) => {
    const moved = tensor(x.shape), result = moved.data, given = grad.data;
    slide(x, layer, y.shape, (to, from, tap) => {
      for (let c = 0; c < cin; c += 1) {
        let sum = 0;
        for (let o = 0, first = tap + c * cout; o < cout; o += 1) sum += given[to + o] * kernel[first + o];
        result[from + c] += sum;
      }
    });
    return moved;
  };
  return [y, back];
}

function dense(x, layer) {
  const [cin, cout] = layer.kernel.shape, kernel = layer.kernel.data;
  const y = tensor([cout], Float32Array.from(layer.bias.data));
  addProducts(y.data, 0, cout, x.data, 0, cin, kernel, 0);
  return [y, (grad) => tensor(x.shape, x.data.map((_, i) => {
    let sum = 0;
    for (let o = 0; o < cout; o += 1) sum += grad.data[o] * kernel[i * cout + o];
    return sum;
  }))];
}

// Each function, and its derivative as a function of its value.
const ACTIVATIONS = {
  relu: [(x) => Math.max(x, 0), (y) => (y > 0 ? 1 : 0)],
  sigmoid: [(x) => 1 / (1 + Math.exp(-x)), (y) => y * (1 - y)],
  tanh: [Math.tanh, (y) => 1 - y * y],
  softplus: [(x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))), (y) => 1 - Math.exp(-y)],
};

function activation(x, layer) {
  const [value, derivative] = ACTIVATIONS[layer.name];
  const y = tensor(x.shape, x.data.map((each) => value(each)));
  return [y, (grad) => tensor(x.shape, grad.data.map((each, i) => each * derivative(y.data[i])))];
}

// Of squares, or of the whole image if the size is 0.
function pool(x, layer) {
  const [height, width, channels] = x.shape;
  const [down, across] = layer.size ? [layer.size, layer.size] : [height, width];
  // Pixels at the edge are repeated, or a remainder is dropped.
  const round = layer.edge ? Math.ceil : Math.floor;
  const y = tensor([round(height / down), round(width / across), channels]);
  const [rows, columns] = y.shape, isMax = layer.name === "max";
  const visit = (at, each) => {
    const c = at % channels, column = (at - c) / channels % columns, row = Math.floor(at / channels / columns);
    for (let i = row * down; i < (row + 1) * down; i += 1) for (let j = column * across; j < (column + 1) * across; j += 1)
      each((Math.min(i, height - 1) * width + Math.min(j, width - 1)) * channels + c);
  };
  const first = new Int32Array(y.data.length);
  for (let at = 0; at < y.data.length; at += 1) {
    let best = -Infinity, sum = 0;
    visit(at, (from) => {
      sum += x.data[from];
      if (x.data[from] > best) { best = x.data[from]; first[at] = from; }
    });
    y.data[at] = isMax ? best : sum / (down * across);
  }
  const back = (grad) => {
    const moved = tensor(x.shape);
    for (let at = 0; at < y.data.length; at += 1)
      if (isMax) moved.data[first[at]] += grad.data[at];
      else visit(at, (from) => { moved.data[from] += grad.data[at] / (down * across); });
    return moved;
  };
  return [y, back];
}

function affine(x, layer) {
  const scale = layer.scale.data, shift = layer.shift.data, count = scale.length;
  const scaled = (from) => from.data.map((each, i) => each * scale[i % count]);
  const y = tensor(x.shape, scaled(x).map((each, i) => each + shift[i % count]));
  return [y, (grad) => tensor(x.shape, scaled(grad))];
}

const add = (one, other) => tensor(one.shape, one.data.map((each, i) => each + other.data[i]));

function residual(x, layer) {
  const [convolved, backConv] = conv(x, layer);
  const [y, backRelu] = activation(convolved, { name: "relu" });
  return [add(x, y), (grad) => add(grad, backConv(backRelu(grad)))];
}

// Squeeze and excite.
function excite(x, layer) {
  const channels = x.shape[2], part = (at) => at % channels;
  const [factors, back] = run([
    { kind: "pool", name: "average", size: 0 },
    { kind: "dense", kernel: layer.kernel0, bias: layer.bias0 },
    { kind: "activation", name: "relu" },
    { kind: "dense", kernel: layer.kernel1, bias: layer.bias1 },
    { kind: "activation", name: "sigmoid" },
  ], x);
  const times = (from) => tensor(x.shape, from.data.map((each, i) => each * factors.data[part(i)]));
  return [times(x), (grad) => {
    const sums = tensor([channels]);
    grad.data.forEach((each, i) => { sums.data[part(i)] += each * x.data[i]; });
    return add(times(grad), back(sums));
  }];
}

const flatten = (x) => [tensor([x.data.length], x.data), (grad) => tensor(x.shape, grad.data)];
const LAYERS = { conv, dense, activation, pool, affine, residual, excite, flatten };

function run(layers, x) {
  const backs = [];
  for (const layer of layers) {
    const [y, back] = LAYERS[layer.kind](x, layer);
    backs.push(back);
    x = y;
  }
  return [x, (grad) => backs.reduceRight((moved, back) => back(moved), grad)];
}

function logSumExp(logits) {
  const top = Math.max(...logits);
  return top + Math.log(logits.reduce((sum, each) => sum + Math.exp(each - top), 0));
}

function softmax(logits) {
  const total = logSumExp(logits);
  return Array.from(logits, (each) => Math.exp(each - total));
}

// Returns the networks of a model, with arrays in the place of {offset, shape}.
function decode(networks, text) {
  const decoded = atob(text), bytes = new Uint8Array(decoded.length);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = decoded.charCodeAt(at);
  const array = (value) => (value?.offset === undefined ? value
    : tensor(value.shape, new Float32Array(bytes.buffer, value.offset, size(value.shape))));
  return networks.map((layers) => layers.map((layer) =>
    Object.fromEntries(Object.entries(layer).map(([key, value]) => [key, array(value)]))));
}

// Returns the calibrated probabilities of an image: bytes, row by row. Several networks
// are an ensemble, whose probabilities and energy are means. `explain` returns the
// importance of each pixel: the largest magnitude over its channels of the gradient of
// the top logit.
function predict(networks, bytes, shape, temperature) {
  const x = tensor(shape, Float32Array.from(bytes, (each) => each / 255));
  const found = networks.map((layers) => run(layers, x));
  const shares = found.map(([logits]) => softmax(logits.data));
  const mean = (values) => values.reduce((sum, each) => sum + each, 0) / values.length;
  const together = shares[0].map((_, c) => mean(shares.map((each) => each[c])));
  const probabilities = softmax(together.map((share) => Math.log(share) / temperature));
  const energy = -mean(found.map(([logits]) => logSumExp(logits.data)));
  const explain = () => {
    const grads = found.map(([logits, back], index) => {
      const top = probabilities.indexOf(Math.max(...probabilities)), weight = shares[index][top];
      return back(tensor(logits.shape, logits.data.map((_, c) => (c === top ? weight : 0))));
    });
    const total = grads.reduce(add).data, channels = shape[2];
    return Array.from({ length: shape[0] * shape[1] }, (_, pixel) =>
      Math.max(...total.subarray(pixel * channels, (pixel + 1) * channels).map(Math.abs)));
  };
  return { probabilities, energy, explain };
}
