"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
                   modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  const bands = ["kept", "bits", "rank"];

  function element(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    return { "font.color": get("--soft"), "hoverlabel.bgcolor": get("--card"),
             "hoverlabel.bordercolor": get("--line"), "hoverlabel.font.color": get("--ink") };
  }

  function draw(id) {
    const figure = data.figures[id];
    const place = byId(id);
    if (!figure || !place) return Promise.resolve();
    if (touch) figure.layout.dragmode = false;
    delete figure.layout.height;  // the style sheet decides, by the width of the window
    return Plotly.newPlot(place, figure.data, figure.layout, config)
      .then(() => Plotly.relayout(place, colours()))
      .then(() => place.on("plotly_click", (event) => {
        const index = event.points[0].customdata;
        if (Number.isInteger(index)) select(index);
      }));
  }

  function showLayers(candidate) {
    const place = byId("layers");
    if (!place || !place.data) return;
    const cells = candidate.cells.map((i) => data.cells[i]);
    const gone = cells.map((cell, i) => (cell.removed ? i : -1)).filter((i) => i >= 0);
    const heat = [], cross = [];
    place.data.forEach((trace, i) => (trace.meta === "removed" ? cross : heat).push(i));
    const z = bands.map((band) => [cells.map((cell) => (cell.removed ? null : cell[band]))]);
    const text = bands.map((band, k) => [cells.map((cell) => cell.numbers[k])]);
    const hovertext = bands.map(() => [cells.map((cell) => cell.text)]);
    Plotly.restyle(place, { z, text, hovertext }, heat);
    Plotly.restyle(place, { x: cross.map(() => gone), y: cross.map(() => gone.map(() => 0)) }, cross);
    byId("layers-of").textContent = candidate.title;
  }

  function markPoint(candidate) {
    const place = byId("front");
    if (!place || !place.data) return;
    const ring = place.data.findIndex((trace) => trace.meta === "selected");
    const point = candidate.point;
    Plotly.restyle(place, { x: [point ? [point[0]] : []], y: [point ? [point[1]] : []] }, [ring]);
  }

  function commandBox(text) {
    const box = element("div", "command");
    const button = element("button", "", "Copy");
    button.type = "button";
    button.addEventListener("click", () => {
      navigator.clipboard.writeText(text).then(() => { button.textContent = "Copied"; }, () => {});
    });
    box.append(element("pre", "", text), button);
    return box;
  }

  function showPanel(candidate) {
    const panel = byId("panel");
    panel.replaceChildren(element("p", "kicker", candidate.kicker), element("h3", "", candidate.title));
    const badges = element("div");
    candidate.badges.forEach(([kind, text]) => badges.append(element("span", "badge " + kind, text)));
    panel.append(badges);
    if (candidate.error) panel.append(element("div", "error", candidate.error));
    candidate.warnings.forEach((text) => panel.append(element("div", "warning", text)));
    const list = element("dl");
    candidate.rows.forEach(([key, value]) => list.append(element("dt", "", key), element("dd", "", value)));
    panel.append(list);
    if (candidate.command) panel.append(commandBox(candidate.command));
    const details = element("details");
    details.append(element("summary", "", "Plan as JSON"),
                   element("pre", "", JSON.stringify(candidate.plan, null, 2)));
    panel.append(details);
  }

  function select(index) {
    const candidate = data.candidates[index];
    document.querySelectorAll("#candidates tbody tr").forEach((row) => {
      const chosen = Number(row.dataset.index) === index;
      row.classList.toggle("selected", chosen);
      row.setAttribute("aria-selected", String(chosen));
    });
    document.body.dataset.selected = String(index);
    showPanel(candidate);
    showLayers(candidate);
    markPoint(candidate);
  }

  function value(row, column) {
    const raw = row.cells[column].dataset.v;
    const parsed = Number(raw);
    return raw === undefined || raw === "" ? null : Number.isNaN(parsed) ? raw : parsed;
  }

  function sortBy(head, column) {
    const body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    head.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const order = (a, b) => (typeof a === "string" || typeof b === "string"
      ? String(a).localeCompare(String(b)) : a - b) * (up ? 1 : -1);
    const rows = [...body.rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : order(a, b)));
    body.append(...rows.map(([, row]) => row));
  }

  function wireTable() {
    document.querySelectorAll("#candidates thead th").forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => sortBy(head, column));
    });
    document.querySelectorAll("#candidates tbody tr").forEach((row) => {
      const choose = () => select(Number(row.dataset.index));
      row.addEventListener("click", choose);
      row.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); }
      });
    });
  }

  wireTable();
  Promise.all(Object.keys(data.figures).map(draw)).then(() => {
    if (data.selected !== null) select(data.selected);
    document.body.dataset.ready = "yes";
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    Object.keys(data.figures).map(byId).forEach((place) => {
      if (place && place.data) Plotly.relayout(place, colours());
    });
  });
})();
