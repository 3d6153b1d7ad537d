// What the pages need beside htmx: charts from data, messages, the menu, the theme, questions before a change.
"use strict";
(() => {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const charts = new Map(); // element -> chart

  function toast(text, tone) {
    const said = document.createElement("p");
    said.className = tone;
    said.textContent = text;
    document.getElementById("toasts").append(said);
    setTimeout(() => said.remove(), 8000);
  }

  // -- charts: <figure data-chart="URL"> holds the options of ECharts as JSON behind URL; data-every refreshes it (ms)
  async function draw(figure) {
    const canvas = figure.querySelector(".canvas");
    let reply;
    try {
      reply = await fetch(figure.dataset.chart, { headers: { "HX-Request": "true" } });
    } catch {
      figure.dataset.state = "away";
      return;
    }
    if (!reply.ok) {
      canvas.textContent = reply.status === 401 ? "Log in again" : await reply.text();
      return;
    }
    const option = await reply.json();
    figure.dataset.state = option.empty ? "empty" : "drawn";
    if (option.empty) {
      charts.get(canvas)?.dispose();
      charts.delete(canvas);
      canvas.textContent = option.empty;
      return;
    }
    show(canvas, option);
  }

  function show(canvas, option) {
    let chart = charts.get(canvas);
    if (chart && chart.dark !== dark()) {
      chart.made.dispose();
      chart = undefined;
    }
    if (!chart) {
      canvas.textContent = "";
      chart = { made: echarts.init(canvas, dark() ? "dark" : null), dark: dark() };
      // a point of the data that has an address leads there
      chart.made.on("click", ({ data }) => data && data.href && location.assign(data.href));
      charts.set(canvas, chart);
    }
    // tooltips drawn in the canvas: as HTML they would carry inline styles, which the page's policy forbids
    const tooltip = { trigger: "axis", renderMode: "richText", confine: true, ...option.tooltip };
    chart.made.setOption({ backgroundColor: "transparent", animation: false, ...option, tooltip }, { notMerge: true });
  }

  function adopt(scope) {
    for (const figure of scope.querySelectorAll("[data-chart]")) {
      if (figure.dataset.adopted) continue;
      figure.dataset.adopted = "yes";
      draw(figure);
      const every = Number(figure.dataset.every || 0);
      if (every) {
        const timer = setInterval(() => (figure.isConnected ? document.hidden || draw(figure) : clearInterval(timer)), every);
      }
    }
  }

  function redraw() {
    for (const figure of document.querySelectorAll("[data-chart]")) draw(figure);
  }

  addEventListener("resize", () => charts.forEach((chart) => chart.made.resize()));
  document.addEventListener("htmx:load", (event) => adopt(event.detail.elt));

  // -- answers that are not what was asked for
  document.addEventListener("htmx:responseError", (event) => {
    const { status, responseText } = event.detail.xhr;
    if (status !== 401) toast(responseText.slice(0, 500) || `The server answered ${status}`, "bad");
  });
  document.addEventListener("htmx:sendError", () => toast("The server does not answer", "bad"));
  document.addEventListener("headwater:done", (event) => toast(event.detail.value, "good")); // header HX-Trigger of an answer

  // -- see: what refreshes by itself rests while nobody looks
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.detail.elt.matches('[hx-trigger*="every"]')) event.preventDefault();
  });

  document.addEventListener("headwater:done", () => document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close()));

  // -- menu, theme, dialogs (data-fills of an opener: fields of its dialog, as a query)
  document.addEventListener("click", (event) => {
    const toggle = event.target.closest("[data-toggle]");
    if (toggle) {
      const open = toggle.getAttribute("aria-expanded") !== "true";
      toggle.setAttribute("aria-expanded", String(open));
      document.getElementById(toggle.dataset.toggle).classList.toggle("open", open);
    }
    if (event.target.closest("[data-theme-switch]")) {
      root.dataset.theme = dark() ? "light" : "dark";
      localStorage.setItem("headwater-theme", root.dataset.theme);
      redraw();
    }
    const opener = event.target.closest("[data-opens]");
    if (opener) {
      const dialog = document.getElementById(opener.dataset.opens);
      for (const [name, value] of new URLSearchParams(opener.dataset.fills || "")) dialog.querySelector(`[name="${name}"]`).value = value;
      dialog.showModal();
    }
    const closer = event.target.closest("[data-closes]");
    if (closer) closer.closest("dialog").close();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  root.dataset.ready = "yes";
})();
