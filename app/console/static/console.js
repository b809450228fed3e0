// Draws the picture of the last hour from the table beside it, and again when the table or the colours change.
(() => {
  const place = document.querySelector('[data-chart="hour"]');
  const around = document.getElementById("hour");
  if (!place || !around) return;
  let plot;

  const colourOf = (element) => getComputedStyle(element).color;

  function read() {
    const table = around.querySelector('[data-source="hour"]');
    const states = [...table.querySelectorAll("th[data-status]")].map((head) => head.dataset.status);
    const rows = [...table.tBodies[0].rows];
    const times = rows.map((row) => Date.parse(row.querySelector("time").dateTime) / 1000);
    const counts = states.map((_, index) => rows.map((row) => Number(row.cells[index + 1].textContent)));
    return { states, times, counts };
  }

  // Bars that stand on each other: each is drawn from the ground, the highest first.
  function stacked(counts) {
    const sums = counts.map(() => []);
    counts[0]?.forEach((_, minute) => {
      let sum = 0;
      counts.forEach((series, index) => { sums[index][minute] = sum += series[minute]; });
    });
    return sums;
  }

  function draw() {
    const { states, times, counts } = read();
    const sums = stacked(counts);
    const colours = states.map((state) => colourOf(around.querySelector(`.legend .${state}`)));
    const axis = { stroke: colourOf(around.querySelector("summary")), grid: { show: false }, ticks: { show: false } };
    const bars = uPlot.paths.bars({ size: [0.75, 24] });
    const series = states.map((state, index) => ({ label: state, fill: colours[index], width: 0, paths: bars,
      points: { show: false } })).reverse();
    plot?.destroy();
    plot = new uPlot({
      width: place.clientWidth,
      height: place.clientHeight,
      legend: { show: false },
      cursor: { show: false },
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      scales: { x: { range: () => [times[0] - 60, times.at(-1) + 60] }, y: { range: (_, __, most) => [0, Math.max(most, 4)] } },
      axes: [
        { ...axis, size: 24, values: (_, splits) => splits.map((at) => new Date(at * 1000).toISOString().slice(11, 16)) },
        { ...axis, size: 40, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000], space: 30 },
      ],
      series: [{}, ...series],
    }, [times, ...sums.reverse()], place);
  }

  draw();
  new MutationObserver(draw).observe(around, { childList: true, subtree: true, characterData: true });
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: place.clientHeight })).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
