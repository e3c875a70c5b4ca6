// The splats: a texture of packed Gaussians, drawn back to front as quads that cover their projection.

const TEXTURE_WIDTH = 2048; // texels; a Gaussian takes two
// Square pixels by which renderers widen splats on the image. Scenes are made for it at their own size: in a larger
// view it grows along, or thin splats would show as strokes with gaps between them.
const BLUR = 0.3;

const VERTEX_SHADER = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D splats;
uniform mat3 worldToCamera;
uniform vec3 translation;
uniform vec4 intrinsics;
uniform vec2 viewport;
uniform vec2 logScale; // smallest, step
uniform float blur; // square pixels that every splat is widened by on the image
uniform bool alongRay;
in uint index;
flat out vec4 colour;
flat out vec3 missByX, missByY, path, pathByX, pathByY;
out vec2 offset; // pixels from the centre

vec3 tens(uint bits) {
  return vec3(uvec3(bits, bits >> 10, bits >> 20) & 1023u);
}

// Rotation matrix from the three smaller parts of a unit quaternion; the top bits tell which is left out.
mat3 rotationFrom(uint bits) {
  vec3 small = (tens(bits) / 1023.0 * 2.0 - 1.0) * 0.70710678;
  float large = sqrt(max(0.0, 1.0 - dot(small, small)));
  uint left = bits >> 30;
  vec4 q = left == 0u ? vec4(large, small)
         : left == 1u ? vec4(small.x, large, small.yz)
         : left == 2u ? vec4(small.xy, large, small.z) : vec4(small, large);
  float w = q.x, x = q.y, y = q.z, z = q.w;
  return mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

// Covariance on the image, in square pixels: xx, xy, yy. The bounds keep splats beside the image from blowing up.
vec3 projectedCovariance(vec3 p, mat3 axes, vec3 scale) {
  vec2 focal = intrinsics.xy, margin = 0.15 * viewport / focal;
  vec2 low = -intrinsics.zw / focal - margin, high = (viewport - intrinsics.zw) / focal + margin;
  vec2 slope = clamp(p.xy / p.z, low, high);
  mat3 rows = transpose(axes); // rows[k]: how much each axis, by its scale, points along x, y, z
  vec3 x = (rows[0] - slope.x * rows[2]) * scale * focal.x / p.z;
  vec3 y = (rows[1] - slope.y * rows[2]) * scale * focal.y / p.z;
  return vec3(dot(x, x) + blur, dot(x, y), dot(y, y) + blur);
}

// A pixel sees exp(-|miss|^2 / (2 |path|^2)), both vectors linear in the pixel's offset from the centre.
// On the image: the projected covariance, widened by the blur.
void respondOnImage(vec3 covariance) {
  float determinant = covariance.x * covariance.z - covariance.y * covariance.y;
  float a = sqrt(covariance.z / max(determinant, blur * blur));
  missByX = vec3(a, 0.0, 0.0);
  missByY = vec3(-a * covariance.y / covariance.z, inversesqrt(covariance.z), 0.0);
  path = vec3(1.0, 0.0, 0.0);
  pathByX = pathByY = vec3(0.0);
}

// Along the ray r, past the centre p: S R^T (r x p) over cof(S) R^T r, in units of the largest scale.
void respondAlongRay(vec3 p, mat3 axes, vec3 scale) {
  float largest = max(scale.x, max(scale.y, scale.z));
  scale = max(scale / largest, 1e-5);
  vec3 faces = scale.yzx * scale.zxy, ray = p / p.z;
  mat3 toAxes = transpose(axes);
  vec2 pixel = 1.0 / intrinsics.xy, share = pixel * p.z / largest;
  missByX = scale * (toAxes * vec3(0.0, -1.0, ray.y)) * share.x;
  missByY = scale * (toAxes * vec3(1.0, 0.0, -ray.x)) * share.y;
  path = faces * (toAxes * ray);
  pathByX = faces * toAxes[0] * pixel.x;
  pathByY = faces * toAxes[1] * pixel.y;
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  ivec2 texel = ivec2(int(index % ${TEXTURE_WIDTH / 2}u) * 2, int(index / ${TEXTURE_WIDTH / 2}u));
  uvec3 packed = texelFetch(splats, texel + ivec2(1, 0), 0).rgb;
  vec3 p = worldToCamera * uintBitsToFloat(texelFetch(splats, texel, 0).rgb) + translation;
  colour = vec4(uvec4(packed.x, packed.x >> 8, packed.x >> 16, packed.x >> 24) & 255u) / 255.0;
  if (p.z < 0.1 || colour.a < 1.0 / 255.0) return;

  mat3 axes = worldToCamera * rotationFrom(packed.z);
  vec3 scale = exp(logScale.x + logScale.y * tens(packed.y));
  vec3 covariance = projectedCovariance(p, axes, scale);
  if (alongRay) respondAlongRay(p, axes, scale);
  else respondOnImage(covariance);

  float middle = 0.5 * (covariance.x + covariance.z);
  float gap = length(vec2(0.5 * (covariance.x - covariance.z), covariance.y));
  vec2 spread = sqrt(vec2(middle + gap, max(middle - gap, 0.05)));
  vec2 along = gap < 1e-6 ? vec2(1.0, 0.0) : vec2(covariance.y, middle + gap - covariance.x);
  along = dot(along, along) < 1e-12 ? vec2(1.0, 0.0) : normalize(along);

  float reach = sqrt(2.0 * log(max(1.0001, 255.0 * colour.a)));
  vec2 corner = (vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0) * reach * min(spread, 2048.0);
  offset = corner.x * along + corner.y * vec2(-along.y, along.x);
  vec2 pixel = intrinsics.xy * p.xy / p.z + intrinsics.zw + offset;
  gl_Position = vec4(pixel / viewport * vec2(2.0, -2.0) + vec2(-1.0, 1.0), 0.0, 1.0);
}`;

const FRAGMENT_SHADER = `#version 300 es
precision highp float;
flat in vec4 colour;
flat in vec3 missByX, missByY, path, pathByX, pathByY;
in vec2 offset;
out vec4 result;
void main() {
  vec3 miss = offset.x * missByX + offset.y * missByY;
  vec3 across = path + offset.x * pathByX + offset.y * pathByY;
  float alpha = min(0.999, colour.a * exp(-0.5 * dot(miss, miss) / dot(across, across)));
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(colour.rgb * alpha, alpha);
}`;

// Runs in a worker: indices of the splats in front of the camera, farthest first, by a counting sort.
// The bits of a positive float grow with it, so they serve as keys of even relative precision.
function sortWorker() {
  let centres, keys;
  const depth = new Float32Array(1), bits = new Uint32Array(depth.buffer);
  const sort = ([x, y, z, shift]) => {
    let low = 0xffffffff, high = 0, visible = 0;
    for (let i = 0; i < keys.length; i++) {
      depth[0] = x * centres[3 * i] + y * centres[3 * i + 1] + z * centres[3 * i + 2] + shift;
      const key = depth[0] > 0.01 ? bits[0] >>> 10 : 0;
      keys[i] = key;
      if (key === 0) continue;
      visible++;
      if (key < low) low = key;
      if (key > high) high = key;
    }
    const starts = new Uint32Array(visible ? high - low + 2 : 1);
    for (const key of keys) if (key) starts[high - key + 1]++;
    for (let k = 1; k < starts.length; k++) starts[k] += starts[k - 1];
    const order = new Uint32Array(visible);
    for (let i = 0; i < keys.length; i++) if (keys[i]) order[starts[high - keys[i]]++] = i;
    return order;
  };
  self.onmessage = ({ data }) => {
    if (data.centres) {
      centres = data.centres;
      keys = new Uint32Array(centres.length / 3);
      return;
    }
    const order = sort(data.row);
    self.postMessage(order, [order.buffer]);
  };
}

function compile(gl, kind, source) {
  const shader = gl.createShader(kind);
  gl.shaderSource(shader, source);
  gl.compileShader(shader);
  if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) {
    throw new Error("The graphics driver refused a shader: " + gl.getShaderInfoLog(shader));
  }
  return shader;
}

class SplatRenderer {
  // `words` holds six 32-bit words for each Gaussian; `sorted` is called when a new order has arrived.
  constructor(gl, words, { logScale, alongRay }, sorted) {
    this.gl = gl;
    this.count = words.length / 6;
    this.visible = 0;
    this.program = this.link();
    this.uniforms = Object.fromEntries(
      ["worldToCamera", "translation", "intrinsics", "viewport", "logScale", "blur", "alongRay"].map(
        (name) => [name, gl.getUniformLocation(this.program, name)]));
    this.uploadTexture(words);
    this.order = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, this.order);
    const location = gl.getAttribLocation(this.program, "index");
    gl.enableVertexAttribArray(location);
    gl.vertexAttribIPointer(location, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(location, 1);
    gl.uniform2fv(this.uniforms.logScale, logScale);
    gl.uniform1i(this.uniforms.alongRay, alongRay);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.clearColor(1, 1, 1, 1);
    this.startSorting(words, sorted);
  }

  link() {
    const { gl } = this;
    const program = gl.createProgram();
    gl.attachShader(program, compile(gl, gl.VERTEX_SHADER, VERTEX_SHADER));
    gl.attachShader(program, compile(gl, gl.FRAGMENT_SHADER, FRAGMENT_SHADER));
    gl.linkProgram(program);
    gl.useProgram(program);
    return program;
  }

  uploadTexture(words) {
    const { gl } = this;
    const rows = Math.ceil((2 * this.count) / TEXTURE_WIDTH);
    if (rows > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
      throw new Error(`This graphics card cannot hold ${this.count} splats: export the scene with fewer of them.`);
    }
    const padded = new Uint32Array(rows * TEXTURE_WIDTH * 3);
    padded.set(words);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB32UI, TEXTURE_WIDTH, rows, 0, gl.RGB_INTEGER, gl.UNSIGNED_INT, padded);
  }

  startSorting(words, sorted) {
    const floats = new Float32Array(words.buffer, words.byteOffset, words.length);
    const centres = new Float32Array(3 * this.count);
    for (let i = 0; i < this.count; i++) centres.set(floats.subarray(6 * i, 6 * i + 3), 3 * i);
    const source = new Blob([`(${sortWorker})()`], { type: "text/javascript" });
    this.worker = new Worker(URL.createObjectURL(source));
    this.worker.onmessage = ({ data }) => {
      const { gl } = this;
      this.sorting = false;
      this.visible = data.length;
      gl.bindBuffer(gl.ARRAY_BUFFER, this.order);
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
      sorted();
    };
    this.worker.postMessage({ centres }, [centres.buffer]);
  }

  // Ask for the order of this view, unless it is at hand or the last request is still running.
  sortFor({ rotation: rows, translation }) {
    const row = [...rows[2], translation[2]];
    if (this.sorting || (this.sortedRow && row.every((value, k) => value === this.sortedRow[k]))) return;
    this.sorting = true;
    this.sortedRow = row;
    this.worker.postMessage({ row });
  }

  // `scale`: pixels of the canvas for each pixel of the image that the scene was made for.
  draw({ rotation: rows, translation }, intrinsics, scale) {
    const { gl, uniforms } = this;
    const { width, height } = gl.canvas;
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniformMatrix3fv(uniforms.worldToCamera, true, rows.flat());
    gl.uniform3fv(uniforms.translation, translation);
    gl.uniform4fv(uniforms.intrinsics, intrinsics);
    gl.uniform2f(uniforms.viewport, width, height);
    gl.uniform1f(uniforms.blur, BLUR * Math.max(1, scale) ** 2);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.visible);
  }
}
