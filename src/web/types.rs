//! The TypeScript types of what crosses the border as plain objects. Classes and functions get theirs from their own
//! signatures.

use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = r#"
/** How far a download, or a merge, has come. */
export interface Progress {
  /** The address; `weights` while a merge writes. */
  what: string;
  /** Bytes that are here, or written. */
  done: number;
  /** Bytes of the whole file, where the server or a manifest tells. */
  total: number | null;
}

/** How to stop a call and hear of it. */
export interface OpenOptions {
  /** Ends the call with an error of the kind `cancelled`. */
  signal?: AbortSignal;
  onProgress?: (progress: Progress) => void;
}

/** What went wrong, in a word. */
export type ErrorKind =
  | "input" | "network" | "damaged" | "quota" | "no-gpu" | "device" | "device-lost" | "not-finite" | "cancelled" | "internal";

/** What every call rejects with. The message says where, what was expected and found, and what to do. */
export interface PotstillError extends Error {
  readonly name: "PotstillError";
  readonly kind: ErrorKind;
}

/** `auto` takes a GPU but no software driver, else the CPU. */
export type DeviceChoice = "auto" | "gpu" | "cpu";

export interface DeviceInfo {
  kind: "gpu" | "cpu";
  name: string;
  /** Whether it is a GPU in name only. */
  software: boolean;
  /** Why this one. */
  reason: string;
  /** The largest single buffer. */
  maxBufferBytes: number;
}

/**
 * A recipe: the keys of the YAML recipes. Wherever one names a file or folder, an address may stand, or a folder that
 * `putFiles` filled. `output_path` may be left out.
 */
export type Recipe = { [key: string]: RecipeValue };
export type RecipeValue = string | number | boolean | null | RecipeValue[] | { [key: string]: RecipeValue };

/** The scalars of one optimiser step. */
export interface StepReport {
  /** From 1. */
  step: number;
  /** The weighted sum of the losses. */
  loss: number;
  /** Each loss, unweighted, averaged over the step's valid tokens. */
  losses: { [name: string]: number };
  learningRate: number;
  /** Before clipping. */
  gradNorm: number;
  /** Tokens that went through the network. */
  tokens: number;
  /** Tokens that counted. */
  validTokens: number;
  /** What the step took. */
  seconds: number;
}

/** Held-out numbers. */
export interface Evaluation {
  step: number;
  /** Mean negative log-likelihood of the true next token, in nats. */
  nll: number;
  /** Mean divergence from the teacher, in nats, where one is measured against. */
  kld?: number;
  /** Share of tokens whose likeliest continuation is the teacher's. */
  agreement?: number;
  tokens: number;
}

export interface GenerateOptions {
  /** Default 64. */
  maxTokens?: number;
  /** 0, the default, takes the likeliest token. */
  temperature?: number;
  topK?: number;
  topP?: number;
  seed?: number;
  signal?: AbortSignal;
  /** Hears the text so far after each token. */
  onText?: (text: string) => void;
}

/** Planned bytes by purpose. */
export interface MemoryPlan {
  parameters: number;
  optimiser: number;
  teacher: number;
  activations: number;
  inputs: number;
  total: number;
}

export interface ShardSetInfo {
  /** The model that was recorded. */
  teacher: string;
  /** What a row holds. */
  kind: string;
  tokens: number;
  vocabulary: number;
  shards: number;
  bytes: number;
}

export interface TrainerInfo {
  device: DeviceInfo;
  memory: MemoryPlan;
  parameters: number;
  /** Tokens to learn from in one epoch. */
  tokens: number;
  heldOutTokens: number;
  totalSteps: number;
  /** What the user should know before the run. */
  warnings: string[];
}

export type TrainerEvent =
  /** The GPU went; the run goes on from `step` on a new device. */
  | { type: "device-lost"; step: number }
  /** A stored checkpoint was found, and the run goes on from it. */
  | { type: "resumed"; step: number }
  | { type: "retry"; url: string; attempt: number; reason: string }
  /** A file or checkpoint could not be kept; it is in memory only. */
  | { type: "not-cached"; reason: string };

export interface TrainerOptions extends OpenOptions {
  /**
   * A name in the browser's private storage, where checkpoints are kept: the same name with the same recipe goes on
   * where it stopped. Without one nothing outlives the worker.
   */
  name?: string;
  /** Where relative addresses of the recipe begin; default the worker's own address. */
  baseUrl?: string;
  onEvent?: (event: TrainerEvent) => void;
}

/** The keys of mergekit's YAML. */
export type MergeConfig = { [key: string]: RecipeValue };

export interface MergeOptions extends OpenOptions {
  /** What does weighted sums, votes and dot products; default `cpu`, which needs no copy. */
  device?: DeviceChoice;
  /** Of the random masks; default 42. */
  seed?: number;
  /** Where relative addresses begin; default the worker's own address. */
  baseUrl?: string;
  /** What comes out; default `zip`. */
  format?: "safetensors" | "zip";
  /** Keeps the result in the worker's memory too, as a folder of this name, which recipes and `openModel` may name. */
  folder?: string;
}

export interface StorageInfo {
  /** The browser's estimate of all that this origin stores. */
  usedBytes: number;
  quotaBytes: number;
  /** Whole downloads that are kept. */
  cachedBytes: number;
  /** Names of the runs that can go on. */
  checkpoints: string[];
}
"#;
