"use strict";
// The turning cortex of the section on maps, drawn with WebGL 2 and only when something changes. Where that is not to
// be had, the pictures stay. The hemispheres turn like the pages of a book: what one does, the other mirrors.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("maps-data").textContent);
  const canvas = byId("cortex"), gl = canvas.getContext("webgl2");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const VIEWS = { // yaw and pitch of the left hemisphere, from behind, in degrees
    lateral: [90, 0], medial: [-90, 0], posterior: [0, 0], ventral: [0, 90], dorsal: [0, -90], flat: [90, 0],
  };
  const SIDES = { both: [0, 1], left: [0], right: [1] };
  const FLAT = 2, GAP = 14, CLOSEST = 8; // the last shape; mm between hemispheres; the greatest zoom
  const WIDE = 256; // vertices, or triangles, in a row of a texture

  const VERTEX = `#version 300 es
    precision highp float; precision highp int; precision highp sampler2D; precision highp usampler2D;
    uniform usampler2D triangles, whole, codes;
    uniform sampler2D vertices;
    uniform mat3 turn;
    uniform vec2 scale, shift;
    uniform float shape; // 0 folded, 1 inflated, 2 flat
    out vec3 near; // to each corner of the triangle: 1 at it, 0 on the line between the others
    out vec2 code; // of the map, and 1 where it is known
    out float bare, facing; // the grey of a vertex without a value; how much it looks at the reader
    flat out ivec3 ids, areas;
    ivec2 at(int i, int parts) { return ivec2(parts * (i % ${WIDE}), i / ${WIDE}); }
    vec4 part(int vertex, int k) { return texelFetch(vertices, at(vertex, 4) + ivec2(k, 0), 0); }
    void main() {
      int t = gl_VertexID / 3, corner = gl_VertexID % 3;
      ids = ivec3(texelFetch(triangles, at(t, 1), 0).xyz);
      areas = ivec3(part(ids.x, 1).w, part(ids.y, 1).w, part(ids.z, 1).w);
      near = vec3(corner == 0, corner == 1, corner == 2);
      int id = ids[corner];
      vec4 folded = part(id, 0), inflated = part(id, 1), way0 = part(id, 2), way1 = part(id, 3);
      float inflation = min(shape, 1.0), flatness = max(shape - 1.0, 0.0);
      vec3 place = mix(turn * mix(folded.xyz, inflated.xyz, inflation), vec3(way0.w, way1.w, 0), flatness);
      facing = mix((turn * mix(normalize(way0.xyz), normalize(way1.xyz), inflation)).z, 1.0, flatness);
      bare = inflated.w > 0.0 ? 0.79 - 0.09 * tanh((folded.w / 127.5 - 1.0) / 0.25) : 0.9;
      code.x = float(texelFetch(codes, at(id, 1), 0).x);
      code.y = min(code.x, 1.0);
      bool cut = flatness > 0.0 && texelFetch(whole, at(t, 1), 0).x == 0u;
      gl_Position = cut ? vec4(2, 2, 2, 1) : vec4(place.xy * scale + shift, -place.z / 500.0, 1);
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float; precision highp int;
    uniform sampler2D palette;
    uniform float line; // half the width of a border between areas, in pixels; 0 draws none
    uniform int side, chosen; // the hemisphere; the area under the pointer
    uniform bool picking; // colours are then the numbers of vertices
    in vec3 near;
    in vec2 code;
    in float bare, facing;
    flat in ivec3 ids, areas;
    out vec4 colour;
    float of(ivec3 area) { return dot(near, vec3(equal(areas, area))); } // how near an area is
    void main() {
      // A border runs where two areas are equally near; within a triangle its distance in pixels is exact.
      vec3 share = vec3(of(areas.xxx), of(areas.yyy), of(areas.zzz));
      vec3 lead = share - share.yzx, x = dFdx(lead), y = dFdy(lead);
      vec3 away = abs(lead) / max(sqrt(x * x + y * y), 1e-6);
      bvec3 apart = notEqual(areas, areas.yzx), foremost = lessThanEqual(share.zxy, max(share, share.yzx));
      away = mix(vec3(1e3), away, vec3(apart) * vec3(foremost));
      float known = clamp((code.y - 0.5) / max(fwidth(code.y), 1e-6) + 0.5, 0.0, 1.0);
      float light = mix(0.62, 1.0, clamp(facing, 0.0, 1.0));

      // Colours as in cortex/plot.py: what faces the reader has those of the colour bar.
      int place = int(round(255.0 * clamp((code.x / max(code.y, 1e-6) - 1.0) / 254.0, 0.0, 1.0)));
      vec3 shown = mix(vec3(bare * light), texelFetch(palette, ivec2(place, 0), 0).rgb * (0.4 + 0.6 * light), known);
      bool hot = chosen > 0 && any(equal(areas, ivec3(chosen)));
      float ink = clamp((hot ? 2.4 : 1.0) * line + 0.5 - min(away.x, min(away.y, away.z)), 0.0, 1.0);
      float contrast = dot(shown, vec3(1)) < 3.0 * 0.33 ? 0.9 : 0.0;
      if (line > 0.0) shown = mix(shown, vec3(contrast), (hot ? 1.0 : 0.7) * ink);
      colour = vec4(shown, 1);

      int id = near.x >= max(near.y, near.z) ? ids.x : near.y >= near.z ? ids.y : ids.z;
      if (picking) colour = vec4(id & 255, id >> 8, side + 1, 255) / 255.0;
    }`;

  // ---------------------------------------------------------------- what came with the page

  const inflate = async (text) => {
    const packed = new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]);
    return new Response(packed.stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  };
  const bytes = async (text) => new Uint8Array(await inflate(text));
  // Columns of whole numbers, each stored as the difference from the one before it.
  const columns = async (text, count, Numbers = Int16Array) => {
    const numbers = new Numbers(await inflate(text)), length = numbers.length / count;
    numbers.forEach((_, i) => { if (i % length) numbers[i] += numbers[i - 1]; });
    return Array.from({ length: count }, (_, k) => numbers.subarray(k * length, (k + 1) * length));
  };
  // In mm around the middle, with half the size in each direction.
  const centred = (places, step) => {
    const ends = places.map((column) => [Math.min, Math.max].map((end) => column.reduce((a, b) => end(a, b))));
    return {
      at: places.map((column, k) => Float32Array.from(column, (v) => step * (v - (ends[k][0] + ends[k][1]) / 2))),
      half: ends.map(([low, high]) => step * (high - low) / 2),
    };
  };
  // The direction out of the surface at each vertex: the sum over its triangles, weighted by their size.
  const outward = ([x, y, z], [a, b, c], winding) => {
    const sum = [x, y, z].map(({ length }) => new Float32Array(length));
    for (let t = 0; t < a.length; t++) {
      const i = a[t], j = b[t], k = c[t];
      const ux = x[j] - x[i], uy = y[j] - y[i], uz = z[j] - z[i], vx = x[k] - x[i], vy = y[k] - y[i], vz = z[k] - z[i];
      for (const vertex of [i, j, k]) {
        sum[0][vertex] += winding * (uy * vz - uz * vy);
        sum[1][vertex] += winding * (uz * vx - ux * vz);
        sum[2][vertex] += winding * (ux * vy - uy * vx);
      }
    }
    return sum;
  };
  const readSide = async (packed, triangles) => {
    const folded = centred(await columns(packed.folded, 3), data.step);
    const inflated = centred(await columns(packed.inflated, 3), data.step);
    const flat = centred(await columns(packed.flat, 2), 2 * data.step);
    const [depth, area, whole] = await Promise.all([packed.depth, packed.area, packed.whole].map(bytes));
    const ways = [folded, inflated].map(({ at }) => outward(at, triangles, packed.winding));
    const parts = [...folded.at, depth, ...inflated.at, area, ...ways[0], flat.at[0], ...ways[1], flat.at[1]];
    const vertices = new Float32Array(16 * area.length);
    parts.forEach((part, k) => part.forEach((value, i) => { vertices[16 * i + k] = value; }));
    return { name: packed.name, area, whole, vertices, half: [folded.half, inflated.half, flat.half] };
  };

  const start = async () => {
    const triangles = await columns(data.triangles, 3, Uint16Array);
    const sides = await Promise.all(data.sides.map((packed) => readSide(packed, triangles)));
    const palettes = { signed: await bytes(data.palettes.signed), unsigned: await bytes(data.palettes.unsigned) };
    const maps = await Promise.all(data.maps.map(async (map) => ({ ...map, codes: await bytes(map.codes) })));
    // What is animated, and what is chosen. Turning is in degrees, the way from the middle in pixels.
    const state = { shape: 1, yaw: 90, pitch: 0, zoom: 1, x: 0, y: 0, stack: 0 };
    const choice = { map: 0, view: "lateral", side: "both", area: 0 };

    // -------------------------------------------------------------- the graphics card

    let uniforms, textures, picker;
    const fill = (texture, [internal, format, type, channels], items, values) => {
      const row = channels * items * WIDE, rows = Math.ceil(values.length / row);
      const padded = new values.constructor(rows * row);
      padded.set(values);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texImage2D(gl.TEXTURE_2D, 0, internal, items * WIDE, rows, 0, format, type, padded);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      return texture;
    };
    const BYTE = [gl.R8UI, gl.RED_INTEGER, gl.UNSIGNED_BYTE, 1], COLOUR = [gl.RGB8, gl.RGB, gl.UNSIGNED_BYTE, 3];
    const TRIANGLE = [gl.RGB16UI, gl.RGB_INTEGER, gl.UNSIGNED_SHORT, 3], FLOATS = [gl.RGBA32F, gl.RGBA, gl.FLOAT, 4];
    const prepare = () => {
      const program = gl.createProgram();
      for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
        const shader = gl.createShader(kind);
        gl.shaderSource(shader, source);
        gl.compileShader(shader);
        gl.attachShader(program, shader);
        if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      }
      gl.linkProgram(program);
      if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
      gl.useProgram(program);
      gl.enable(gl.DEPTH_TEST);
      gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
      const names = ["turn", "scale", "shift", "shape", "line", "side", "chosen", "picking"];
      uniforms = Object.fromEntries(names.map((name) => [name, gl.getUniformLocation(program, name)]));
      const units = ["triangles", "palette", "vertices", "whole", "codes"];
      units.forEach((name, unit) => gl.uniform1i(gl.getUniformLocation(program, name), unit));
      const corners = new Uint16Array(3 * triangles[0].length).map((_, i) => triangles[i % 3][Math.floor(i / 3)]);
      textures = {
        shared: [fill(gl.createTexture(), TRIANGLE, 1, corners), gl.createTexture()],
        sides: sides.map(({ vertices, whole }) => [
          fill(gl.createTexture(), FLOATS, 4, vertices), fill(gl.createTexture(), BYTE, 1, whole), gl.createTexture(),
        ]),
      };
      picker = gl.createFramebuffer(); // of one pixel: the one under the pointer
      gl.bindFramebuffer(gl.FRAMEBUFFER, picker);
      for (const [format, point] of [[gl.RGBA8, gl.COLOR_ATTACHMENT0], [gl.DEPTH_COMPONENT16, gl.DEPTH_ATTACHMENT]]) {
        const buffer = gl.createRenderbuffer();
        gl.bindRenderbuffer(gl.RENDERBUFFER, buffer);
        gl.renderbufferStorage(gl.RENDERBUFFER, format, 1, 1);
        gl.framebufferRenderbuffer(gl.FRAMEBUFFER, point, gl.RENDERBUFFER, buffer);
      }
    };

    // Values belong to vertices of cortex, left before right, in the order of the vertices.
    const codesOf = ({ codes }) => {
      let next = 0;
      return sides.map(({ area }) => area.map((a) => (a ? codes[next++] : 0)));
    };
    let codes;
    const load = () => {
      const map = maps[choice.map];
      codes = codesOf(map);
      codes.forEach((values, side) => fill(textures.sides[side][2], BYTE, 1, values));
      fill(textures.shared[1], COLOUR, 1, palettes[map.palette]);
    };

    // -------------------------------------------------------------- where things are

    const mix = (a, b, share) => a + (b - a) * share;
    // Rows of a hemisphere's rotation: what becomes right, up, and towards the reader. At 0 it is seen from behind.
    const turn = (side, { yaw, pitch }) => {
      const [y, p] = [(side ? -yaw : yaw) * Math.PI / 180, pitch * Math.PI / 180];
      const [c, s, cp, sp] = [Math.cos(y), Math.sin(y), Math.cos(p), Math.sin(p)];
      return [[c, -s, 0], [-s * sp, -c * sp, cp], [-s * cp, -c * cp, -sp]];
    };
    // Hemispheres beside or above each other (stack 1), as large as fits. In pixels from the middle of the canvas.
    const layout = (at = state) => {
      const width = canvas.clientWidth, height = canvas.clientHeight, active = SIDES[choice.side];
      const inflation = Math.min(at.shape, 1), flatness = Math.max(at.shape - 1, 0);
      const half = [0, 1].map((row) => Math.max(...active.map((side) => {
        const [folded, inflated, flat] = sides[side].half, across = turn(side, at)[row];
        return mix(Math.hypot(...across.map((v, k) => v * mix(folded[k], inflated[k], inflation))), flat[row], flatness);
      })));
      const apart = active.length > 1 ? [(1 - at.stack) * (half[0] + GAP / 2), at.stack * (half[1] + GAP)] : [0, 0];
      const scale = at.zoom * Math.min((width - 16) / 2 / (half[0] + apart[0]), (height - 56) / 2 / (half[1] + apart[1]));
      const place = (side, way) => ({ side, x: at.x + way * apart[0] * scale, y: at.y - 8 - way * apart[1] * scale });
      return { width, height, scale, places: active.map((side, k) => place(side, 2 * k - 1)), top: half[1] * scale };
    };

    // -------------------------------------------------------------- drawing

    const paint = ({ width, height, scale, places }, picking) => {
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.uniform2f(uniforms.scale, 2 * scale / width, 2 * scale / height);
      gl.uniform1f(uniforms.shape, state.shape);
      gl.uniform1f(uniforms.line, byId("borders").checked ? 0.6 * canvas.width / width : 0);
      gl.uniform1i(uniforms.chosen, choice.area);
      gl.uniform1i(uniforms.picking, picking);
      for (const { side, x, y } of places) {
        [...textures.shared, ...textures.sides[side]].forEach((texture, unit) => {
          gl.activeTexture(gl.TEXTURE0 + unit);
          gl.bindTexture(gl.TEXTURE_2D, texture);
        });
        gl.uniformMatrix3fv(uniforms.turn, true, turn(side, state).flat());
        gl.uniform2f(uniforms.shift, 2 * x / width, 2 * y / height);
        gl.uniform1i(uniforms.side, side);
        gl.drawArrays(gl.TRIANGLES, 0, 3 * triangles[0].length);
      }
    };
    const draw = () => {
      const found = layout(), size = [found.width, found.height].map((length) => Math.round(length * devicePixelRatio));
      if (canvas.width !== size[0]) canvas.width = size[0]; // setting it anew costs a buffer
      if (canvas.height !== size[1]) canvas.height = size[1];
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
      gl.viewport(0, 0, canvas.width, canvas.height);
      paint(found, false);
      byId("shape").value = state.shape;
      for (const side of [0, 1]) {
        const label = byId(`label-${sides[side].name}`), place = found.places.find((p) => p.side === side);
        label.hidden = !place;
        if (!place) continue;
        // Where the front of the brain points; the flat map is seen as the lateral side.
        const [x, y] = state.shape > 1.5 ? [side - 0.5, 0] : turn(side, state).map((row) => row[1]);
        const across = x < 0 ? "← anterior" : "anterior →", along = y < 0 ? "↓ anterior" : "↑ anterior";
        label.lastElementChild.textContent = Math.hypot(x, y) < 0.5 ? "" : Math.abs(x) > Math.abs(y) ? across : along;
        label.style.left = `${found.width / 2 + place.x}px`;
        label.style.top = `${Math.max(0, found.height / 2 - place.y - found.top - 26)}px`;
      }
    };
    let frame = 0, gliding = false;
    const ask = () => {
      if (gliding) return; // it draws anyway
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(draw);
    };
    const halt = () => { gliding = false; cancelAnimationFrame(frame); };
    const glide = (target, seconds = still ? 0 : 0.55) => {
      const from = { ...state }, began = performance.now();
      const about = target.yaw ?? from.yaw;
      from.yaw = about + ((from.yaw - about + 540) % 360 + 360) % 360 - 180; // the short way round
      const move = (now) => {
        const share = seconds ? Math.min(1, Math.max(0, (now - began) / 1000 / seconds)) : 1;
        for (const key of Object.keys(target)) state[key] = mix(from[key], target[key], share * share * (3 - 2 * share));
        draw();
        gliding = share < 1;
        if (gliding) frame = requestAnimationFrame(move);
      };
      halt();
      gliding = true;
      frame = requestAnimationFrame(move);
    };
    // Of beside and above, the one that shows more of the chosen view.
    const arranged = (target) => {
      const scales = [0, 1].map((stack) => layout({ ...state, ...target, zoom: 1, stack }).scale);
      return { ...target, stack: Number(scales[1] > scales[0]) };
    };
    const keepIn = () => {
      state.zoom = Math.min(CLOSEST, Math.max(1, state.zoom));
      const reach = [canvas.clientWidth, canvas.clientHeight].map((size) => size * (state.zoom - 1) / 2);
      state.x = Math.min(reach[0], Math.max(-reach[0], state.x));
      state.y = Math.min(reach[1], Math.max(-reach[1], state.y));
    };

    // -------------------------------------------------------------- the vertex under the pointer

    const pick = ({ clientX, clientY }) => {
      const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width, pixel = new Uint8Array(4);
      const [x, y] = [(clientX - box.left) * ratio, (box.bottom - clientY) * ratio].map(Math.floor);
      gl.bindFramebuffer(gl.FRAMEBUFFER, picker);
      gl.viewport(-x, -y, canvas.width, canvas.height);
      paint(layout(), true);
      gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
      return pixel[2] ? { side: pixel[2] - 1, vertex: pixel[0] + 256 * pixel[1] } : null;
    };
    const worded = (code, { limits: [low, high], beyond, unit }) => {
      const step = (high - low) / 254, value = low + (code - 1) * step;
      const text = value.toFixed(Math.min(9, Math.max(0, -Math.floor(Math.log10(step))))).replace("-", "−");
      return `${text} ${unit}${code === 255 && beyond[1] ? " or more" : code === 1 && beyond[0] ? " or less" : ""}`;
    };
    const hint = byId("reading").textContent;
    const read = (at) => {
      const map = maps[choice.map], area = at ? sides[at.side].area[at.vertex] : 0;
      const code = at ? codes[at.side][at.vertex] : 0;
      byId("pointer").hidden = !code;
      byId("pointer").style.left = `${100 * (code - 1) / 254}%`;
      const where = at && `${area ? data.areas[area] : "medial wall"}, ${sides[at.side].name} hemisphere`;
      byId("reading").textContent = !at ? hint : !area ? where : `${where}: ${code ? worded(code, map) : "no value"}`;
      if (area !== choice.area) { choice.area = area; ask(); }
    };

    // -------------------------------------------------------------- what readers do

    const press = () => {
      for (const button of byId("viewer").querySelectorAll("button")) {
        const { view, side } = button.dataset;
        button.setAttribute("aria-pressed", view ? view === choice.view : side === choice.side);
      }
    };
    const note = () => {
      const parts = [maps[choice.map].name, choice.view || "lateral", choice.side].map(encodeURIComponent);
      history.replaceState(null, "", `#maps=${parts.join(",")}`);
    };
    // The chosen view, unless the reader turned away from it, as large as fits.
    const look = (seconds) => {
      const [yaw, pitch] = VIEWS[choice.view] ?? [state.yaw, state.pitch];
      const shape = choice.view === "flat" ? FLAT : choice.view ? Math.min(state.shape, 1) : state.shape;
      press();
      glide(arranged({ yaw, pitch, shape, zoom: 1, x: 0, y: 0 }), seconds);
    };
    const open = (number) => {
      choice.map = number;
      load();
      byId("map").value = number;
      byId("unit").textContent = maps[number].unit;
      byId("colours").className = `colours ${maps[number].palette}`;
      [...byId("ends").children].forEach((end, k) => { end.textContent = maps[number].ends[k]; });
      read(null);
      ask();
    };
    const fromAddress = () => {
      const wanted = /^#maps=(.*)$/.exec(location.hash);
      if (!wanted) return false;
      let name, view, side;
      try { [name, view, side] = wanted[1].split(",").map(decodeURIComponent); } catch { return false; } // a damaged address
      const number = maps.findIndex((map) => map.name === name);
      if (number >= 0) open(number);
      if (Object.hasOwn(SIDES, side ?? "")) choice.side = side;
      if (Object.hasOwn(VIEWS, view ?? "")) choice.view = view;
      look(0);
      byId("viewer").scrollIntoView();
      return true;
    };

    const turnBy = (dx, dy, side) => {
      state.yaw += (side ? -1 : 1) * dx;
      state.pitch = Math.min(90, Math.max(-90, state.pitch + dy));
      choice.view = "";
      press();
    };
    const fromMiddle = ({ clientX, clientY }) => {
      const { left, top, width, height } = canvas.getBoundingClientRect();
      return [clientX - left - width / 2, top + height / 2 - clientY];
    };
    const zoomBy = (factor, event) => {
      const [x, y] = fromMiddle(event), before = state.zoom;
      state.zoom = Math.min(CLOSEST, Math.max(1, before * factor));
      state.x = x + (state.x - x) * state.zoom / before;
      state.y = y + (state.y - y) * state.zoom / before;
    };
    const fingers = new Map();
    let grabbed = 0, travelled = 0;
    canvas.addEventListener("pointerdown", (event) => {
      halt();
      const [x, y] = fromMiddle(event), away = (place) => Math.hypot(x - place.x, y - place.y);
      grabbed = layout().places.reduce((a, b) => (away(b) < away(a) ? b : a)).side;
      fingers.set(event.pointerId, event);
      canvas.setPointerCapture(event.pointerId);
      travelled = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) {
        if (event.pointerType === "mouse") read(pick(event));
        return;
      }
      const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
      travelled += Math.hypot(dx, dy);
      if (fingers.size === 2) {
        const other = [...fingers.values()].find(({ pointerId }) => pointerId !== event.pointerId);
        const apart = ({ clientX, clientY }) => Math.hypot(clientX - other.clientX, clientY - other.clientY) || 1;
        const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
        zoomBy(apart(event) / apart(before), middle);
        state.x += dx / 2;
        state.y -= dy / 2;
      } else if (state.shape > 1.5) {
        state.x += dx;
        state.y -= dy;
      } else {
        turnBy(0.5 * dx, -0.5 * dy, grabbed);
      }
      fingers.set(event.pointerId, event);
      keepIn();
      ask();
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => {
      fingers.delete(event.pointerId);
      if (name === "pointerup" && travelled < 5) read(pick(event));
    });
    canvas.addEventListener("pointerleave", ({ pointerType }) => { if (pointerType === "mouse") read(null); });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return; // else the page scrolls on
      event.preventDefault();
      halt();
      zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), event);
      keepIn();
      ask();
    }, { passive: false });
    canvas.addEventListener("dblclick", () => look());
    canvas.addEventListener("keydown", (event) => {
      const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [0, 0];
      const factor = { "+": 1.25, "=": 1.25, "-": 0.8 }[event.key];
      if (!x && !y && !factor && event.key !== "0") return;
      event.preventDefault();
      halt();
      if (event.key === "0") look();
      else if (factor) state.zoom *= factor;
      else if (state.shape > 1.5) { state.x -= 40 * x; state.y -= 40 * y; }
      else turnBy(10 * x, 10 * y, SIDES[choice.side][0]);
      keepIn();
      ask();
    });

    byId("viewer").addEventListener("click", ({ target }) => {
      const { view, side } = target.dataset;
      if (!view && !side) return;
      choice.view = view ?? choice.view;
      choice.side = side ?? choice.side;
      look();
      note();
    });
    byId("map").addEventListener("change", () => { open(Number(byId("map").value)); note(); });
    byId("shape").addEventListener("input", () => {
      halt();
      state.shape = Number(byId("shape").value);
      choice.view = state.shape === FLAT ? "flat" : choice.view === "flat" ? "" : choice.view;
      press();
      ask();
    });
    byId("borders").addEventListener("change", ask);
    for (const button of document.querySelectorAll("#maps [data-map]")) {
      button.hidden = false;
      button.addEventListener("click", () => {
        open(Number(button.dataset.map));
        note();
        byId("viewer").scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
      });
    }
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => { prepare(); load(); ask(); });
    window.addEventListener("hashchange", fromAddress);

    prepare();
    byId("viewer").hidden = false;
    open(0);
    if (!fromAddress()) look(0);
    new ResizeObserver(() => { state.stack = arranged({}).stack; ask(); }).observe(canvas);
  };

  const refuse = (reason) => {
    console.warn("no turning cortex:", reason);
    byId("viewer").hidden = true;
    byId("no-cortex").hidden = false;
  };
  if (gl && window.DecompressionStream) start().catch(refuse);
  else refuse(gl ? "no DecompressionStream" : "no WebGL 2");
})();
