// The camera: it orbits a pivot on the reference camera's axis. OpenCV frame: x right, y down, z forward.
// Matrices are rows of three numbers.

const PITCH_LIMIT = 1.4; // radians; beyond it the horizon would turn over
const SETTLE_SECONDS = 0.09; // how long a movement takes to glide to its goal
const KEY_STEP = 0.06; // radians, or share of the distance, per key press

function rotation(axis, angle) {
  const c = Math.cos(angle), s = Math.sin(angle);
  return axis === "x" ? [[1, 0, 0], [0, c, -s], [0, s, c]] : [[c, 0, s], [0, 1, 0], [-s, 0, c]];
}

function multiply(a, b) {
  return a.map((row) => [0, 1, 2].map((k) => row[0] * b[0][k] + row[1] * b[1][k] + row[2] * b[2][k]));
}

function apply(matrix, v) {
  return matrix.map((row) => row[0] * v[0] + row[1] * v[1] + row[2] * v[2]);
}

class OrbitCamera {
  constructor(scene) {
    this.scene = scene;
    this.reset();
    this.now = structuredClone(this.goal);
  }

  reset() {
    const { rotation: axes, centre, depth } = this.scene;
    this.goal = { yaw: 0, pitch: 0, distance: depth, pivot: centre.map((c, k) => c + depth * axes[k][2]) };
  }

  orbit(yaw, pitch) {
    this.goal.yaw += yaw;
    this.goal.pitch = Math.max(-PITCH_LIMIT, Math.min(PITCH_LIMIT, this.goal.pitch + pitch));
  }

  zoom(factor) {
    const { depth } = this.scene;
    this.goal.distance = Math.max(0.02 * depth, Math.min(30 * depth, this.goal.distance * factor));
  }

  // Right and down are shares of the distance to the pivot.
  pan(right, down) {
    const axes = this.axes(this.goal);
    const { distance, pivot } = this.goal;
    this.goal.pivot = pivot.map((p, k) => p + distance * (axes[k][0] * right + axes[k][1] * down));
  }

  // A slow loop around the reference view, for as long as nobody has touched anything.
  sway(seconds) {
    const phase = (seconds * 2 * Math.PI) / 9;
    this.goal.yaw = this.scene.sway * Math.sin(phase);
    this.goal.pitch = 0.5 * this.scene.sway * (1 - Math.cos(phase));
  }

  // Glide towards the goal; false once there.
  step(seconds) {
    const share = 1 - Math.exp(-seconds / SETTLE_SECONDS);
    const { now, goal } = this;
    let moved = 0;
    for (const key of ["yaw", "pitch", "distance"]) {
      moved = Math.max(moved, Math.abs(goal[key] - now[key]) / (key === "distance" ? goal.distance : 1));
      now[key] += share * (goal[key] - now[key]);
    }
    now.pivot = now.pivot.map((p, k) => {
      moved = Math.max(moved, Math.abs(goal.pivot[k] - p) / goal.distance);
      return p + share * (goal.pivot[k] - p);
    });
    return moved > 1e-5;
  }

  // Camera-to-world rotation of a state.
  axes(state) {
    return multiply(this.scene.rotation, multiply(rotation("y", state.yaw), rotation("x", -state.pitch)));
  }

  // World-to-camera rotation (rows) and translation of where the camera is now.
  view() {
    const axes = this.axes(this.now);
    const inverse = axes[0].map((_, column) => axes.map((row) => row[column]));
    const turned = apply(inverse, this.now.pivot);
    return { rotation: inverse, translation: [-turned[0], -turned[1], this.now.distance - turned[2]] };
  }

  // Pixels of the canvas for each pixel of the reference image, which is shown whole.
  enlargement(width, height) {
    return Math.min(width / this.scene.width, height / this.scene.height);
  }

  // fx, fy, cx, cy in pixels of the canvas.
  intrinsics(width, height) {
    const { intrinsics, width: imageWidth, height: imageHeight } = this.scene;
    const scale = this.enlargement(width, height);
    const [fx, fy, cx, cy] = intrinsics;
    return [
      fx * scale, fy * scale,
      (cx - imageWidth / 2) * scale + width / 2, (cy - imageHeight / 2) * scale + height / 2,
    ];
  }
}

// Connect mouse, touch and keys; `touched` is called at every interaction.
function connectControls(canvas, camera, touched) {
  const pointers = new Map();
  const spread = () => {
    const [a, b] = [...pointers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, size: Math.hypot(a.x - b.x, a.y - b.y) };
  };
  const shareOfView = (pixels) => pixels / (camera.intrinsics(canvas.clientWidth, canvas.clientHeight)[0] || 1);

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    canvas.classList.add("dragged");
    touched();
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = pointers.size === 2 ? spread() : null;
    const [dx, dy] = [event.clientX - last.x, event.clientY - last.y];
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (before) {
      const after = spread();
      camera.pan(-shareOfView(after.x - before.x), -shareOfView(after.y - before.y));
      if (after.size > 0) camera.zoom(before.size / after.size);
    } else if (event.shiftKey || event.buttons & 6) {
      camera.pan(-shareOfView(dx), -shareOfView(dy));
    } else if (pointers.size === 1) {
      camera.orbit((3 * dx) / canvas.clientWidth, (2 * dy) / canvas.clientHeight);
    }
    touched();
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      if (pointers.size === 0) canvas.classList.remove("dragged");
    });
  }
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaY * [1, 30, 400][event.deltaMode];
    camera.zoom(Math.exp(0.0012 * Math.max(-400, Math.min(400, pixels))));
    touched();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => { camera.reset(); touched(); });

  const keys = {
    ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1],
  };
  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = keys[event.key];
    if (arrow && event.shiftKey) camera.pan(-KEY_STEP * arrow[0], -KEY_STEP * arrow[1]);
    else if (arrow) camera.orbit(KEY_STEP * arrow[0], KEY_STEP * arrow[1]);
    else if (event.key === "+" || event.key === "=") camera.zoom(1 - KEY_STEP);
    else if (event.key === "-") camera.zoom(1 + KEY_STEP);
    else if (event.key === "r" || event.key === "R") camera.reset();
    else return;
    event.preventDefault();
    touched();
  });
}
