// The package as TypeScript sees it, by its own `exports`; and what npm would publish.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { ROOT } from "./browser.mjs";

const PACKAGE = `${ROOT}pkg`;
let scratch;

before(() => (scratch = mkdtempSync(join(tmpdir(), "potstill-types-"))));
after(() => rmSync(scratch, { recursive: true }));

test("types fit the code of the README and refuse mistakes", () => {
  mkdirSync(join(scratch, "node_modules"));
  symlinkSync(PACKAGE, join(scratch, "node_modules/potstill"));
  cpSync(`${ROOT}tests/page/types.ts`, join(scratch, "types.ts"));
  const flags = ["--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom,esnext.disposable", "types.ts"];
  const { status, stdout } = spawnSync("node", [`${ROOT}web/node_modules/typescript/bin/tsc`, ...flags], { cwd: scratch, encoding: "utf8" });
  assert.equal(status, 0, stdout);
});

test("no type is `any`", () => {
  for (const name of ["client.d.ts", "potstill.d.ts"]) {
    const code = readFileSync(join(PACKAGE, name), "utf8").replaceAll(/\/\*[\s\S]*?\*\/|\/\/.*$/gm, "");
    assert.deepEqual(code.match(/.*\bany\b.*/g) ?? [], [], name);
  }
});

test("npm would publish everything that `exports` names", () => {
  const [{ files }] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: PACKAGE, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
  const names = new Set(files.map(({ path }) => path));
  const { exports, types, main } = JSON.parse(readFileSync(join(PACKAGE, "package.json"), "utf8"));
  const wanted = [main, types, "README.md", ...Object.values(exports).flatMap((to) => (typeof to === "string" ? [to] : Object.values(to)))];
  for (const path of wanted) assert.ok(names.has(path.replace("./", "")), path);
});
