// Draws the charts from the tables that the page holds, and lets the controls
// of a section set the parameters of its charts.
"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const tables = {};
  for (const [name, table] of Object.entries(content.tables)) {
    tables[name] = table.rows.map((row) =>
      Object.fromEntries(table.columns.map((key, i) => [key, row[i]])));
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  let views = [];

  function theme() {
    const isDark = dark.matches && !paper.matches;
    const text = isDark ? "#e8e8e4" : "#1c1f21";
    const faint = isDark ? "#abb1b5" : "#555b5f";
    const line = isDark ? "#43484b" : "#d3d7d9";
    // Colors that differ also for people who do not tell red from green.
    const colors = isDark
      ? ["#6db3f2", "#ffb454", "#5fd0a5", "#ff8fb0", "#c3a6ff", "#e7e06a", "#8fe1e8", "#d9a27c"]
      : ["#0b62a8", "#c05d00", "#00805a", "#b5306a", "#6a48b8", "#7d7300", "#00828f", "#7c4a26"];
    return {
      aria: false,
      background: null,
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: { labelColor: faint, titleColor: text, gridColor: line, domainColor: line,
        tickColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 },
      legend: { labelColor: text, titleColor: text, labelFontSize: 12, titleFontSize: 12 },
      text: { color: faint, fontSize: 12 },
      style: { "text-line": { stroke: faint, fill: faint },
        "column": { fill: colors[0], fillOpacity: 0.65, stroke: colors[0] },
        "pick": { stroke: isDark ? "#17191a" : "#fcfcfb" } },
      bar: { color: colors[0] },
      point: { color: colors[0] },
      rule: { color: faint },
      range: { category: colors },
    };
  }

  // The values that the controls of a section hold.
  function chosen(section) {
    const values = {};
    for (const select of document.querySelectorAll(`select[data-section="${section}"]`)) {
      Object.assign(values, JSON.parse(select.value));
    }
    for (const range of document.querySelectorAll(`input[data-section="${section}"]`)) {
      values[range.dataset.param] = Number(range.value);
      const names = JSON.parse(range.dataset.names);
      const name = names[range.value - range.min] ?? range.value;
      range.nextElementSibling.textContent = name;
      range.setAttribute("aria-valuetext", name);
    }
    for (const set of document.querySelectorAll(`fieldset[data-section="${section}"]`)) {
      values[set.dataset.param] =
        [...set.querySelectorAll("input:checked")].map((box) => box.value);
    }
    return values;
  }

  function send(view, values) {
    const known = view.getState().signals;
    for (const [name, value] of Object.entries(values)) {
      if (name in known) view.signal(name, value);
    }
    view.runAsync();
  }

  async function draw() {
    for (const { view } of views) view.finalize();
    views = [];
    for (const place of document.querySelectorAll("[data-chart]")) {
      const chart = content.charts[place.dataset.chart];
      const spec = structuredClone(chart.spec);
      spec.datasets = Object.fromEntries(chart.data.map((name) => [name, tables[name] ?? []]));
      const { view } = await vegaEmbed(place, spec, {
        actions: false, renderer: "svg", config: theme(),
        tooltip: { theme: dark.matches ? "dark" : "light" },
      });
      // The figure has a description; the marks in it are not to be read out.
      place.querySelector("svg").setAttribute("aria-hidden", "true");
      views.push({ view, name: place.dataset.chart, section: place.dataset.section });
      send(view, chosen(place.dataset.section));
    }
    const view = (name) => views.find((found) => found.name === name)?.view;
    if (view("brush") && view("map")) {
      view("brush").addSignalListener("brush", (_, range) => {
        const [first, last] = range.labeled ?? [0, 1e6];
        send(view("map"), { first, last });
      });
    }
    document.body.dataset.drawn = "yes";
  }

  document.addEventListener("input", ({ target }) => {
    const section = target.closest("[data-section]")?.dataset.section;
    if (!section) return;
    const values = chosen(section);
    for (const found of views) if (found.section === section) send(found.view, values);
  });
  dark.addEventListener("change", draw);
  paper.addEventListener("change", draw);
  draw();
})();
