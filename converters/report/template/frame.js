// What all pages do: charts one after the other, as wide as the page, the theme, the links.
// Charts of a choice are drawn one choice after the other, however quickly those follow.
let drawing = Promise.resolve();
const after = (step) => () => (drawing = drawing.then(step));

function onTheme() {
  const root = document.documentElement;
  const dark = getComputedStyle(root).getPropertyValue("color-scheme").trim() === "dark" ||
    (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
}

byId("theme").addEventListener("click", onTheme);

// The link of the section that is being read is marked.
function followSections() {
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const sections = [...links.keys()].map(byId);
  const line = () => byId("bar").getBoundingClientRect().bottom + 40;
  const mark = () => {
    const above = sections.filter((section) => section.getBoundingClientRect().top <= line());
    const now = scrollY + innerHeight >= document.documentElement.scrollHeight - 2 ? sections.at(-1) : above.at(-1) ?? sections[0];
    for (const [id, link] of links) {
      if (id !== now.id) link.removeAttribute("aria-current");
      else if (!link.hasAttribute("aria-current")) {
        link.setAttribute("aria-current", "true");
        const list = link.closest("ul");
        list.scrollLeft = link.offsetLeft - list.offsetLeft - list.clientWidth / 3;
      }
    }
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
  new ResizeObserver(() => {
    document.documentElement.style.scrollPaddingTop = `${byId("bar").offsetHeight + 14}px`;
  }).observe(byId("bar"));
}

// Charts are as wide as the page.
function followWidth(drawCharts) {
  const main = document.querySelector("main");
  let width = main.clientWidth, timer = 0;
  new ResizeObserver(() => {
    if (main.clientWidth === width || matchMedia("print").matches) return;
    width = main.clientWidth;
    clearTimeout(timer);
    timer = setTimeout(after(drawCharts), 150);
  }).observe(main);
}
