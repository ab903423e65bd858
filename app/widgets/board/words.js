// What the board says: the phase, the counts, and why something cannot be done. Plain functions from data to text.

const LEARNING = { scoring: "collecting them", updating: "changing the model", checkpointing: "saving the model", awaiting: "starting" };
const BUSY = ["loading", "sampling", "scoring", "updating", "checkpointing", "measuring"];

/** Is the board between a person's Enter and the next images? */
const isLearning = (board, applied) => board.rated_by_people && (board.closed || board.applying || applied === board.round) && board.alive;

function phaseText(board, learning) {
  const left = board.seconds_left === null ? "" : `, about ${duration(board.seconds_left)} left`;
  if (board.state === "paused") return "Paused. The model stays loaded.";
  if (board.state === "measuring") return `Measuring on images that it never trains on${left}`;
  if (board.state === "reward_failed") return "The reward failed; the Run page says why.";
  if (learning && board.between && board.state === "sampling") return `Round ${board.phase_round}: making images, ${board.done} of ${board.total}${left}`;
  if (learning) return `${board.between ? `Round ${board.phase_round}: ` : ""}${LEARNING[board.state] ?? "getting ready"}${board.state === "updating" && board.total ? ` ${percent(board)}` : ""}${left}`;
  if (board.state === "loading") return "Loading the model…";
  if (board.state === "sampling") return `Making images: ${board.made} of ${board.making}${left}`;
  if (board.state === "awaiting") return "Waiting for your ratings. Take the time you need.";
  if (board.state === "scoring") return `Scoring with ${board.reward}: ${board.done} of ${board.total}${left}`;
  if (board.state === "updating") return `Changing the model ${percent(board)}${left}`;
  if (board.state === "checkpointing") return "Saving the model…";
  return { finished: "Done", stopped: "Stopped", failed: "Failed", interrupted: "Interrupted", new: "Not started yet" }[board.state] ?? "";
}

/** What is learned from while people wait: their ratings, or in a round that they are not asked about, guesses. */
function learningText(board, learned) {
  return board.between ? "Learning from what the model of your taste says…" : `Learning from your ${count(learned, "rating")}…`;
}

const percent = (board) => (board.total ? `${Math.round((100 * board.done) / board.total)} %` : "");

/** How far the present phase is, from 0 to 1; null where nothing moves; -1 where it moves without a measure. */
function phaseShare(board) {
  if (!board.alive || !BUSY.includes(board.state)) return null;
  return board.total ? board.done / board.total : -1;
}

/** A line above the images, for states that need a word. */
function noticeText(board) {
  const state = stateText(board);
  const absent = "Your ratings do not count in this run: somebody has left you out, on the Run page.";
  if (board.rated_by_people) return [state, board.left_out ? absent : ""].filter(Boolean).join(" ");
  return `${state} This run is scored by ${board.reward}, so there is nothing to rate: watch the images change.`.trim();
}

function stateText(board) {
  const rest = board.message ? ` ${clip(board.message, 300)}` : "";
  if (board.state === "new") return "This run has not started yet. Start it on the Run page; its first images appear here.";
  if (board.state === "finished") return "All rounds are done. Progress shows what was learned.";
  if (board.state === "stopped") return `The run is stopped.${rest} Resume it on the Run page, or look at Progress.`;
  if (board.state === "failed") return `The run has failed.${rest} The Run page shows the log and can resume it.`;
  if (board.state === "interrupted") return "The run was interrupted: its process is gone. Resume it on the Run page; nothing that was finished is lost.";
  if (board.state === "reward_failed") return `The reward failed.${rest} The Run page can retry it, or change it.`;
  return board.state === "paused" ? "The run is paused." : "";
}

function countsText(signal, mode) {
  const [noun, done] = mode === "pairs" ? ["pair", " judged"] : ["image", " rated"];
  if (!signal.rated && !signal.skipped) return signal.items ? `${count(signal.items, noun)} to ${mode === "pairs" ? "judge" : "rate"}` : "";
  const skipped = signal.skipped ? `, ${signal.skipped} skipped` : "";
  return `${signal.rated} of ${signal.items}${done}${skipped}; ${signal.carrying} of ${count(signal.total, "prompt")} ${signal.carrying === 1 ? "teaches" : "teach"}`;
}

/** Prompts that teach nothing although every image of theirs was looked at. */
function flatText(signal) {
  const flat = signal.prompts.filter((each) => !each.carries && !each.open);
  if (!flat.length) return "";
  const named = flat.slice(0, 3).map((each) => `${quoted(each.prompt)} (${whyFlat(each)})`).join(", ");
  return `Teach nothing: ${named}${flat.length > 3 ? ` and ${flat.length - 3} more` : ""}.`;
}

/** What to do in the modes that compare the images of a prompt. */
const HINTS = {
  best: "Pick the good ones, and star the best one of each prompt.",
  "best-worst": "Name the best and the worst of each set.",
  pairs: "Which one is better? ← left · → right · ↑ equally good · ↓ both bad",
};

function hintText(board, signal) {
  const flat = flatText(signal);
  if (signal.open || signal.missing) {
    if (board.tired) return board.tired;
    if (flat) return flat;
    if (HINTS[board.rating]) return HINTS[board.rating];
    if (!signal.carrying) return "Only differences between images of one prompt teach: rate some up and some down.";
    return board.rating === "stars" ? "1 poor · 3 fair · 5 excellent" : board.taste || "More ratings teach more.";
  }
  if (!signal.teaching) return `Nothing to learn from yet: rate two images of one prompt differently. ${flat}`;
  return whyNotApply(board, signal) || flat || "All rated. Press Enter and it learns from them.";
}

/** Why Enter does nothing now, or "" when it applies. */
function whyNotApply(board, signal) {
  if (!board.rated_by_people) return "This run needs no ratings.";
  if (board.closed || board.applying) return "These ratings are applied already.";
  if (board.state === "paused") return "The run is paused: resume it first.";
  if (!board.alive) return "The run is not running: start it on the Run page.";
  if (signal.missing > 0) return `${count(signal.missing, "image")} still to come.`;
  if (!board.awaiting) return "The round is not ready yet.";
  if (!signal.teaching) return "Nothing to learn from yet: rate two images of one prompt differently.";
  return "";
}

function savedText(outbox, reachable) {
  const waiting = outbox.size;
  if (outbox.refused) return ["offline", `signed out: ${waiting} waiting here`];
  if (outbox.failures || !reachable) return ["offline", waiting ? `offline: ${count(waiting, "rating")} ${waiting === 1 ? "waits" : "wait"} here` : "offline"];
  const aside = outbox.aside ? ` · ${count(outbox.aside, "rating")} of a run that is not here ${outbox.aside === 1 ? "waits" : "wait"}` : "";
  return waiting ? ["saving", "saving…"] : ["saved", `saved${aside}`];
}
