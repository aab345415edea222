// A static file server with byte ranges, and with faults on demand: what networks and careless hosts do.

import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = {
  ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css",
  ".json": "application/json", ".wasm": "application/wasm",
};

/** "bytes=10-19" of a file of `size` bytes as [first, last]; null where there is no such range. */
function range(header, size) {
  const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(header ?? "") ?? [];
  if (first === undefined || Number(first) >= size) return null;
  return [Number(first), last ? Math.min(Number(last), size - 1) : size - 1];
}

/** Sends part of a file with a fault of the body's. */
function send(response, path, [first, last], fault) {
  const length = last - first + 1;
  const stream = createReadStream(path, { start: first, end: last, highWaterMark: 16384 });
  let sent = 0;
  stream.on("data", (chunk) => {
    if (fault?.kind === "corrupt" && sent === 0) chunk[Math.min(100, chunk.length - 1)] ^= 0x40;
    if (fault?.kind === "drop" && sent + chunk.length > length / 2) {
      stream.destroy();
      response.write(chunk.subarray(0, Math.max(0, Math.floor(length / 2) - sent)), () => response.destroy());
      return;
    }
    sent += chunk.length;
    response.write(chunk);
  });
  stream.on("end", () => response.end());
}

/**
 * Serves `root` on a free port. `ranges: false` ignores ranges, as `python3 -m http.server` does. The value:
 * { url, faults, requests, close }. Push { match: RegExp, kind, times?, ms? } into `faults`; kinds: drop (half of the
 * body, then the connection ends), missing (404), short (the file without its last bytes, as if it had been cut off),
 * corrupt (one bit), delay (`ms` milliseconds before the answer). `times` is how often, default always.
 */
export async function serve(root, { ranges = true } = {}) {
  const faults = [];
  const requests = [];
  const server = createServer((request, response) => {
    const name = decodeURIComponent(new URL(request.url, "http://x").pathname);
    const path = join(root, normalize(name.endsWith("/") ? `${name}index.html` : name));
    const fault = faults.find(({ match, times }) => match.test(name) && times !== 0);
    if (fault?.times !== undefined) fault.times -= 1;
    requests.push({ name, range: request.headers.range ?? null, fault: fault?.kind ?? null });
    const answer = () => {
      let size;
      try {
        const found = statSync(path);
        if (!found.isFile() || fault?.kind === "missing") throw new Error("not there");
        size = found.size;
      } catch {
        response.writeHead(404, { "Content-Type": "text/plain" }).end("not found");
        return;
      }
      if (fault?.kind === "short") size = Math.max(1, size - 1000);
      const part = ranges ? range(request.headers.range, size) : null;
      if (ranges && request.headers.range && !part) {
        response.writeHead(416, { "Content-Range": `bytes */${size}` }).end();
        return;
      }
      const [first, last] = part ?? [0, size - 1];
      const headers = {
        "Content-Type": TYPES[extname(path)] ?? "application/octet-stream",
        "Content-Length": last - first + 1,
        "Cache-Control": "no-store",
        ...(ranges ? { "Accept-Ranges": "bytes" } : {}),
        ...(part ? { "Content-Range": `bytes ${first}-${last}/${size}` } : {}),
      };
      response.writeHead(part ? 206 : 200, headers);
      if (request.method === "HEAD" || size === 0) response.end();
      else send(response, path, [first, last], fault);
    };
    if (fault?.kind === "delay") setTimeout(answer, fault.ms);
    else answer();
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  // A test that failed before it closed its server must not keep the process.
  server.unref();
  const close = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  return { url: `http://localhost:${server.address().port}/`, faults, requests, close };
}
