// How long a job will be: steps from rows and settings, time from the speed of an earlier job.

import { compact, duration, number, t } from "../i18n.js";

const HELD_OUT_SHARE = 0.1; // what a job holds out where it does not say
const MAX_HELD_OUT = 200;

/** One or two sentences. `config` is complete, `jobs` are ended ones, newest first. */
export function estimate(dataset, { training, evaluation }, jobs) {
  const held = heldOut(dataset.rows, evaluation.holdout);
  const rows = Math.max(1, dataset.rows - held);
  const mean = (dataset.report.tokens?.total ?? 0) / dataset.rows;
  const batch = training.per_device_train_batch_size * training.gradient_accumulation_steps;
  const perEpoch = training.packing && mean
    ? Math.ceil((rows * mean) / training.max_length / batch) : Math.ceil(rows / batch);
  const steps = training.max_steps > 0 ? training.max_steps : Math.ceil(perEpoch * training.num_train_epochs);
  const tokens = rows * mean * (steps / perEpoch);
  const speed = jobs.find((job) => job.progress.tokens_per_second)?.progress.tokens_per_second;
  const size = t("estimate.steps", { n: steps, rows: number(rows), held: number(held), epochs: compact(steps / perEpoch) });
  if (!mean) return size;
  return `${size} ${speed ? t("estimate.time", { time: duration(tokens / speed), speed: number(speed) }) : t("estimate.unknown")}`;
}

function heldOut(rows, wanted) {
  if (wanted === null || wanted === undefined) return Math.min(Math.round(rows * HELD_OUT_SHARE), MAX_HELD_OUT);
  return wanted < 1 ? Math.round(rows * wanted) : Math.min(wanted, rows);
}
