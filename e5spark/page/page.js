// Draws the charts of the page. Everything else on it is there without JavaScript.
"use strict";
(() => {
  const options = JSON.parse(document.getElementById("charts").textContent);
  const text = (points) => {
    const tip = document.createElement("span");
    tip.textContent = [points].flat()[0].data.tip;
    return tip;
  };
  const charts = Object.entries(options).map(([id, option]) => {
    if (option.xAxis.powers) {
      option.xAxis.axisLabel.formatter = (power) => (2 ** power).toLocaleString("en");
    }
    const style = { backgroundColor: "var(--card)", borderColor: "var(--line)" };
    Object.assign(option.tooltip, style, { formatter: text, textStyle: { color: "var(--ink)" } });
    const chart = echarts.init(document.getElementById(id), null, { renderer: "svg" });
    chart.setOption(option);
    return chart;
  });
  // A drawing shrinks with its box at once, on paper too, and is drawn anew when the box rests.
  const fit = (chart) => {
    const { clientWidth, clientHeight } = chart.getDom();
    chart.resize();
    chart.getDom().querySelector("svg").setAttribute("viewBox", `0 0 ${clientWidth} ${clientHeight}`);
  };
  charts.forEach((chart) => {
    fit(chart);
    new ResizeObserver(() => fit(chart)).observe(chart.getDom());
  });
  addEventListener("beforeprint", () => charts.forEach(fit));
  document.querySelectorAll("details.data").forEach((details) => { details.open = false; });
})();
