"use strict";
// Draws the charts of a report with Observable Plot. Colours are variables of the page, so that they follow the theme without being drawn again;
// what differs by colour differs by shape or dashes, too. Texts become text nodes, never markup.
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)"];
  const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "times"];
  const DASHES = ["none", "7 4", "2 3", "10 3 2 3", "5 2 1 2 1 2", "1 4"];
  const ms = (value) => value === null || value === undefined ? "–" : `${value < 100 ? value.toPrecision(3) : Math.round(value).toLocaleString("en")} ms`;
  const number = (value) => value === null || value === undefined ? "–" : value.toLocaleString("en", {maximumFractionDigits: 1});
  const share = (value) => `${(100 * value).toFixed(1)} %`;
  const bytes = (value) => { let unit = "bytes"; for (const next of ["kB", "MB", "GB"]) if (value >= 1000) { value /= 1000; unit = next; } return `${unit === "bytes" ? value : value.toFixed(1)} ${unit}`; };
  const cut = (text, most) => text.length <= most ? text : `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(text.length - Math.floor(most / 2))}`;
  const narrow = (width) => width < 560;

  function plot(width, options) {
    const {x = {}, y = {}, ...others} = options;
    const drawn = Plot.plot({className: "plot", width, marginLeft: 56, marginRight: 20, marginBottom: 42, ...others,
      x: {labelAnchor: "center", labelArrow: "none", ...x}, y: {labelArrow: "none", ...y}});
    drawn.setAttribute("aria-hidden", "true"); // the sentence below the picture and the table are for screen readers
    return drawn;
  }

  function ticks(width) { return narrow(width) ? 4 : 8; }

  const plain = (value) => value >= 1000 ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));

  // 1, 2, 5, 10 … as far as there is room, else powers of ten.
  function steps(low, high, most) {
    const decades = d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1), within = (value) => value >= low * 0.999 && value <= high * 1.001;
    const found = [[1, 2, 5], [1, 3], [1]].map((leading) => decades.flatMap((power) => leading.map((digit) => Number(`${digit}e${power}`))).filter(within));
    return found.find((each) => each.length <= most) ?? found[2];
  }

  // A logarithmic axis shows few of its ticks; where it spans less than a decade, a straight one reads better.
  function scale(values, width, label) {
    const known = values.filter((value) => value > 0), low = Math.min(...known), high = Math.max(...known);
    const log = high / low >= 8;
    return {type: log ? "log" : "linear", label, ticks: log ? steps(low, high, ticks(width)) : ticks(width), tickFormat: plain, nice: false};
  }

  function swatch(kind, place) {
    const svg = d3.create("svg").attr("width", 26).attr("height", 14).attr("viewBox", "0 0 26 14").attr("aria-hidden", "true");
    const colour = COLOURS[place % COLOURS.length];
    if (kind === "line") svg.append("line").attr("x1", 0).attr("x2", 26).attr("y1", 7).attr("y2", 7).attr("stroke", colour).attr("stroke-width", 3)
      .attr("stroke-dasharray", DASHES[place % DASHES.length]);
    else if (kind === "bar") svg.append("rect").attr("x", 4).attr("y", 1).attr("width", 18).attr("height", 12).attr("fill", colour);
    else svg.append("path").attr("d", d3.symbol(d3[`symbol${kind[0].toUpperCase()}${kind.slice(1)}`], 60)()).attr("transform", "translate(13,7)")
      .attr("fill", kind === "times" ? "none" : colour).attr("stroke", colour).attr("stroke-width", 1.5);
    return svg.node();
  }

  function legend(items) {
    const list = document.createElement("ul");
    list.className = "legend";
    for (const {name, kind, place} of items) {
      const item = document.createElement("li");
      item.append(swatch(kind, place), document.createTextNode(name));
      list.append(item);
    }
    return list;
  }

  // Rows with their names above what is drawn where there is no room beside it.
  function named(width, names, above = -11) {
    const beside = !narrow(width), longest = Math.max(...names.map((name) => name.length)), most = width > 900 ? 48 : 34;
    const marginLeft = beside ? 16 + 6.4 * Math.min(longest, most) : 8;
    return {beside, marginLeft, height: (count, thick) => 46 + count * (beside ? thick : thick + 16),
      marks: (rows) => beside ? [Plot.axisY({label: null, tickSize: 0, tickFormat: (name) => cut(name, most)})]
        : [Plot.text(rows, {y: "name", frameAnchor: "left", text: (row) => cut(row.name, Math.floor(width / 7.2)), dy: above, textAnchor: "start"})]};
  }

  const draw = {
    distribution({series}, width) {
      const lines = series.flatMap((each) => each.points.map((point) => ({...point, name: each.name})));
      const shown = lines.map((point) => point.ms).concat(series.flatMap((each) => [each.p50]));
      const names = series.map((each) => each.name), colour = (name) => COLOURS[names.indexOf(name) % COLOURS.length];
      const most = Math.max(...lines.map((point) => point.share));
      return [legend(series.map((each, place) => ({name: `${each.name}: p50 ${ms(each.p50)}, p99 ${ms(each.p99)}`, kind: "line", place}))), plot(width, {
        height: narrow(width) ? 240 : 280,
        x: scale(shown, width, "latency, ms"), y: {label: "share of the answers, %", percent: true, grid: true, nice: true, zero: true, domain: [0, 108 * most]},
        marks: [
          ...series.map((each, place) => Plot.areaY(each.points, {x: "ms", y: "share", curve: "step", fill: COLOURS[place % 6], fillOpacity: 0.13})),
          ...series.map((each, place) => Plot.lineY(each.points, {x: "ms", y: "share", curve: "step", stroke: COLOURS[place % 6], strokeWidth: 2, strokeDasharray: DASHES[place % 6]})),
          Plot.ruleX(series, {x: "p50", stroke: (each) => colour(each.name), strokeWidth: 1.5, strokeDasharray: "1 3"}),
          Plot.ruleY([0], {stroke: "currentColor"}),
          Plot.tip(lines, Plot.pointerX({x: "ms", y: "share", title: (point) => `${point.name}\n${ms(point.ms)}: ${share(point.share)} of the answers`})),
        ],
      })];
    },

    phases({parts, phases}, width) {
      const names = [...new Set(parts.map((part) => part.name))], rows = names.map((name) => ({name})), side = named(width, names, -20);
      const used = phases.filter((phase) => parts.some((part) => part.phase === phase));
      return [legend(used.map((name) => ({name, kind: "bar", place: phases.indexOf(name)}))), plot(width, {
        height: side.height(names.length, 34), marginLeft: side.marginLeft, x: {label: "ms, medians", ticks: ticks(width), nice: true, grid: true}, y: {type: "band", domain: names, label: null, axis: null, padding: side.beside ? 0.3 : 0.5},
        marks: [...side.marks(rows),
          Plot.barX(parts, {y: "name", x: "ms", fill: (part) => COLOURS[phases.indexOf(part.phase) % 6], stroke: "var(--card)", order: phases, z: "phase",
            title: (part) => `${part.name}\n${part.phase} ${ms(part.ms)}`, tip: true}),
          Plot.ruleX([0], {stroke: "currentColor"})],
      })];
    },

    ranges({rows, median}, width) {
      const names = rows.map((row) => row.name), side = named(width, names);
      const colour = (row) => row.outlier ? "var(--c1)" : "var(--c0)";
      return [legend([{name: "p50", kind: "circle", place: 0}, ...rows.some((row) => row.outlier) ? [{name: "p50, far above the others", kind: "triangle", place: 1}] : []]), plot(width, {
        height: side.height(rows.length, 26) + 28, marginTop: 28, marginLeft: side.marginLeft,
        x: {...scale(rows.flatMap((row) => [row.p50, row.p99]), width, "latency, ms: from p50 by p90 to p99"), grid: true}, y: {type: "band", domain: names, label: null, axis: null, padding: side.beside ? 0.45 : 0.7},
        marks: [...side.marks(rows),
          ...rows.length < 3 ? [] : [Plot.ruleX([median], {stroke: "currentColor", strokeDasharray: "4 4"}),
            Plot.text([median], {x: (value) => value, frameAnchor: "top", text: () => "median device", textAnchor: "start", dx: -4, dy: -12, fill: "var(--soft)"})],
          Plot.ruleY(rows, {y: "name", x1: "p50", x2: "p99", stroke: colour, strokeWidth: 2}),
          Plot.tickX(rows, {y: "name", x: "p90", stroke: colour, strokeWidth: 2}),
          Plot.tickX(rows, {y: "name", x: "p99", stroke: colour, strokeWidth: 2}),
          ...[false, true].map((odd) => Plot.dot(rows.filter((row) => row.outlier === odd), {y: "name", x: "p50", fill: odd ? "var(--c1)" : "var(--c0)", symbol: odd ? "triangle" : "circle", r: odd ? 6 : 5})),
          Plot.tip(rows, Plot.pointer({y: "name", x: "p50", title: (row) => `${row.name} ${row.release}\np50 ${ms(row.p50)}\np90 ${ms(row.p90)}\np99 ${ms(row.p99)}`}))],
      })];
    },

    history({series}, width) {
      const points = series.flatMap((each, place) => each.points.map((point) => ({...point, at: new Date(point.t), name: each.name, place})))
        .filter((point) => !Number.isNaN(+point.at));
      const days = (Math.max(...points.map((point) => +point.at)) - Math.min(...points.map((point) => +point.at))) / 864e5;
      const clock = d3.utcFormat(days < 2 ? "%H:%M" : days < 700 ? "%-d %b" : "%b %Y");
      return [legend(series.map((each, place) => ({name: each.name, kind: SYMBOLS[place % 6], place}))), plot(width, {
        height: 260, marginTop: 26, insetTop: 16, x: {type: "utc", label: days < 2 ? "time of the day, UTC" : "day, UTC", ticks: narrow(width) ? 3 : 7, tickFormat: clock}, y: {...scale(points.flatMap((point) => [point.p50, point.p99]), 500, "latency, ms"), grid: true},
        marks: [
          Plot.lineY(points, {x: "at", y: "p50", z: "name", stroke: (point) => COLOURS[point.place % 6], strokeWidth: 1.5}),
          Plot.ruleX(points, {x: "at", y1: "p50", y2: "p99", stroke: (point) => COLOURS[point.place % 6]}),
          Plot.dot(points, {x: "at", y: "p99", r: 3, fill: "var(--card)", stroke: (point) => COLOURS[point.place % 6]}),
          ...series.map((_, place) => Plot.dot(points.filter((point) => point.place === place), {x: "at", y: "p50", r: 5, symbol: SYMBOLS[place % 6], fill: COLOURS[place % 6], stroke: COLOURS[place % 6]})),
          ...points.length <= 12 ? [Plot.text(points, {x: "at", y: "p99", text: (point) => cut(point.release, 8), dy: -10, fill: "var(--soft)"})] : [],
          Plot.tip(points, Plot.pointer({x: "at", y: "p50", title: (point) => `${point.name} ${point.release}\n${point.t}\np50 ${ms(point.p50)}, p99 ${ms(point.p99)}`}))],
      })];
    },

    sustained({curve, levels, throttled_at_s: throttled}, width) {
      const end = Math.max(...curve.map((window) => window.t_s + window.seconds)), minutes = end > 300, unit = minutes ? 60 : 1;
      const at = (seconds) => seconds / unit, middle = (window) => at(window.t_s + window.seconds / 2);
      const x = {label: minutes ? "minutes" : "seconds", domain: [0, at(end)], ticks: ticks(width)};
      const mark = throttled === null ? [] : [Plot.ruleX([at(throttled)], {stroke: "var(--bad)", strokeWidth: 2, strokeDasharray: "6 4"}),
        Plot.text([at(throttled)], {x: (value) => value, frameAnchor: "top", text: () => "throttled", dx: throttled > end * 0.75 ? -6 : 6, dy: -12, textAnchor: throttled > end * 0.75 ? "end" : "start", fill: "var(--bad)", fontWeight: 600})];
      const tip = (y) => Plot.tip(curve, Plot.pointerX({x: middle, y, title: (window) => `at ${number(at(window.t_s))} ${minutes ? "min" : "s"}\n${number(window.throughput)} answers a second\np50 ${ms(window.p50_ms)}, p99 ${ms(window.p99_ms)}` + (window.temperature_c === null ? "" : `\n${number(window.temperature_c)} °C`)}));
      const made = [legend([{name: "answers a second", kind: "line", place: 0}, ...levels.length ? [{name: "level at which it stays", kind: "bar", place: 2}] : []]),
        plot(width, {height: 210, marginTop: 26, x: {...x, label: null}, y: {label: null, grid: true, zero: true, nice: true, ticks: 5},
          marks: [...levels.map((level) => Plot.ruleY([level], {y: "throughput", x1: (each) => at(each.from_s), x2: (each) => at(each.to_s), stroke: "var(--c2)", strokeWidth: 7, strokeOpacity: 0.45})),
            Plot.lineY(curve, {x: middle, y: "throughput", stroke: "var(--c0)", strokeWidth: 2}), ...mark, Plot.ruleY([0], {stroke: "currentColor"}), tip("throughput")]}),
        legend([{name: "p50, ms", kind: "line", place: 0}, {name: "p99, ms", kind: "line", place: 1}]),
        plot(width, {height: 190, x, y: {...scale(curve.flatMap((window) => [window.p50_ms, window.p99_ms]), 500, null), grid: true},
          marks: [Plot.lineY(curve, {x: middle, y: "p50_ms", stroke: "var(--c0)", strokeWidth: 2}), Plot.lineY(curve, {x: middle, y: "p99_ms", stroke: "var(--c1)", strokeWidth: 2, strokeDasharray: DASHES[1]}),
            ...mark.slice(0, 1), tip("p99_ms")]})];
      const warm = curve.filter((window) => window.temperature_c !== null);
      if (warm.length > 1) made.push(legend([{name: "temperature, °C", kind: "line", place: 3}]), plot(width, {height: 120, x, y: {label: null, grid: true, ticks: 3, nice: true},
        marks: [Plot.lineY(warm, {x: middle, y: "temperature_c", stroke: "var(--c3)", strokeWidth: 2})]}));
      return made;
    },

    frontier({points, frontier, y: label}, width) {
      const value = (point) => point.change ?? point.accuracy;
      const kinds = ["shipped", "taken", "original", "within the budget", "refused", "not scored"];
      const look = {shipped: ["star", 2], taken: ["diamond", 2], original: ["square", 5], "within the budget": ["circle", 0], refused: ["times", 1], "not scored": ["circle", 4]};
      const times = points.map((point) => point.ms), low = Math.min(...times), high = Math.max(...times), changes = points.map(value);
      const bottom = Math.min(...changes), top = Math.max(...changes), room = (top - bottom || Math.abs(top) || 0.01) * 0.12;
      const told = points.filter((point) => point.became === "shipped" || (point.became === "original" && "change" in point));
      const side = (point) => (point.ms - low) / (high - low || 1) > 0.6 ? "end" : "start";
      const steps = frontier.length > 1 ? [Plot.lineY(frontier, {x: "ms", y: value, curve: "step-after", stroke: "currentColor", strokeWidth: 1.5, strokeDasharray: "5 4"})] : [];
      return [legend([...kinds.filter((kind) => points.some((point) => point.became === kind)).map((kind) => ({name: kind, kind: look[kind][0], place: look[kind][1]}))]), plot(width, {
        height: narrow(width) ? 300 : 360, marginTop: 26, marginLeft: 66, x: {...scale([low * 0.95, high * 1.05], width, "latency, ms"), domain: [low * 0.95, high * 1.05], grid: true},
        y: {label, grid: true, domain: [bottom - room, top + room], ticks: 6, labelAnchor: "top"},
        marks: [...points.some((point) => "change" in point) ? [Plot.ruleY([0], {stroke: "currentColor", strokeOpacity: 0.6})] : [], ...steps,
          ...kinds.toReversed().map((kind) => Plot.dot(points.filter((point) => point.became === kind), {x: "ms", y: value, symbol: look[kind][0], r: kind === "shipped" ? 8 : 5.5, stroke: COLOURS[look[kind][1]],
            fill: kind === "refused" ? "none" : COLOURS[look[kind][1]], fillOpacity: 0.75, strokeWidth: 2})),
          ...told.map((point, place) => Plot.text([point], {x: "ms", y: value, text: () => cut(point.label, narrow(width) ? 22 : 40), textAnchor: side(point),
            dx: side(point) === "start" ? 12 : -12, dy: place % 2 && !("change" in point) ? 14 : -10, fontWeight: 600, stroke: "var(--card)", fill: "currentColor", strokeWidth: 4})),
          Plot.tip(points, Plot.pointer({x: "ms", y: value, title: (point) => `${point.label}\n${point.became}\n${ms(point.ms)}, ${"change" in point ? `accuracy ${point.change >= 0 ? "+" : ""}${point.change.toFixed(4)}` : point.accuracy.toFixed(4)}${point.note ? `\n${cut(point.note, 60)}` : ""}`}))],
      })];
    },

    ratios({rows}, width) {
      const names = rows.map((row) => row.name), side = named(width, names);
      const looks = {faster: ["circle", "var(--c0)", 0], slower: ["triangle", "var(--c1)", 1], "in the search": ["diamond", "var(--c3)", 3]}, look = (row) => looks[row.verdict] ?? ["square", "var(--c5)", 5];
      const verdicts = [...new Set(rows.map((row) => row.verdict))].map((name) => ({name, kind: look({verdict: name})[0], place: look({verdict: name})[2]}));
      const all = rows.flatMap((row) => [row.low, row.high, 1]), low = Math.min(...all) / 1.03, high = Math.max(...all) * 1.03;
      return [legend(verdicts), plot(width, {height: side.height(rows.length, 34), marginLeft: side.marginLeft,
        x: {type: "log", label: "times as fast", domain: [low, high], ticks: d3.ticks(low, high, narrow(width) ? 3 : 7), tickFormat: plain, grid: true}, y: {type: "point", domain: names, label: null, axis: null, padding: 0.7},
        marks: [...side.marks(rows), Plot.ruleX([1], {stroke: "currentColor", strokeWidth: 1.5}),
          Plot.ruleY(rows, {y: "name", x1: "low", x2: "high", stroke: (row) => look(row)[1], strokeWidth: 3}),
          ...verdicts.map(({name, kind}) => Plot.dot(rows.filter((row) => row.verdict === name), {y: "name", x: "speedup", r: 6, symbol: kind, fill: look({verdict: name})[1], stroke: "var(--card)"})),
          Plot.tip(rows, Plot.pointer({y: "name", x: "speedup", title: (row) => `${row.name}\n${row.verdict}\n${row.speedup.toFixed(3)} (${row.low.toFixed(3)} … ${row.high.toFixed(3)})`}))]})];
    },

    scores({rows, metric}, width) {
      const names = rows.map((row) => row.name), side = named(width, names), judged = rows.filter((row) => row.original !== null);
      return [legend([{name: "on the device", kind: "circle", place: 0}, ...judged.length ? [{name: "the original, on the host", kind: "square", place: 5}] : []]), plot(width, {height: side.height(rows.length, 34), marginLeft: side.marginLeft,
        x: {label: metric, ticks: ticks(width), nice: true, grid: true}, y: {type: "band", domain: names, label: null, axis: null, padding: 0.5},
        marks: [...side.marks(rows), Plot.ruleY(rows, {y: "name", x1: "low", x2: "high", stroke: "var(--c0)", strokeWidth: 2}),
          Plot.dot(judged, {y: "name", x: "original", symbol: "square", r: 6, stroke: "var(--c5)", strokeWidth: 2}),
          Plot.dot(rows, {y: "name", x: "score", r: 5, fill: "var(--c0)"}),
          Plot.tip(rows, Plot.pointer({y: "name", x: "score", title: (row) => `${row.name}\n${row.score.toFixed(4)} (${row.low.toFixed(4)} … ${row.high.toFixed(4)})` + (row.original === null ? "" : `\nthe original ${row.original.toFixed(4)}`)}))]})];
    },

    bars({bars, unit, form}, width) {
      const keyed = bars.map((bar, place) => ({...bar, key: `${place}`, name: bar.name})), wide = !narrow(width);
      const label = (bar) => `${bar.name} (${bar.kind})`, marginLeft = wide ? 270 : 8;
      const told = (bar) => `${share(bar.share)}`, value = (bar) => form === "ms" ? ms(bar.value) : `${number(bar.value)} ${unit}`;
      return [plot(width, {height: 46 + bars.length * (wide ? 27 : 44), marginLeft, marginRight: 64, x: {label: unit, ticks: ticks(width), nice: true, grid: true, ...form === "ms" ? {} : {tickFormat: "~s"}},
        y: {type: "band", domain: keyed.map((bar) => bar.key), axis: null, padding: wide ? 0.28 : 0.55},
        marks: [wide ? Plot.text(keyed, {y: "key", x: () => 0, text: (bar) => cut(label(bar), 38), textAnchor: "end", dx: -8})
          : Plot.text(keyed, {y: "key", x: () => 0, text: (bar) => cut(label(bar), Math.floor(width / 7.2)), textAnchor: "start", dy: -17}),
          Plot.barX(keyed, {y: "key", x: "value", fill: "var(--c0)", title: (bar) => `${label(bar)}\n${value(bar)}, ${told(bar)}`, tip: true}),
          Plot.text(keyed, {y: "key", x: "value", text: told, textAnchor: "start", dx: 5}), Plot.ruleX([0], {stroke: "currentColor"})]})];
    },

    memory({by_node: series, nodes, peak_bytes: peak, node}, width) {
      const points = series.map(([place, size]) => ({place, size})), top = points.reduce((best, point) => point.size > best.size ? point : best, points[0] ?? {place: 0, size: 0});
      const left = top.place < nodes / 2;
      return [plot(width, {height: 230, marginTop: 28, marginLeft: 66, x: {label: "node, in the order of the file", domain: [0, Math.max(1, nodes - 1)], ticks: Math.min(ticks(width), nodes)},
        y: {label: null, grid: true, zero: true, domain: [0, peak * 1.08 || 1], ticks: 5, tickFormat: bytes},
        marks: [Plot.areaY(points, {x: "place", y: "size", curve: "step", fill: "var(--c0)", fillOpacity: 0.2}), Plot.lineY(points, {x: "place", y: "size", curve: "step", stroke: "var(--c0)", strokeWidth: 2}),
          Plot.ruleY([0], {stroke: "currentColor"}), Plot.dot([top], {x: "place", y: "size", r: 6, fill: "var(--c1)", symbol: "diamond"}),
          Plot.text([top], {x: "place", y: "size", text: () => `${bytes(peak)} at ${cut(node, narrow(width) ? 16 : 40)}`, textAnchor: left ? "start" : "end", dx: left ? 8 : -8, dy: -12, fontWeight: 600, stroke: "var(--card)", fill: "currentColor", strokeWidth: 4}),
          Plot.tip(points, Plot.pointerX({x: "place", y: "size", title: (point) => `node ${point.place + 1} of ${nodes}\n${bytes(point.size)}`}))]})];
    },

    placement({parts}, width) {
      const places = [...new Set(parts.map((part) => part.place))].sort((one, other) => (one === "CPU") - (other === "CPU"));
      const names = [...new Set(parts.map((part) => part.name))], rows = names.map((name) => ({name})), side = named(width, names, -20);
      const totals = d3.rollup(parts, (each) => d3.sum(each, (part) => part.nodes), (part) => part.name);
      const shares = parts.map((part) => ({...part, share: part.nodes / totals.get(part.name)}));
      return [legend(places.map((name, place) => ({name, kind: "bar", place}))), plot(width, {height: side.height(names.length, 34), marginLeft: side.marginLeft,
        x: {label: "share of the nodes, %", percent: true, domain: [0, 100], ticks: 5, grid: true}, y: {type: "band", domain: names, label: null, axis: null, padding: side.beside ? 0.3 : 0.5},
        marks: [...side.marks(rows), Plot.barX(shares, {y: "name", x: "share", fill: (part) => COLOURS[places.indexOf(part.place) % 6], stroke: "var(--card)", z: "place", order: places,
          title: (part) => `${part.name}\n${part.place}: ${part.nodes} of ${totals.get(part.name)} nodes`, tip: true}), Plot.ruleX([0], {stroke: "currentColor"})]})];
    },
  };

  function show(holder) {
    const {kind, data} = charts[Number(holder.dataset.chart)], width = Math.floor(holder.clientWidth);
    if (width < 50 || holder.dataset.width === String(width)) return;
    holder.dataset.width = width;
    try {
      holder.replaceChildren(...draw[kind](data, width));
    } catch (error) {
      holder.textContent = "This chart could not be drawn. Its figures stand in the table.";
      console.error(kind, error);
    }
  }

  const holders = [...document.querySelectorAll("[data-chart]")];
  holders.forEach(show);
  const sized = new ResizeObserver((entries) => requestAnimationFrame(() => entries.forEach((entry) => show(entry.target))));
  holders.forEach((holder) => sized.observe(holder));
  // Paper cannot be unfolded.
  const folded = [];
  addEventListener("beforeprint", () => document.querySelectorAll("details:not([open])").forEach((each) => { each.open = true; folded.push(each); }));
  addEventListener("afterprint", () => { while (folded.length) folded.pop().open = false; });
})();
