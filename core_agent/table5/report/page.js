"use strict";

const root = document.documentElement;
const figures = JSON.parse(document.getElementById("figures").textContent);
const drawn = new Set();

// The value of a colour such as var(--series-1): Plotly does not know CSS variables.
const probe = document.body.appendChild(document.createElement("span"));
probe.hidden = true;

function resolveColours(value) {
  if (typeof value === "string" && value.startsWith("var(")) {
    probe.style.color = value;
    return getComputedStyle(probe).color;
  }
  if (Array.isArray(value)) {
    return typeof value[0] === "number" ? value : value.map(resolveColours);
  }
  if (value !== null && typeof value === "object") {
    const entries = Object.entries(value).map(([key, inner]) => [key, resolveColours(inner)]);
    return Object.fromEntries(entries);
  }
  return value;
}

// Axes have no zoom, so that a finger scrolls the page.
const axis = {
  title: { standoff: 8 },
  fixedrange: true,
  automargin: true,
  zeroline: false,
  showline: true,
  ticks: "outside",
  linecolor: "var(--rule)",
  tickcolor: "var(--rule)",
  gridcolor: "var(--rule)",
};
const commonLayout = {
  margin: { l: 52, r: 92, t: 12, b: 46 },
  paper_bgcolor: "var(--ground)",
  plot_bgcolor: "var(--ground)",
  font: { size: 12, color: "var(--muted)" },
  hoverlabel: {
    bgcolor: "var(--raised)",
    bordercolor: "var(--rule)",
    font: { color: "var(--text)", size: 12 },
  },
  showlegend: false,
  dragmode: false,
  hovermode: "x unified",
  xaxis: { ...axis, showgrid: false, spikecolor: "var(--muted)", spikethickness: 1 },
  yaxis: axis,
  annotationdefaults: { xref: "paper", showarrow: false },
  shapedefaults: { layer: "below" },
};

function draw(chart) {
  const { data, layout } = resolveColours(figures[chart.id]);
  layout.template = { layout: resolveColours(commonLayout) };
  Plotly.react(chart, data, layout, { displayModeBar: false, responsive: true });
  drawn.add(chart);
}

// A chart is drawn when it is scrolled to, or before printing.
const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        observer.unobserve(target);
        draw(target);
      }
    }
  },
  { rootMargin: "600px" },
);
const charts = [...document.querySelectorAll(".chart")];
charts.forEach((chart) => observer.observe(chart));
addEventListener("beforeprint", () => {
  charts.filter((chart) => chart.offsetParent && !drawn.has(chart)).forEach(draw);
});

const themeButton = document.getElementById("theme");
const systemTheme = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : systemTheme.matches;
}

function showTheme() {
  themeButton.setAttribute("aria-pressed", isDark());
  drawn.forEach(draw);
}

themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
});
systemTheme.addEventListener("change", showTheme);
showTheme();

function compare(left, right) {
  const difference = Number(left) - Number(right);
  return Number.isNaN(difference) ? left.localeCompare(right) : difference;
}

function sortBy(header) {
  const table = header.closest("table");
  const column = header.cellIndex;
  const descending = header.getAttribute("aria-sort") === "ascending";
  const rows = [...table.tBodies[0].rows];
  const hasValue = (row) => "value" in row.cells[column].dataset;
  const value = (row) => row.cells[column].dataset.value;
  rows.sort((left, right) => {
    if (!hasValue(left) || !hasValue(right)) {
      return hasValue(right) - hasValue(left);
    }
    return compare(value(left), value(right)) * (descending ? -1 : 1);
  });
  table.tBodies[0].append(...rows);
  table.querySelectorAll("th").forEach((other) => other.setAttribute("aria-sort", "none"));
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const button of document.querySelectorAll(".sortable th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

document.getElementById("loss-setting")?.addEventListener("change", ({ target }) => {
  for (const panels of document.querySelectorAll(".loss-panels")) {
    panels.hidden = panels.id !== target.value;
  }
});

for (const video of document.querySelectorAll("video[data-content]")) {
  const characters = atob(document.getElementById(video.dataset.content).textContent);
  const bytes = Uint8Array.from(characters, (character) => character.charCodeAt(0));
  video.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
}
