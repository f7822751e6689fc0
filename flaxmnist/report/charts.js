// Draws the charts of a page with uPlot, from the JSON in #chart-data.
"use strict";
(() => {
  const root = document.getElementById("charts");
  const {groups, charts} = JSON.parse(document.getElementById("chart-data").textContent);
  if (!charts.length) return;
  const SPLITS = {
    train: ["train", []], train_eval: ["train, evaluated", [2, 3]],
    validation: ["validation", [7, 4]], test: ["test", [1, 4]],
  };
  const AXES = {step: "step", epoch: "epoch", seconds: "seconds of training"};
  const hidden = new Set();
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const color = (group) => css(`--line-${group % 8}`);
  const make = (tag, parent, text = "", attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  };
  const number = (value) =>
    value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e7)
      ? value.toLocaleString("en", {maximumSignificantDigits: 4}) : Number(value.toPrecision(3)).toExponential();

  let axis = "step", plots = [], range = null;
  const spoken = make("p", root, "", {class: "unseen", role: "status"});

  const bar = make("div", root, "", {class: "tools"});
  const label = make("label", bar, "against ");
  const select = make("select", label);
  for (const [value, text] of Object.entries(AXES)) make("option", select, text, {value});
  select.addEventListener("change", () => { axis = select.value; range = null; draw(); });
  const toggles = (keys, name) => {
    if (keys.length < 2) return;
    const set = make("div", bar, "", {role: "group", "aria-label": name});
    for (const [key, text, group] of keys) {
      const button = make("button", set, text, {type: "button", "aria-pressed": "true"});
      if (group !== undefined) button.style.setProperty("--key", `var(--line-${group % 8})`);
      button.dataset.key = key;
      button.addEventListener("click", () => {
        hidden.has(key) ? hidden.delete(key) : hidden.add(key);
        button.setAttribute("aria-pressed", String(!hidden.has(key)));
        draw();
      });
    }
  };
  const splits = new Set(charts.flatMap((chart) => chart.lines.map((line) => line.split)));
  toggles([...splits].map((split) => [split, SPLITS[split][0]]), "splits");
  toggles(groups.map((name, index) => [`group ${index}`, name, index]), "runs");
  make("p", root, "Drag over a chart to zoom all of them, and double-click to see everything "
    + "again. With the keyboard: left, right, + and −, and 0.", {class: "quiet screen"});
  const area = make("div", root, "", {class: "charts"});

  // The value of a line that is nearest to a place on the x axis.
  const nearest = (plot, series, index) => {
    const [xs, ys] = [plot.data[0], plot.data[series]];
    let [low, high] = [index, index];
    while (low >= 0 && ys[low] == null) low--;
    while (high < ys.length && ys[high] == null) high++;
    if (low < 0) return high < ys.length ? high : null;
    if (high >= ys.length) return low;
    return xs[index] - xs[low] <= xs[high] - xs[index] ? low : high;
  };

  const named = (line) => groups.length > 1
    ? `${groups[line.group]}, ${SPLITS[line.split][0]}` : SPLITS[line.split][0];

  function describe(plot, chart, lines) {
    const index = plot.cursor.idx;
    if (index == null) return null;
    const values = lines.map((line) => {
      const at = nearest(plot, line.series, index);
      return at == null ? null : [line, plot.data[line.series][at]];
    }).filter(Boolean);
    const unit = chart.unit === "%" ? " %" : "";
    const x = plot.data[0][index];
    return {
      x: `${AXES[axis]} ${axis === "step" ? x.toLocaleString("en") : number(x)}`,
      rows: values.map(([line, value]) => [line, `${named(line)} ${number(value)}${unit}`]),
    };
  }

  function build(chart) {
    const lines = chart.lines.filter(
      (line) => !hidden.has(line.split) && !hidden.has(`group ${line.group}`));
    const title = chart.title + (chart.unit && `, ${chart.unit}`);
    const figure = make("figure", area);
    make("figcaption", figure, title);
    const place = make("div", figure, "", {class: "plot", tabindex: "0", role: "group",
      "aria-label": `${title} against ${AXES[axis]}`, "aria-roledescription": "chart"});
    const tip = make("div", place, "", {class: "tip", "aria-hidden": "true"});
    const tables = [], series = [{}], bands = [];
    lines.forEach((line) => {
      line.series = series.length;
      const stroke = color(line.group);
      const columns = line.low ? [line.y, line.high, line.low] : [line.y];
      tables.push([line[axis], ...columns]);
      series.push({stroke, width: line.split === "train" ? 1.25 : 2,
        dash: SPLITS[line.split][1], spanGaps: true,
        points: {show: line.y.length < 16, size: 5, stroke, fill: stroke}});
      if (line.low) {
        for (const _ of [0, 1]) series.push({stroke: "transparent", spanGaps: true, points: {show: false}});
        bands.push({series: [line.series + 1, line.series + 2], fill: `${stroke}2e`});
      }
    });
    const data = tables.length ? uPlot.join(tables) : [[]];
    const drawn = {stroke: css("--quiet"), grid: {stroke: css("--rule"), width: 1},
      ticks: {stroke: css("--rule"), width: 1}, font: "12px system-ui, sans-serif"};
    const compact = (value) => Math.abs(value) < 1e4 ? number(value)
      : value.toLocaleString("en", {notation: "compact", maximumSignificantDigits: 3});
    const short = (plot, values) => values.map((value) => value == null ? "" : compact(value));
    const plot = new uPlot({
      width: place.clientWidth, height: 220, series, bands, legend: {show: false},
      scales: {x: {time: false}, y: {distr: chart.log ? 3 : 1}},
      axes: [{...drawn, values: short, size: 34}, {...drawn, values: short, size: 56}],
      cursor: {drag: {x: true, y: false}, sync: {key: "charts"},
        dataIdx: (plot, at, index) => at ? nearest(plot, at, index) : index},
      hooks: {
        setCursor: [(plot) => {
          const found = describe(plot, chart, lines);
          tip.style.display = found && plot.cursor.left >= 0 ? "block" : "none";
          if (!found) return;
          tip.textContent = "";
          make("b", tip, found.x);
          for (const [line, text] of found.rows)
            make("span", tip, text).style.setProperty("--key", color(line.group));
          const right = plot.cursor.left > plot.over.clientWidth / 2;
          tip.style.left = right ? "64px" : "auto";
          tip.style.right = right ? "auto" : "8px";
        }],
        setScale: [(plot, key) => {
          if (key !== "x" || plot !== plots.active) return;
          range = [plot.scales.x.min, plot.scales.x.max];
          for (const other of plots) if (other !== plot) other.setScale("x", {min: range[0], max: range[1]});
        }],
      },
    }, data, place);
    for (const event of ["pointerdown", "dblclick", "focusin"])
      place.addEventListener(event, () => { plots.active = plot; }, true);
    place.addEventListener("keydown", (event) => keys(event, plot, chart, lines));
    plots.push(plot);
  }

  function keys(event, plot, chart, lines) {
    const xs = plot.data[0], last = xs.length - 1;
    const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    const zoom = {"+": 0.5, "=": 0.5, "-": 2, "0": Infinity}[event.key];
    if (last < 0 || (!move && !zoom)) return;
    event.preventDefault();
    plots.active = plot;
    let index = plot.cursor.idx ?? (move > 0 ? -1 : last + 1);
    if (move) index = Math.min(last, Math.max(0, index + move));
    index = Math.min(last, Math.max(0, index));
    const x = xs[index];
    if (zoom) {
      const half = (plot.scales.x.max - plot.scales.x.min) / 2 * zoom;
      const [min, max] = [Math.max(xs[0], x - half), Math.min(xs[last], x + half)];
      plot.setScale("x", {min, max});
    }
    plot.setCursor({left: plot.valToPos(x, "x"), top: 20});
    const found = describe(plot, chart, lines);
    if (found) spoken.textContent = [found.x, ...found.rows.map((row) => row[1])].join("; ");
  }

  function draw() {
    plots.forEach((plot) => plot.destroy());
    plots = [];
    area.textContent = "";
    charts.forEach(build);
    if (range) plots.forEach((plot) => plot.setScale("x", {min: range[0], max: range[1]}));
  }

  draw();
  new ResizeObserver(() => {
    for (const plot of plots) {
      const width = plot.root.parentElement.clientWidth;
      if (width && width !== plot.width) plot.setSize({width, height: 220});
    }
  }).observe(area);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
