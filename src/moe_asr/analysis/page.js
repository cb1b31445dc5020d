"use strict";
// The state of the page lives in the fragment of its address: #sort=wer:desc&theme=dark.
const pageData = () => JSON.parse(document.getElementById("data").textContent);
const state = new URLSearchParams(location.hash.slice(1));
const watchers = [];

function remember(key, value) {
  if (value === null) state.delete(key); else state.set(key, value);
  history.replaceState(null, "", "#" + state);
}

function onState(show) {
  watchers.push(show);
  show();
}

addEventListener("hashchange", () => {
  const now = new URLSearchParams(location.hash.slice(1));
  for (const key of [...state.keys()]) state.delete(key);
  for (const [key, value] of now) state.set(key, value);
  for (const show of watchers) show();
});

{
  const button = document.getElementById("theme"), themes = [null, "light", "dark"];
  onState(() => {
    const theme = themes.includes(state.get("theme")) ? state.get("theme") : null;
    if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
    button.textContent = "Theme: " + (theme || "automatic");
    document.dispatchEvent(new Event("themechange"));
  });
  button.addEventListener("click", () => {
    remember("theme", themes[(themes.indexOf(state.get("theme")) + 1) % 3]);
    for (const show of watchers) show();
  });
}
