"use strict";
{
  const data = pageData(), $ = (id) => document.getElementById(id);
  const bytes = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  for (const site of data.sites) {
    site.probabilities = bytes(site.probabilities, Uint8Array);
    site.ids = bytes(site.ids, Int16Array);
    site.weights = bytes(site.weights, Float32Array);
  }
  const wave = bytes(data.wave, Int8Array), mel = bytes(data.spectrogram.cells, Uint8Array);
  const audio = $("audio"), track = $("track"), view = $("view"), STRIP = 18, ROW = 14, FRAME = 0.04;
  const experts = Math.max(...data.sites.map((site) => site.experts));
  const okabe = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c8c8c"];
  const colour = (e) => e < 0 ? "transparent" : experts <= 8 ? okabe[e]
    : `hsl(${(e * 137.5) % 360} ${55 + 20 * (e % 2)}% ${42 + 16 * (e % 3)}%)`;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let time = 0, hover = null, zoom = 0, chosen = data.sites[0];

  const shown = () => hover === null ? time : hover;
  const cellAt = (site, t) => {  // the last cell that begins by then
    let low = 0, high = site.edges.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (site.edges[middle] <= t + 1e-6) low = middle; else high = middle - 1;
    }
    return low;
  };
  const first = (site, cell) => site.ids[cell * site.top_k];
  const tag = (name, text, attributes) => {
    const made = Object.assign(document.createElement(name), attributes || {});
    made.textContent = text;
    return made;
  };

  function paint(id, height, draw) {
    const canvas = $(id), width = data.seconds * zoom;
    const fine = Math.min(devicePixelRatio || 1, 16000 / width);
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    canvas.width = Math.max(1, Math.round(width * fine));
    canvas.height = Math.round(height * fine);
    const pen = canvas.getContext("2d");
    pen.scale(canvas.width / width, fine);
    draw(pen, width, height);
  }

  function flame(v) {  // dark violet over red to pale yellow, ever brighter
    const stops = [[10, 7, 35], [86, 21, 110], [187, 55, 84], [249, 142, 9], [252, 255, 190]], at = v / 255 * 4;
    const i = Math.min(3, Math.floor(at)), part = at - i;
    return stops[i].map((c, k) => c + part * (stops[i + 1][k] - c));
  }
  const flames = Array.from({length: 256}, (_, v) => flame(v));

  function drawAll() {
    track.style.width = data.seconds * zoom + "px";
    paint("wave", 56, (pen, width, height) => {
      pen.fillStyle = css("--accent");
      const count = wave.length / 2, step = width / count;
      for (let i = 0; i < count; i++) {
        const top = height / 2 * (1 - wave[2 * i + 1] / 130), bottom = height / 2 * (1 - wave[2 * i] / 130);
        pen.fillRect(i * step, top, Math.max(step, .5), Math.max(bottom - top, .5));
      }
    });
    paint("mel", 120, (pen, width, height) => {
      const bins = data.spectrogram.bins, frames = mel.length / bins;
      const small = document.createElement("canvas");
      [small.width, small.height] = [frames, bins];
      const brush = small.getContext("2d"), image = brush.createImageData(frames, bins);
      for (let t = 0; t < frames; t++) for (let b = 0; b < bins; b++) {
        const at = 4 * ((bins - 1 - b) * frames + t);
        [image.data[at], image.data[at + 1], image.data[at + 2]] = flames[mel[t * bins + b]];
        image.data[at + 3] = 255;
      }
      brush.putImageData(image, 0, 0);
      pen.drawImage(small, 0, 0, frames * 0.01 * zoom, height);
    });
    paint("strips", STRIP * data.sites.length, (pen, width, height) => {
      data.sites.forEach((site, row) => {
        for (let cell = 0; cell + 1 < site.edges.length; cell++) {
          const from = site.edges[cell] * zoom, to = site.edges[cell + 1] * zoom;
          pen.fillStyle = colour(first(site, cell));
          pen.fillRect(from, row * STRIP + 1, to - from + (site.reads ? -1 : .3), STRIP - 2);
        }
      });
      borders(pen, height);
    });
    drawDetail();
    [...$("words").children].forEach((word, i, all) => {  // as wide as its text, as far as the next one leaves room
      const {start, end} = word.dataset, next = i + 1 < all.length ? all[i + 1].dataset.start : data.seconds;
      word.style.left = start * zoom + "px";
      word.style.minWidth = (end - start) * zoom + "px";
      word.style.maxWidth = Math.max((next - start) * zoom - 2, 2) + "px";
    });
    place();
  }

  function drawDetail() {
    paint("detail", ROW * chosen.experts, (pen, width, height) => {
      const soft = css("--soft");
      for (let cell = 0; cell + 1 < chosen.edges.length; cell++) {
        const from = chosen.edges[cell] * zoom, wide = chosen.edges[cell + 1] * zoom - from + .3;
        const ids = chosen.ids.subarray(cell * chosen.top_k, (cell + 1) * chosen.top_k);
        for (let e = 0; e < chosen.experts; e++) {
          const p = chosen.probabilities[cell * chosen.experts + e] / 255, taken = ids.includes(e);
          pen.globalAlpha = taken ? .25 + .75 * p : .6 * p;
          pen.fillStyle = taken ? colour(e) : soft;
          if (pen.globalAlpha > .01) pen.fillRect(from, e * ROW + .5, wide, ROW - 1);
        }
      }
      pen.globalAlpha = 1;
      borders(pen, height);
    });
    $("rows").replaceChildren(...Array.from({length: chosen.experts}, (_, e) => tag("div", "expert " + e)));
  }

  function borders(pen, height) {
    if (!data.chunk_seconds) return;
    pen.fillStyle = css("--ink");
    for (let t = data.chunk_seconds; t < data.seconds; t += data.chunk_seconds) pen.fillRect(t * zoom - .5, 0, 1, height);
  }

  function place() {
    const t = shown();
    $("cursor").style.left = t * zoom + "px";
    track.setAttribute("aria-valuenow", t.toFixed(2));
    track.setAttribute("aria-valuetext", t.toFixed(2) + " seconds");
    for (const button of $("sites").children) {
      button.setAttribute("aria-pressed", button.dataset.site === chosen.name);
    }
    for (const word of $("words").children) {
      word.classList.toggle("now", word.dataset.start <= t && t < word.dataset.end);
    }
    tell(t);
  }

  function tell(t) {
    const cell = cellAt(chosen, t), k = chosen.top_k, word = data.words.find((w) => w[1] <= t && t < w[2]);
    const what = chosen.reads ? `reading “${chosen.reads[cell]}”` : `frame ${cell}`;
    const said = word ? `, in the word “${word[0]}”` : "";
    $("moment").textContent = `${t.toFixed(2)} s, ${chosen.name}, ${what}${said}`;
    const table = tag("table", "", {className: "wide bars"});
    table.append(tag("caption", "Router probabilities, and the weights of the experts that are chosen"));
    for (let e = 0; e < chosen.experts; e++) {
      const p = chosen.probabilities[cell * chosen.experts + e] / 255;
      const rank = chosen.ids.subarray(cell * k, cell * k + k).indexOf(e), row = table.insertRow();
      row.append(tag("th", "expert " + e, {scope: "row"}));
      const bar = tag("div", "");
      bar.style.cssText = `width:${100 * p}%;background:${colour(e)}`;
      row.insertCell().append(bar);
      row.append(tag("td", (100 * p).toFixed(0) + " %", {className: "number"}));
      row.append(tag("td", rank < 0 ? "" : "× " + chosen.weights[cell * k + rank].toFixed(2), {className: "number"}));
      row.classList.toggle("taken", rank >= 0);
    }
    $("bars").replaceChildren(table);
    const depth = tag("table", "", {className: "wide depth"});
    depth.append(tag("caption", "First choice at every site"));
    for (const site of data.sites) {
      const at = cellAt(site, t), e = first(site, at), row = depth.insertRow();
      row.append(tag("th", site.name, {scope: "row"}));
      const p = e < 0 ? 0 : site.probabilities[at * site.experts + e] / 255, held = row.insertCell();
      const dot = tag("span", "", {className: "dot"});
      dot.style.background = colour(e);
      held.append(dot, e < 0 ? "none" : `expert ${e}`);
      row.append(tag("td", (100 * p).toFixed(0) + " %", {className: "number"}));
      row.append(tag("td", site.reads ? site.reads[at] : "", {}));
      row.classList.toggle("taken", site === chosen);
    }
    $("depth").replaceChildren(depth);
  }

  function moveTo(t, follow) {
    time = Math.min(Math.max(t, 0), data.seconds - 1e-3);
    if (follow) {
      const x = time * zoom;
      if (x < view.scrollLeft || x > view.scrollLeft + view.clientWidth - 20) view.scrollLeft = x - view.clientWidth / 3;
    }
    place();
  }
  function seek(t) {
    moveTo(t, true);
    if (audio.readyState) audio.currentTime = time;
    remember("t", time.toFixed(2));
  }
  function choose(site) {
    chosen = site;
    remember("site", site.name);
    drawDetail();
    place();
  }
  function zoomTo(pixels) {
    const middle = (view.scrollLeft + view.clientWidth / 2) / (zoom || 1);
    zoom = Math.min(Math.max(pixels, view.clientWidth / data.seconds), 1600);
    drawAll();
    view.scrollLeft = middle * zoom - view.clientWidth / 2;
  }

  $("words").replaceChildren(...data.words.map(([text, start, end, confidence]) => {
    const word = tag("span", text, {title: `${text}: ${start.toFixed(2)}–${end.toFixed(2)} s, confidence ${confidence}`});
    Object.assign(word.dataset, {start, end});
    return word;
  }));
  $("legend").replaceChildren(...Array.from({length: experts}, (_, e) => {
    const dot = tag("span", e, {className: "chip"});
    dot.style.background = colour(e);
    return dot;
  }));
  for (const button of $("sites").children) {
    button.addEventListener("click", () => choose(data.sites.find((site) => site.name === button.dataset.site)));
  }
  const timeOf = (event) => (event.clientX - track.getBoundingClientRect().left) / zoom;
  track.addEventListener("pointerdown", (event) => {
    hover = null;
    seek(timeOf(event));
  });
  track.addEventListener("pointermove", (event) => {
    if (event.buttons && event.pointerType === "mouse") return seek(timeOf(event));
    if (event.pointerType === "mouse" && audio.paused) {
      hover = Math.min(Math.max(timeOf(event), 0), data.seconds - 1e-3);
      place();
    }
  });
  track.addEventListener("pointerleave", () => {
    hover = null;
    place();
  });
  track.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 10 * FRAME : FRAME, at = data.sites.indexOf(chosen);
    const moves = {
      ArrowLeft: () => seek(time - step), ArrowRight: () => seek(time + step), Home: () => seek(0),
      End: () => seek(data.seconds), " ": () => audio.paused ? audio.play() : audio.pause(),
      ArrowUp: () => choose(data.sites[Math.max(at - 1, 0)]),
      ArrowDown: () => choose(data.sites[Math.min(at + 1, data.sites.length - 1)]),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    hover = null;
    moves[event.key]();
  });
  audio.addEventListener("play", () => requestAnimationFrame(function follow() {
    hover = null;
    moveTo(audio.currentTime, true);
    if (!audio.paused) requestAnimationFrame(follow);
  }));
  audio.addEventListener("seeked", () => audio.paused && moveTo(audio.currentTime, true));
  audio.addEventListener("loadedmetadata", () => { if (time) audio.currentTime = time; });
  $("zoom-in").addEventListener("click", () => zoomTo(zoom * 1.5));
  $("zoom-out").addEventListener("click", () => zoomTo(zoom / 1.5));
  addEventListener("resize", () => zoomTo(zoom));
  document.addEventListener("themechange", () => drawAll());

  onState(() => {
    chosen = data.sites.find((site) => site.name === state.get("site")) || data.sites[0];
    zoomTo(zoom || Math.max(view.clientWidth / data.seconds, 90));
    moveTo(parseFloat(state.get("t")) || 0, true);
  });
}
