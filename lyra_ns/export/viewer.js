// The page: reads the embedded scene, draws when something has moved, reports to window.lyra.

const MAX_PIXEL_RATIO = 2;

function embedded(id) {
  return document.getElementById(id).textContent.trim();
}

function embeddedWords() {
  const text = atob(embedded("splats"));
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Uint32Array(bytes.buffer);
}

function showProblem(sentence) {
  window.lyra.error = sentence;
  const problem = document.getElementById("problem");
  problem.textContent = sentence;
  problem.hidden = false;
}

function start() {
  const canvas = document.querySelector("canvas");
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false, powerPreference: "high-performance" });
  if (!gl) {
    showProblem("This view needs WebGL 2: open it in a current Chrome, Edge, Firefox or Safari with hardware acceleration switched on.");
    return;
  }
  const scene = JSON.parse(embedded("scene"));
  const camera = new OrbitCamera(scene);
  let wanted = false, lastTime = null, swayStart = null, touched = false;
  const isStill = location.hash === "#still" || matchMedia("(prefers-reduced-motion: reduce)").matches;

  const wake = () => {
    if (wanted) return;
    wanted = true;
    requestAnimationFrame(frame);
  };
  const splats = new SplatRenderer(gl, embeddedWords(), scene, wake);
  window.lyra.numSplats = splats.count;

  const frame = (time) => {
    wanted = false;
    const seconds = lastTime === null ? 0 : Math.min(0.1, (time - lastTime) / 1000);
    lastTime = time;
    const isSwaying = !touched && !isStill && window.lyra.ready;
    if (isSwaying) camera.sway((time - (swayStart ??= time)) / 1000);
    const isMoving = camera.step(seconds);
    const view = camera.view();
    splats.sortFor(view);
    splats.draw(view, camera.intrinsics(canvas.width, canvas.height), camera.enlargement(canvas.width, canvas.height));
    if (splats.sortedRow && !splats.sorting && !window.lyra.ready) {
      window.lyra.ready = true;
      canvas.classList.add("shown");
    }
    if (isMoving || isSwaying || (window.lyra.ready && !touched && !isStill)) wake();
    else lastTime = null;
  };

  const fit = () => {
    const ratio = Math.min(window.devicePixelRatio || 1, MAX_PIXEL_RATIO);
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    wake();
  };
  connectControls(canvas, camera, () => { touched = true; wake(); });
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => location.reload());
  new ResizeObserver(fit).observe(canvas);
  fit();
}

window.lyra = { ready: false, error: null, numSplats: 0 };
window.addEventListener("error", (event) => showProblem(`This view could not be drawn: ${event.message}`));
try {
  start();
} catch (error) {
  showProblem(error.message);
}
