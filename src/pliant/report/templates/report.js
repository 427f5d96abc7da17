(async () => {
  "use strict";
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const nodes = [...document.querySelectorAll("[data-figure]")];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;

  document.querySelectorAll("[data-copy]").forEach((button) =>
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 1500);
      } catch {
        window.getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
    })
  );

  async function unpack() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  // Figures hold the light scheme's colours; the dark ones are exchanged on the way to the screen.
  function themed(value) {
    if (typeof value === "string") return payload.dark[value] ?? value;
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item)]));
    return value;
  }

  function colors() {
    const style = getComputedStyle(document.documentElement);
    return { ground: style.getPropertyValue("--ground").trim(), ink: style.getPropertyValue("--ink").trim(), line: style.getPropertyValue("--line").trim() };
  }

  function draw(node) {
    const plain = payload.figures[node.dataset.figure];
    const figure = dark.matches && !printing ? themed(plain) : structuredClone(plain);
    const { ground, ink, line } = colors();
    figure.layout.hoverlabel = { ...figure.layout.hoverlabel, bgcolor: ground, bordercolor: line, font: { ...figure.layout.hoverlabel.font, color: ink } };
    figure.layout.width = node.clientWidth;
    // Dragging must scroll the page on a touch screen.
    if (!window.matchMedia("(pointer: fine)").matches) figure.layout.dragmode = false;
    for (const trace of figure.data) {
      const box = "meta" in trace && document.querySelector(`[data-toggle="${trace.meta}"]`);
      if (box) trace.visible = box.checked;
    }
    return Plotly.react(node, figure.data, figure.layout, { displayModeBar: false, displaylogo: false, showTips: false, scrollZoom: false });
  }

  function redraw() {
    document.querySelectorAll("[data-color]").forEach((mark) => mark.setAttribute("stroke", dark.matches && !printing ? themed(mark.dataset.color) : mark.dataset.color));
    nodes.forEach(draw);
  }

  try {
    await unpack();
    for (const node of nodes) await draw(node);
  } catch (error) {
    document.getElementById("no-charts").hidden = false;
    nodes.forEach((node) => (node.style.display = "none"));
    throw error;
  }

  document.querySelectorAll("[data-toggle]").forEach((box) =>
    box.addEventListener("change", () => nodes.filter((node) => node.id.startsWith("curve-")).forEach(draw))
  );
  dark.addEventListener("change", redraw);
  let waiting;
  let width = document.body.clientWidth;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      if (document.body.clientWidth !== width) redraw();
      width = document.body.clientWidth;
    }, 120);
  });

  // On paper everything is open, light, and as wide as the page allows.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    printing = true;
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((part) => (part.open = true));
    // This event comes before the layout for paper, so the page takes that width itself to be measured.
    document.documentElement.classList.add("printing");
    redraw();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    opened.forEach((part) => (part.open = false));
    document.documentElement.classList.remove("printing");
    redraw();
  });
  redraw();
})();
