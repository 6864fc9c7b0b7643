// Run in a page by tests/test_page_in_browser.py: lists what is wrong with it, in the title of the document.
const wrong = [];
window.onerror = message => wrong.push("error: " + message);
const loudly = console.error;
console.error = (...words) => { wrong.push("console: " + words.join(" ")); loudly(...words); };

function rgb(colour) {
  const found = colour.match(/[\d.]+/g).map(Number);
  return found.length > 3 ? found : [...found, 1];
}

function over(front, back) {
  return [0, 1, 2].map(i => front[3] * front[i] + (1 - front[3]) * back[i]).concat(1);
}

function luminance(colour) {
  const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// WCAG 2.1: the ratio of text to what lies behind it, translucent backgrounds included.
function contrast(e) {
  return ratio(rgb(getComputedStyle(e).color), backdrop(e));
}

function ratio(front, back) {
  const [light, dark] = [luminance(over(front, back)), luminance(back)].sort((a, b) => b - a);
  return (light + 0.05) / (dark + 0.05);
}

function backdrop(e) {
  const behind = [];
  for (let one = e; one; one = one.parentElement) behind.unshift(rgb(getComputedStyle(one).backgroundColor));
  return behind.reduce((under, top) => over(top, under), [255, 255, 255, 1]);
}

function meet(a, b) {
  return Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
}

window.onload = () => {
  for (const e of document.querySelectorAll("body *")) {
    if (!e.closest(".picture") && !e.closest("pre") && e.getBoundingClientRect().right > innerWidth + 1)
      wrong.push("too wide: " + e.tagName + " " + e.textContent.trim().slice(0, 40));
    const says = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (says && !e.closest("svg") && e.getClientRects().length && !e.matches(".anchor")) {
      const large = parseFloat(getComputedStyle(e).fontSize) >= 24;
      if (contrast(e) < (large ? 3 : 4.5)) wrong.push("contrast " + contrast(e).toFixed(2) + ": " + e.textContent.trim().slice(0, 40));
    }
  }
  const blocks = [...document.querySelectorAll("h1, h2, h3, p, pre, table, figure, figcaption, .facts, nav, summary, footer")]
    .filter(e => e.getClientRects().length);
  for (const a of blocks) for (const b of blocks)
    if (a !== b && !a.contains(b) && !b.contains(a) && meet(a.getBoundingClientRect(), b.getBoundingClientRect()))
      wrong.push("overlap: " + a.tagName + " and " + b.tagName + " " + b.textContent.trim().slice(0, 40));
  for (const svg of document.querySelectorAll("svg")) {
    if (!svg.getAttribute("aria-label")) wrong.push("an SVG without a description");
    for (const axes of svg.querySelectorAll("g[id*=axes_]"))
      if (!axes.querySelector("g[id*=line2d] path, image, g[id*=Collection], g[id*=patch] path[clip-path]")) wrong.push("empty axes");
    const lift = Number(getComputedStyle(svg).filter.match(/brightness\(([\d.]+)\)/)?.[1] ?? 1);
    for (const glyph of svg.querySelectorAll("g[id*=text_] use, g[id*=text_] path")) {
      const [r, g, b, a] = rgb(getComputedStyle(glyph).fill);
      const seen = ratio([r, g, b].map(v => Math.min(255, lift * v)).concat(a), backdrop(svg));
      if (!glyph.closest("defs") && seen < 4.5) wrong.push("contrast in a picture " + seen.toFixed(2) + ": " + glyph.closest("[id*=text_]").id);
    }
    // The numbers and names along its axes; those set aslant have wider boxes than they are.
    const labels = [...svg.querySelectorAll("g[id*=axis_] g[id*=text_]")]
      .filter(t => ![...t.querySelectorAll("[transform*=rotate]")].some(e => !/rotate\((-90|0)[ )]/.test(e.getAttribute("transform"))))
      .map(t => [t.id, t.getBoundingClientRect()]).filter(([, r]) => r.width);
    labels.forEach(([id, r], i) => labels.slice(i + 1).forEach(([other, q]) => {
      if (meet(r, q)) wrong.push("labels on one another: " + id + ", " + other);
    }));
  }
  for (const a of document.querySelectorAll("a[href^='#']"))
    if (!document.getElementById(a.hash.slice(1))) wrong.push("no anchor " + a.hash);
  for (const part of document.querySelectorAll("main section"))
    if (!part.id || !part.querySelector("h2")) wrong.push("a section without anchor or heading");
  document.title = "RESULT " + innerWidth + " " + JSON.stringify([...new Set(wrong)]);
};
