// Line charts that answer: values under the pointer, zoom by dragging, series hidden by their
// legend, logarithmic scale, smoothing. Each figure.chart holds its points as JSON and a drawing
// for readers without scripts, which is drawn anew here. Nothing is fetched.
'use strict';
(() => {
  const NS = 'http://www.w3.org/2000/svg';
  const HEIGHT = 250, LEFT = 58, RIGHT = 12, TOP = 10, BOTTOM = 34;
  const DRAGGED = 6, NEAR = 6, WIDEST = 640, NARROWEST = 240;
  const tip = document.getElementById('tip');
  const charts = [];
  let smoothing = 0;

  const FLAT = 1e-9;  // a spread that is a smaller share of the values is rounding, no change

  const round = (v, digits) => +v.toPrecision(digits);
  const flat = (low, high) =>
    !(high - low > Math.max(FLAT * Math.max(Math.abs(low), Math.abs(high)), 1e-300));
  function short(v, digits = 4) {  // rounded first, so that 999,970 is 1M, not 1000k
    const shown = round(v, digits), size = Math.abs(shown);
    if (size && size < 1e-3) return shown.toExponential();
    for (const [limit, unit, by] of [[1e18, 'E'], [1e15, 'P'], [1e12, 'T'], [1e9, 'G'], [1e6, 'M'],
      [1e4, 'k', 1e3]])
      if (size >= limit) return round(shown / (by || limit), digits) + unit;
    return String(size >= 1000 ? round(v, 5) : shown);
  }

  function add(parent, name, attributes, text) {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function ticks(low, high, most) {  // at most `most` + 1
    if (flat(low, high)) return [round(low, 12)];
    const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * ([1, 2, 5].find(m => power * m >= raw * 0.999) || 10);
    const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
    return Array.from({length: last - first + 1}, (_, i) => round((first + i) * step, 12));
  }

  function logTicks(low, high) {  // powers of ten; between them where there is room
    for (const factors of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1]]) {
      const found = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
        for (const f of factors)
          if (f * 10 ** e >= low && f * 10 ** e <= high) found.push(round(f * 10 ** e, 12));
      if (found.length <= 7) return found.length > 1 ? found : ticks(low, high, 4);
    }
    return ticks(low, high, 4);
  }

  function smooth(points) {  // exponential mean, unbiased at the start
    let mean = 0, weight = 0;
    return points.map(([x, y]) => {
      mean = smoothing * mean + (1 - smoothing) * y;
      weight = smoothing * weight + (1 - smoothing);
      return [x, mean / weight];
    });
  }

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.data = JSON.parse(figure.querySelector('script').textContent);
      this.svg = figure.querySelector('svg');
      this.hidden = new Set();
      this.zoom = null;
      this.log = false;
      const xs = this.data.series.flatMap(s => s.points.map(p => p[0]));
      const low = xs.reduce((a, b) => Math.min(a, b)), high = xs.reduce((a, b) => Math.max(a, b));
      this.full = [low, high > low ? high : low + 1];
      this.addTools();
      this.listen();
    }

    addTools() {
      const tools = document.createElement('span');
      tools.className = 'tools';
      this.logButton = button('log', () => { this.log = !this.log; this.draw(); });
      this.resetButton = button('whole', () => this.zoomTo(null));
      tools.append(this.resetButton, this.logButton);
      this.figure.querySelector('figcaption').append(tools);
      this.figure.querySelectorAll('.legend button').forEach((entry, i) => {
        entry.addEventListener('click', () => {
          this.hidden.has(i) ? this.hidden.delete(i) : this.hidden.add(i);
          entry.setAttribute('aria-pressed', String(!this.hidden.has(i)));
          this.draw();
        });
      });
    }

    lines() {  // what is shown: points in sight, and one beyond each edge
      const [from, to] = this.zoom || this.full;
      return this.data.series.flatMap((s, i) => {
        if (this.hidden.has(i)) return [];
        const sound = this.log ? s.points.filter(p => p[1] > 0) : s.points;
        const inside = (_, j, all) =>
          (all[Math.min(j + 1, all.length - 1)][0] >= from) && (all[Math.max(j - 1, 0)][0] <= to);
        const line = {...s, raw: sound.filter(inside)};
        line.points = smoothing ? smooth(sound).filter(inside) : line.raw;
        return line.points.length ? [line] : [];
      });
    }

    fit(lines) {  // y range of what is in sight
      const [from, to] = this.zoom || this.full;
      const ys = lines.flatMap(s => s.points.filter(p => p[0] >= from && p[0] <= to).map(p => p[1]));
      if (!ys.length) return this.log ? [0.1, 1] : [0, 1];
      const low = ys.reduce((a, b) => Math.min(a, b)), high = ys.reduce((a, b) => Math.max(a, b));
      if (this.log) return [low / 1.1, high * 1.1];
      const pad = flat(low, high) ? Math.max(Math.abs(high) * 0.1, 1e-3) : (high - low) * 0.06;
      return [low - pad, high + pad];
    }

    draw() {
      const width = Math.max(NARROWEST, Math.min(this.svg.clientWidth || 560, WIDEST));
      const [x0, x1] = this.zoom || this.full;
      const lines = this.lines(), [y0, y1] = this.fit(lines);
      const level = this.log ? Math.log : (v => v);
      const right = width - RIGHT, floor = HEIGHT - BOTTOM;
      this.right = right;
      this.x = v => LEFT + (v - x0) / (x1 - x0) * (right - LEFT);
      this.y = v => floor - (level(v) - level(y0)) / (level(y1) - level(y0)) * (floor - TOP);
      this.at = px => x0 + (px - LEFT) / (right - LEFT) * (x1 - x0);
      this.drawn = lines;
      const svg = this.svg;
      svg.replaceChildren();
      svg.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
      this.axes(svg, [x0, x1], [y0, y1], right, floor);
      // Lines end at the edges of the plot.
      const inner = add(svg, 'svg', {x: LEFT, y: TOP - 2, width: right - LEFT,
        height: floor - TOP + 3, viewBox: `${LEFT} ${TOP - 2} ${right - LEFT} ${floor - TOP + 3}`});
      for (const m of this.data.marks)
        add(inner, 'line', {class: 'mark', x1: this.x(m.x), x2: this.x(m.x), y1: TOP, y2: floor,
          stroke: m.color});
      for (const s of lines) {
        if (smoothing) this.line(inner, s, s.raw, {opacity: 0.22});
        this.line(inner, s, s.points, {});
      }
      this.overlay = add(svg, 'g', {});
      this.logButton.setAttribute('aria-pressed', String(this.log));
      this.resetButton.hidden = !this.zoom;
    }

    line(parent, s, points, more) {
      const path = points.map(([x, y]) => this.x(x).toFixed(1) + ',' + this.y(y).toFixed(1)).join(' ');
      add(parent, 'polyline', {class: 'line', points: path, stroke: s.color,
        ...(s.dashed ? {'stroke-dasharray': '5 4'} : {}), ...more});
      if (points.length === 1)
        add(parent, 'circle', {cx: this.x(points[0][0]), cy: this.y(points[0][1]), r: 3, fill: s.color});
    }

    axes(svg, xs, ys, right, floor) {
      for (const v of this.log ? logTicks(...ys) : ticks(...ys, 6)) {
        const y = this.y(v);
        add(svg, 'line', {class: 'grid', x1: LEFT, x2: right, y1: y, y2: y});
        add(svg, 'text', {class: 'tick', x: LEFT - 6, y: y + 3.5, 'text-anchor': 'end'}, short(v));
      }
      for (const v of ticks(...xs, right > 400 ? 8 : 5))
        add(svg, 'text', {class: 'tick', x: this.x(v), y: floor + 15, 'text-anchor': 'middle'}, short(v));
      add(svg, 'line', {class: 'axis', x1: LEFT, x2: right, y1: floor, y2: floor});
      add(svg, 'text', {class: 'axis-label', x: (LEFT + right) / 2, y: HEIGHT - 4,
        'text-anchor': 'middle'}, this.data.x);
      add(svg, 'text', {class: 'axis-label', 'text-anchor': 'middle',
        transform: `translate(11 ${(TOP + floor) / 2}) rotate(-90)`}, this.data.y);
    }

    place(event) {  // the pointer in the drawing's units, kept inside the plot
      const matrix = this.svg.getScreenCTM().inverse();
      const px = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix).x;
      return Math.max(LEFT, Math.min(px, this.right));
    }

    listen() {
      let from = null;
      this.svg.addEventListener('pointerdown', event => {
        if (event.button) return;
        from = this.place(event);
        this.hover(event, this.place(event));
      });
      this.svg.addEventListener('pointermove', event => {
        const px = this.place(event);
        if (from === null || Math.abs(px - from) < DRAGGED) return this.hover(event, px);
        this.overlay.replaceChildren();
        add(this.overlay, 'rect', {class: 'chosen', x: Math.min(px, from), y: TOP,
          width: Math.abs(px - from), height: HEIGHT - BOTTOM - TOP});
        if (!this.svg.hasPointerCapture(event.pointerId) && event.isTrusted)
          this.svg.setPointerCapture(event.pointerId);
      });
      this.svg.addEventListener('pointerup', event => {
        const px = this.place(event), start = from;
        from = null;
        if (start === null || Math.abs(px - start) < DRAGGED) return;
        this.leave();
        this.zoomTo([this.at(Math.min(px, start)), this.at(Math.max(px, start))]);
      });
      this.svg.addEventListener('pointercancel', () => { from = null; this.leave(); });
      this.svg.addEventListener('pointerleave', event => {
        if (event.pointerType === 'mouse') this.leave();
      });
      this.svg.addEventListener('dblclick', () => { this.leave(); this.zoomTo(null); });
    }

    leave() {
      tip.style.display = 'none';
      this.overlay.replaceChildren();
    }

    hover(event, px) {
      const x = this.at(px), nearer = (a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a;
      const near = this.drawn.map(s => s.points.reduce(nearer));
      this.overlay.replaceChildren();
      if (!near.length) return;
      const step = near.reduce(nearer)[0];
      const at = this.x(step);
      add(this.overlay, 'line', {class: 'cross', x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM});
      tip.replaceChildren();
      tipLine('b', `${this.data.x} ${short(step, 6)}`);
      this.drawn.forEach((s, i) => {
        add(this.overlay, 'circle', {cx: this.x(near[i][0]), cy: this.y(near[i][1]), r: 2.5,
          fill: s.color});
        const own = near[i][0] === step ? '' : `  (at ${short(near[i][0], 6)})`;
        tipLine('div', `${s.name}  ${short(near[i][1], 5)}${own}`, s.color);
      });
      for (const m of this.data.marks)
        if (Math.abs(this.x(m.x) - px) < NEAR) tipLine('div', m.text, m.color);
      showTip(event);
    }

    zoomTo(range) {  // charts over the same axis go together
      if (range && flat(...range)) return;
      for (const chart of this.data.link ? charts : [this])
        if (chart === this || chart.data.link === this.data.link) {
          chart.zoom = range;
          chart.draw();
        }
    }
  }

  function button(text, click) {
    const made = document.createElement('button');
    made.type = 'button';
    made.textContent = text;
    made.addEventListener('click', click);
    return made;
  }

  function tipLine(kind, text, color) {
    const line = document.createElement(kind);
    line.textContent = text;
    if (color) line.style.color = color;
    tip.append(line);
  }

  function showTip(event) {
    tip.style.display = 'block';
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 14, above = event.clientY - tip.offsetHeight - 10;
    tip.style.left = Math.max(left, 4) + 'px';
    tip.style.top = (below + tip.offsetHeight > innerHeight && above > 0 ? above : below) + 'px';
  }

  function addSmoothing() {
    const label = document.createElement('label'), slider = document.createElement('input');
    label.className = 'smoothing';
    Object.assign(slider, {type: 'range', min: 0, max: 0.98, step: 0.02, value: 0});
    slider.addEventListener('input', () => {
      smoothing = Number(slider.value);
      charts.forEach(chart => chart.draw());
    });
    label.append('smoothing', slider);
    document.querySelector('nav div').append(label);
  }

  document.querySelectorAll('figure.chart').forEach(figure => charts.push(new Chart(figure)));
  charts.forEach(chart => chart.draw());
  if (charts.some(chart => chart.data.link)) addSmoothing();
  let wide = innerWidth;
  addEventListener('resize', () => {
    if (innerWidth !== wide) charts.forEach(chart => chart.draw());
    wide = innerWidth;
  });
})();
