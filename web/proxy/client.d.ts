// The surface of potstill.d.ts as client.js serves it: the same names, every function and method a promise.

import type {
  DeviceChoice, DeviceInfo, ErrorKind, Evaluation, GenerateOptions, MergeConfig, MergeOptions, OpenOptions, Recipe,
  ShardSetInfo, StepReport, TrainerInfo, TrainerOptions,
} from "./potstill.js";

export type * from "./potstill.js";

/** What the module, its worker or the way there reports. */
export class PotstillError extends Error {
  readonly name: "PotstillError";
  readonly kind: ErrorKind;
  constructor(kind: ErrorKind, message: string);
}

/** A model in the worker. Its properties do not change. */
export interface ModelProxy {
  readonly device: DeviceInfo;
  readonly parameters: number;
  generate(prompt: string, options?: GenerateOptions): Promise<string>;
  /** Of the token after `prompt`, one for each of the vocabulary. */
  logits(prompt: string): Promise<Float32Array>;
  /** Gives its memory back; no other call is possible afterwards. */
  free(): Promise<void>;
}

/** A trainer in the worker. Its properties are as they were when the last call was answered. */
export interface TrainerProxy {
  readonly info: TrainerInfo;
  readonly stepsDone: number;
  readonly totalSteps: number;
  readonly paused: boolean;
  /** Takes up to `count` steps (default 1) and tells of each; fewer at the end, after pause(), or when `signal` fires. */
  step(count?: number, signal?: AbortSignal): Promise<StepReport[]>;
  /** On the held-out text; null where the recipe holds nothing out. */
  evaluate(): Promise<Evaluation | null>;
  generate(prompt: string, options?: GenerateOptions): Promise<string>;
  /** Saves now what a later session resumes from. */
  checkpoint(): Promise<void>;
  /** Ends the running step() after the step in flight, saves a checkpoint, and holds further ones back. */
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** The student: the weights alone, or (`zip`) the whole folder that transformers loads. */
  save(format?: "safetensors" | "zip"): Promise<Blob>;
  /** For tests: destroys the GPU device as a driver's crash would. */
  loseDevice(): Promise<void>;
  /** Gives its memory back; no other call is possible afterwards. */
  free(): Promise<void>;
}

/** The module in its worker. */
export interface Client {
  putFiles(folder: string, files: { [path: string]: Blob }): Promise<void>;
  removeFiles(folder: string): Promise<void>;
  deviceInfo(choice?: DeviceChoice): Promise<DeviceInfo>;
  openShards(url: string, options?: OpenOptions): Promise<ShardSetInfo>;
  openModel(source: string | { [path: string]: Blob }, device?: DeviceChoice, options?: OpenOptions): Promise<ModelProxy>;
  createTrainer(recipe: Recipe, options?: TrainerOptions): Promise<TrainerProxy>;
  /**
   * Several models become one. `models` says what the configuration's names stand for: an address, a folder of `putFiles`,
   * or the files of a folder by their paths; a name that is not there is an address itself.
   */
  mergeModels(
    config: MergeConfig | MergeConfig[] | string,
    models?: { [name: string]: string | { [path: string]: Blob } },
    options?: MergeOptions,
  ): Promise<Blob>;
  storage(): Promise<{
    usedBytes: number; quotaBytes: number; persisted: boolean; checkpoints: string[]; cachedBytes: number;
  }>;
  clearStorage(what?: "cache" | "checkpoints" | "all"): Promise<void>;
  /** Ends the worker with everything in it; calls under way fail with kind "cancelled". */
  close(): void;
}

/** Starts the worker (`workerUrl`: where worker.js lies, beside this file unless told). */
export function connect(options?: { workerUrl?: string | URL }): Promise<Client>;
