"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const byId = (id) => document.getElementById(id);
  const number = new Map(data.clips.map((clip, i) => [clip.id, i]));
  let paused = still;

  // Texts go in through textContent only: clip names and method names are not trusted.
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };

  // Start a row of videos together once all can play, so that they stay in step.
  const play = (row) => {
    if (paused) return;
    row.querySelectorAll("video").forEach((video) => { video.currentTime = 0; video.play().catch(() => {}); });
  };

  const show = (row, { id, text, pictures }) => {
    const isVideo = ({ type }) => type === "video/mp4";
    let waiting = pictures.filter(isVideo).length;
    row.style.setProperty("--n", Math.min(pictures.length, 6));
    row.replaceChildren(...pictures.map((picture) => {
      const figure = make("figure"), label = `${picture.name}, ${id}`;
      const element = make(isVideo(picture) ? "video" : "img");
      if (isVideo(picture)) {
        Object.assign(element, { loop: true, muted: true, playsInline: true, preload: "auto" });
        element.setAttribute("aria-label", label);
        element.addEventListener("loadeddata", () => { if (--waiting === 0) play(row); }, { once: true });
      } else {
        element.alt = label;
      }
      element.src = `data:${picture.type};base64,${picture.content}`;
      figure.append(element, make("figcaption", picture.name));
      return figure;
    }));
    if (text) row.append(make("p", text, "below"));
  };

  // Rows of the gallery and the exhibits are filled when they come near the window.
  const rows = document.querySelectorAll(".strip .videos");
  const shownIn = ({ dataset: { clip, exhibit, strip } }) => clip === undefined ? data.exhibits[exhibit][strip] : data.clips[number.get(clip)];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      show(entry.target, shownIn(entry.target));
    }
  }, { rootMargin: "300px" });
  rows.forEach((row) => watcher.observe(row));

  if (!byId("stage")) return;
  let order = data.clips.map((_, i) => i);

  const scoreTable = (clip) => {
    const methods = [...new Set(data.columns.map((column) => column.method))];
    const rows = new Map();
    data.columns.forEach((column, i) => {
      const name = `${column.metric} (${column.space})`;
      if (!rows.has(name)) rows.set(name, new Map());
      rows.get(name).set(column.method, clip.values[i]);
    });
    const head = make("tr");
    head.append(make("th"), ...methods.map((text) => make("th", text, "num")));
    const body = [...rows].map(([name, values]) => {
      const row = make("tr");
      row.append(make("td", name), ...methods.map((m) => make("td", values.get(m) ?? "–", "num")));
      return row;
    });
    byId("clip-scores").replaceChildren(...(data.columns.length ? [head, ...body] : []));
  };

  const go = (place, note = true) => {
    const clip = data.clips[order[place]];
    byId("slider").value = place;
    byId("slider").setAttribute("aria-valuetext", clip.id);
    byId("clip-name").replaceChildren(clip.id, " ", make("span", `scene ${clip.scene} · ${place + 1} of ${order.length}`, "faint"));
    show(byId("stage"), clip);
    scoreTable(clip);
    mark();
    if (note) history.replaceState(null, "", `#clip=${encodeURIComponent(clip.id)}`);
  };
  // One dot a clip along a score; dots that would overlap are stacked.
  const dots = byId("spread").querySelector("svg");
  const mark = () => dots.querySelectorAll("circle").forEach((dot) => {
    dot.classList.toggle("here", data.clips[Number(dot.dataset.clip)].id === data.clips[order[place()]].id);
  });
  const spread = () => {
    const column = Number(byId("column").value), make = (tag) => document.createElementNS("http://www.w3.org/2000/svg", tag);
    const known = data.clips.map((clip, i) => [clip.values[column], i]).filter(([value]) => value !== null).sort((a, b) => a[0] - b[0]);
    const low = known[0]?.[0] ?? 0, high = known.at(-1)?.[0] ?? 1, stacked = new Map();
    const bins = known.map(([value]) => high > low ? Math.round(120 * (value - low) / (high - low)) : 60);
    bins.forEach((bin) => stacked.set(bin, (stacked.get(bin) ?? 0) + 1));
    const step = Math.min(8, 110 / Math.max(...stacked.values(), 1)), height = step * Math.max(...stacked.values(), 1) + 34;
    stacked.clear();
    dots.setAttribute("viewBox", `0 0 1000 ${height}`);
    const circles = known.map(([value, i], k) => {
      const dot = make("circle"), title = make("title"), level = stacked.get(bins[k]) ?? 0;
      stacked.set(bins[k], level + 1);
      Object.entries({ cx: 20 + 8 * bins[k], cy: height - 26 - step * level, r: 3.6 }).forEach(([name, x]) => dot.setAttribute(name, x));
      dot.dataset.clip = i;
      title.textContent = `${data.clips[i].id}: ${value}`;
      dot.append(title);
      return dot;
    });
    const labels = [[low, 20, "start"], [(low + high) / 2, 500, "middle"], [high, 980, "end"]].map(([value, x, anchor]) => {
      const label = make("text");
      Object.entries({ x, y: height - 4, "text-anchor": anchor }).forEach(([name, v]) => label.setAttribute(name, v));
      label.textContent = Number(value.toPrecision(3));
      return label;
    });
    dots.replaceChildren(...circles, ...labels);
    mark();
  };
  dots.addEventListener("click", ({ target }) => {
    const dot = target.closest("circle");
    if (dot) go(order.indexOf(Number(dot.dataset.clip)));
  });
  byId("column").addEventListener("change", spread);
  const place = () => Number(byId("slider").value);
  const step = (by) => go((place() + by + order.length) % order.length);

  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("slider").addEventListener("input", () => go(place()));
  byId("pause").textContent = paused ? "Play" : "Pause";
  byId("pause").addEventListener("click", () => {
    paused = !paused;
    byId("pause").textContent = paused ? "Play" : "Pause";
    document.querySelectorAll("video").forEach((video) => { if (paused) video.pause(); });
    if (!paused) document.querySelectorAll(".videos").forEach(play);
  });
  byId("find").addEventListener("input", () => {
    const text = byId("find").value.trim().toLowerCase();
    const hits = text ? order.filter((i) => data.clips[i].id.toLowerCase().includes(text)) : [];
    byId("found").textContent = text ? `${hits.length} found` : "";
    const exact = number.get(byId("find").value.trim());
    const hit = exact ?? hits[0];
    if (hit !== undefined) go(order.indexOf(hit));
  });
  data.columns.forEach((column, i) => {
    for (const direction of ["highest", "lowest"]) {
      const option = make("option", `${direction} ${column.metric} (${column.space}), ${column.method}`);
      option.value = `${i} ${direction}`;
      byId("order").append(option);
    }
  });
  data.columns.forEach((column, i) => {
    const option = make("option", `${column.metric} (${column.space}), ${column.method}`);
    option.value = i;
    byId("column").append(option);
  });
  byId("spread").hidden = data.columns.length === 0;
  if (data.columns.length) {
    byId("column").value = data.shown;
    spread();
  }
  byId("order").addEventListener("change", () => {
    const [column, direction] = byId("order").value.split(" ");
    order = data.clips.map((_, i) => i);
    if (column !== "") {
      const sign = direction === "lowest" ? 1 : -1;
      const value = (i) => data.clips[i].values[column] ?? sign * Infinity;
      order.sort((a, b) => sign * (value(a) - value(b)) || a - b);
    }
    go(0);
  });

  const wanted = /^#clip=(.*)$/.exec(location.hash);
  let start = 0;
  try { start = number.get(decodeURIComponent(wanted?.[1] ?? "")) ?? 0; } catch { /* a damaged address shows the first clip */ }
  go(start, false);
})();
