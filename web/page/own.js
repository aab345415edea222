// A visitor's own files: what was dropped or chosen, what of it is a shard set, a model, text or a recipe, and the recipe
// that follows from it.

/** The folder that the worker keeps them in. */
export const FOLDER = "own";

/** Files of a drop, by path: folders are walked. What is dropped from another page has no entry. */
export async function dropped(transfer) {
  const items = [...transfer.items].filter(({ kind }) => kind === "file").map((item) => [item.webkitGetAsEntry?.(), item]);
  const files = chosen(items.flatMap(([entry, item]) => (entry ? [] : [item.getAsFile()])).filter(Boolean));
  const entries = items.map(([entry]) => entry).filter(Boolean);
  const walk = async (entry, prefix) => {
    if (entry.isFile) {
      files[prefix + entry.name] = await new Promise((resolve, reject) => entry.file(resolve, reject));
      return;
    }
    const reader = entry.createReader();
    // A reader tells of a hundred at a time.
    for (;;) {
      const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (batch.length === 0) return;
      for (const child of batch) await walk(child, `${prefix}${entry.name}/`);
    }
  };
  for (const entry of entries) await walk(entry, "");
  return files;
}

/** Files of an input, by path. */
export function chosen(list) {
  return Object.fromEntries([...list].map((file) => [file.webkitRelativePath || file.name, file]));
}

const parent = (path) => path.slice(0, Math.max(0, path.lastIndexOf("/")));
const inside = (folder) => (folder === "" ? FOLDER : `${FOLDER}/${folder}`);
const parse = async (file, path) => {
  try {
    return JSON.parse(await file.text());
  } catch (error) {
    throw Object.assign(new Error(`${path} is not JSON: ${error.message}`), { kind: "input" });
  }
};

/** What there is among the files: { recipe, shards, manifest, models, texts }, with paths as recipes name them. */
async function sort(files) {
  const found = { recipe: null, recipeFolder: "", shards: null, manifest: null, models: [], texts: [] };
  for (const [path, file] of Object.entries(files)) {
    const name = path.slice(path.lastIndexOf("/") + 1);
    const folder = parent(path);
    if (name === "recipe.json") {
      found.recipe = await parse(file, path);
    } else if (name === "manifest.json") {
      const manifest = await parse(file, path);
      if (manifest.format === "potstill-shards") Object.assign(found, { manifest, shards: inside(folder) });
    } else if (name === "config.json") {
      const weights = Object.keys(files).some((other) => parent(other) === folder && other.endsWith(".safetensors"));
      const config = await parse(file, path);
      if (weights && config.model_type) found.models.push({ path: inside(folder), folder });
    } else if (/\.(txt|jsonl)$/.test(name)) {
      found.texts.push(`${FOLDER}/${path}`);
    }
  }
  return found;
}

/** A small student of the teacher's vocabulary, where none was given. */
const student = (manifest, tokenizer) => ({
  config: {
    model_type: "llama", hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2,
    intermediate_size: 160, vocab_size: manifest.spec.vocab_size, max_position_embeddings: manifest.spec.context_length,
    rms_norm_eps: 1e-5, rope_theta: 10000, tie_word_embeddings: true, hidden_act: "silu", initializer_range: 0.08,
  },
  tokenizer,
});

function missing(found) {
  if (!found.shards && found.models.length === 0) return "a shard set (manifest.json with its .shard files) or a model folder";
  if (found.texts.length === 0) return "the text: .txt or .jsonl files, for shards those that they were captured from";
  if (found.models.length === 0) return "a model folder: the teacher’s, whose tokenizer and words are needed, or the student’s";
  return null;
}

/**
 * What to do with the files: { recipe, teacher, lines }, where `lines` tell the visitor what was found. Throws what is
 * missing.
 */
export async function understand(files) {
  const found = await sort(files);
  const lines = [];
  if (found.shards) {
    const { spec } = found.manifest;
    lines.push(`Shards of ${spec.teacher.name}: ${spec.rows} tokens in contexts of ${spec.context_length}`);
  }
  const teacher = found.models.find((model) => /teacher/i.test(model.folder)) ?? null;
  const own = found.models.find((model) => model !== teacher) ?? null;
  for (const { path } of found.models) lines.push(`Model: ${path.slice(FOLDER.length + 1) || "the folder itself"}`);
  if (found.texts.length > 0) lines.push(`Text: ${found.texts.length === 1 ? found.texts[0].slice(FOLDER.length + 1) : `${found.texts.length} files`}`);
  if (found.recipe) {
    lines.push(`Recipe: recipe.json; its paths begin at “${FOLDER}/”`);
    return { recipe: found.recipe, teacher: teacher?.path ?? null, lines };
  }
  const lacks = missing(found);
  if (lacks) throw Object.assign(new Error(`among these files is still missing: ${lacks}`), { kind: "input", lines });
  const recipe = {
    sequence_length: found.manifest?.spec.context_length ?? 128,
    model: own ? own.path : found.manifest ? student(found.manifest, teacher.path) : teacher.path,
    ...(found.shards ? { teacher: { kind: "shards", path: found.shards } } : {}),
    dataset: { train: found.texts, holdout: { sequences: 16 } },
    training_args: {
      per_device_train_batch_size: 4, learning_rate: own ? 5e-4 : 5e-3, lr_scheduler_type: "cosine", warmup_ratio: 0.05,
      max_steps: 400, eval_steps: 50,
    },
  };
  return { recipe, teacher: teacher?.path ?? null, lines };
}
