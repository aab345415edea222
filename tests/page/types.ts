// Compiled, never run: the types of the package are those that its README's code needs, and refuse what is wrong.

import { connect, PotstillError, type Client, type MergeConfig, type Recipe, type StepReport, type TrainerProxy } from "potstill/client";
import init, { createTrainer, type Trainer, type TrainerEvent } from "potstill";

const recipe: Recipe = {
  sequence_length: 128,
  model: { layers_of: "teacher", layers: [0, 3] },
  teacher: { kind: "shards", path: "shards" },
  dataset: { train: "text.jsonl", holdout: { sequences: 32 } },
};

export async function onThePage(): Promise<Blob> {
  const potstill: Client = await connect();
  const heard: TrainerEvent[] = [];
  const stop = new AbortController();
  const trainer: TrainerProxy = await potstill.createTrainer(recipe, { name: "mine", onEvent: (event) => heard.push(event) });
  try {
    const reports: StepReport[] = await trainer.step(10, stop.signal);
    const loss: number | undefined = reports.at(-1)?.losses["kl"];
    const found = await trainer.evaluate();
    const text: string = await trainer.generate(`${loss} ${found?.kld}`, { temperature: 0.5, onText: (text) => text.length });
    // @ts-expect-error: no such format
    await trainer.save("gguf");
    // @ts-expect-error: readonly
    trainer.stepsDone = text.length;
  } catch (error) {
    if (error instanceof PotstillError && error.kind === "device-lost") console.log(error.message);
    // @ts-expect-error: no such kind
    if (error instanceof PotstillError && error.kind === "misfortune") console.log(error.message);
  }
  const model = await potstill.openModel("teacher", "cpu");
  const logits: Float32Array = await model.logits("Once");
  await model.free();
  const config: MergeConfig = { merge_method: "slerp", base_model: "a", models: [{ model: "b" }], parameters: { t: 0.4 } };
  const merged: Blob = await potstill.mergeModels(config, { a: "a/", b: { "config.json": new Blob() } }, { device: "gpu" });
  // @ts-expect-error: a model is an address or files
  await potstill.mergeModels([config], { a: 1 }, { folder: `${merged.size}` });
  potstill.close();
  console.log(logits.length);
  return trainer.save("zip");
}

export async function inAWorker(): Promise<number> {
  await init();
  const trainer: Trainer = await createTrainer(recipe, { baseUrl: "https://example.org/" });
  const [report] = await trainer.step(1);
  trainer.free();
  return report?.loss ?? Number.NaN;
}
