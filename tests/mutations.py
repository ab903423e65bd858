"""Breaks named lines one at a time and requires that a named test goes red: ``python tests/mutations.py [WORD ...]``.

A test that has never been seen red proves nothing. Each mutation is a defect that somebody could write or has written: the sign of the
advantage, a sum for a mean, a missing root. It works on a temporary copy of the repository, never on the tree itself. With words, only
mutations whose file or text contains one of them are tried.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("app", "ddpo", "rewards", "tests", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """At least one of these must fail."""


def of(file: str, *changes: tuple[str, str, str]) -> list[Mutation]:
    """Mutations of one file: (old, new, test), the test within the test file that mirrors it."""
    mirror = f"tests/test_{Path(file).stem}.py"
    return [Mutation(file, old, new, (test if "::" in test else f"{mirror}::{test}",)) for old, new, test in changes]


EARLIER = "tests/test_earlier.py::"
PAIRS_BACK = EARLIER + "test_pairs_come_back_in_the_order_in_which_they_were_said"
PARITY = "test_step_and_sample_equal_diffusers_at_every_timestep"
RESUME = "tests/test_trainer.py::test_stopped_at_any_safe_point_and_resumed_equals_the_straight_run"
GRADIENT = "tests/test_trainer.py::test_the_update_ascends_the_score_function_gradient"
OBJECTIVE = "tests/test_objective.py::"
ILLUSTRATIONS = "tests/test_illustrations.py::"
COMPARE = "tests/test_compare.py::"
BLIND = "tests/test_blind_tests.py::"
KL = OBJECTIVE + "test_the_kl_penalty_is_the_steps_exact_kl_in_nats_over_the_dimensions"
FORWARD_KL = OBJECTIVE + "test_the_forward_kl_penalty_is_the_squared_distance_of_the_predictions"
DRAWS = OBJECTIVE + "test_draws_follow_from_the_seed_and_differ_between_rounds_passes_and_images"
UNGUIDED = OBJECTIVE + "test_without_guidance_the_prompt_s_own_prediction_is_trained_against_itself"
SHARED = "tests/test_trainer.py::test_a_prompt_s_images_share_their_start_and_nothing_else"
UNGUIDED_BY_HAND = OBJECTIVE + "test_without_guidance_the_images_and_the_gradient_are_those_of_each_branch_by_hand"
UNGUIDED_RUN = "tests/test_trainer.py::test_guidance_in_training_is_the_update_s_alone"
NORMALISED = OBJECTIVE + "test_the_normalised_ratio_on_paper"
NFT = OBJECTIVE + "test_nft_pulls_towards_the_preferred_and_pushes_from_the_other"
AVERAGE = "tests/test_trainer.py::test_the_moving_average_is_measured_and_taken_away_and_the_trained_weights_go_on"
ELSEWHERE = "tests/test_trainer.py::test_a_round_is_learned_from_where_other_arithmetic_sampled_it"
SELF_CHECK = "tests/test_trainer.py::test_the_self_check_looks_in_the_batches_in_which_the_first_step_will"
CREW = "tests/test_crew.py::test_two_processes_do_what_one_does"
BLEND = "tests/test_function.py::test_a_blend_adds_standard_deviations"
CHANGES = "tests/test_reward_changes.py::"
EXPORT = "tests/test_export.py::"
CURVES = "tests/test_curves.py::"
STORE = "tests/test_store.py::"
GENERALISATION = "tests/test_generalisation.py::"
REPORT = "tests/test_report.py::"
CHART = "tests/test_chart_browser.py::"
FORWARD = "tests/test_forward.py::"
KEPT_ENDS = FORWARD + "test_kept_passes_end_with_the_weights_they_are_of"
MOSTLY_UNRATED = FORWARD + "test_of_a_microbatch_that_is_mostly_unrated_the_rest_is_computed_anew"
NO_PASS = FORWARD + "test_the_first_step_makes_no_pass_of_its_own"
SECOND = "test_the_second_version_s_limits_are_those_of_all_groups_around"
QUARTER = FORWARD + "test_no_more_passes_are_kept_than_a_quarter_of_the_free_memory_holds"
BITS = FORWARD + "test_a_kept_pass_and_one_computed_again_are_the_same_bit_for_bit"
QUADRANTS = "test_the_four_clip_quadrants_in_value_and_gradient"

MUTATIONS = (
    *of(
        "ddpo/diffusion.py",
        ("math.log(2 * math.pi)).mean(dim", "math.log(2 * math.pi)).sum(dim", "test_log_prob_is_the_mean_of_torch_distributions_over_dimensions"),
        ("- self.std.log()", "+ self.std.log()", "test_log_prob_is_the_mean_of_torch_distributions_over_dimensions"),
        ("(2 * other.std**2)).sum", "(other.std**2)).sum", "test_kl_is_the_sum_of_torch_distributions_over_dimensions"),
        ("(2 * other.std**2)).sum", "(2 * other.std**2)).mean", "test_kl_is_the_sum_of_torch_distributions_over_dimensions"),
        ("std = eta * variance.sqrt()", "std = eta * variance", "test_std_is_the_ddim_variance_and_eta_scales_it"),
        ("alpha = scheduler.alphas_cumprod[t]", "alpha = scheduler.alphas_cumprod[t - 1]", PARITY),
        ("torch.cat([alpha[1:], ", "torch.cat([alpha[:1], alpha[2:], ", PARITY),
        ("torch.as_tensor(scheduler.final_alpha_cumprod)[None]", "alpha[-1:]", PARITY),
        ("(1 - alpha_prev - std**2).clamp", "(1 - alpha_prev).clamp", PARITY),
        ("return alpha.sqrt() * x_t - (1", "return alpha.sqrt() * x_t + (1", PARITY),
        ("(1 - alpha).sqrt() * noise\n", "(1 - alpha) * noise\n", "tests/test_objective.py::test_noising_is_diffusers_own"),
        ("alpha.sqrt() * noise - (1 - alpha)", "alpha.sqrt() * noise + (1 - alpha)", "tests/test_objective.py::test_noising_is_diffusers_own"),
        (
            "c.abs() * self.alpha.sqrt()",
            "c.abs()",
            "test_the_gradient_scale_is_the_size_of_a_step_s_gradient_for_a_linear_model",
        ),
        ("if std > 0]", "if std >= 0]", "test_the_deterministic_last_step_is_no_action_and_has_no_log_prob"),
        ("(self.std > 0).all()", "(self.std > 0).any()", "test_the_deterministic_last_step_is_no_action_and_has_no_log_prob"),
    ),
    *of(
        "ddpo/loss.py",
        ("torch.maximum(-advantage * ratio, -advantage * clipped)", "torch.maximum(advantage * ratio, advantage * clipped)", QUADRANTS),
        ("torch.maximum(-advantage", "torch.minimum(-advantage", QUADRANTS),
        ("ratio.clamp(1 - clip_range, 1 + clip_range)", "ratio.clamp(1 - clip_range)", QUADRANTS),
        ("ratio.clamp(1 - clip_range, 1 + clip_range)", "ratio.clamp(max=1 + clip_range)", QUADRANTS),
        ("torch.exp(log_ratio)", "torch.exp(-log_ratio)", QUADRANTS),
        ("(log_ratio + shift) * std", "log_ratio * std", NORMALISED),
        ("* std.flatten() / typical_std", "", NORMALISED),
        ("return -advantage * log_prob", "return advantage * log_prob", OBJECTIVE + "test_the_score_function_s_gradient_is_minus_the_advantage"),
        ("return weight * (", "return (", OBJECTIVE + "test_the_denoising_loss_and_its_weight"),
        ("(1 + mix) * old - mix * new", "(1 - mix) * old + mix * new", NFT),
        ("/ scale).mean", ").mean", NFT),
        ("difference.detach().abs()", "difference.abs()", NFT),
        ("1 + self.clip_range) & (advantage > 0)", "1 + self.clip_range) & (advantage < 0)", "test_health_counts_what_the_clip_cut"),
        ("torch.arange(count) * QUARTERS // count", "torch.arange(count) % QUARTERS", "test_steps_are_told_by_the_quarter_in_which_they_begin"),
        ("if sums[0] and self.ratio_max_deviation:", "if sums[0]:", "test_the_ratio_is_told_by_quarter_of_the_denoising"),
        ("return [a + b for a, b in", "return [a for a, b in", "test_the_ratio_is_told_by_quarter_of_the_denoising"),
        ("reduce(added, (getattr", "reduce(max, (getattr", "tests/test_crew.py::test_health_of_several_is_that_of_one"),
        ("0.5 * (dimensions * log_ratio.cpu().double())", "0.5 * (log_ratio.cpu().double())", "test_kl_update_estimates_the_true_kl"),
    ),
    *of(
        "ddpo/advantage.py",
        ("- numbers.mean()", "+ numbers.mean()", "test_each_prompt_is_standardised_by_its_own_mean_and_std"),
        ("- numbers.mean()) / spread).float()", "- numbers.mean()) / -spread).float()", "test_a_better_image_has_a_larger_advantage"),
        (
            "[float(scores[i]) for i in rows]  # type: ignore[arg-type]\n        advantages[rows] = standardised(values, values)\n    return",
            "[float(scores[i] or 0) for i in range(len(scores))]\n        advantages[rows] = standardised(values, values)[rows]\n    return",
            "test_an_unrated_image_is_excluded_and_not_zero",
        ),
        ("1e-8 * max(1.0, float(numbers.abs().max()))", "-1.0", "test_equal_scores_say_nothing"),
        ("<= 1e-8 * max", "<= 1e-3 * max", "test_small_but_real_differences_count"),
        (
            "advantages[rows] = standardised(values, values)\n    return advantages.clamp(-clip, clip)\n\n\ndef centred",
            "advantages[rows] = standardised(values, values)\n    return advantages.clamp(max=clip)\n\n\ndef centred",
            "test_advantages_are_clipped_on_both_sides",
        ),
        ("values[own] -= values[own].mean()", "values[own] -= values.mean()", "test_centred_advantages_have_one_spread_for_all_prompts"),
        ("(advantages[rated].abs() >= clip)", "(advantages.abs() >= clip)", "test_saturation_is_the_share_of_scored_images_at_the_clip"),
        ("(values / spread).float()", "values.float()", "test_centred_advantages_have_one_spread_for_all_prompts"),
        ("[-buffer:]", "[:buffer]", OBJECTIVE + "test_the_history_s_statistics_are_the_paper_s"),
        ("len(past) >= enough", "len(past) >= 1", OBJECTIVE + "test_the_history_s_statistics_are_the_paper_s"),
        ("torch.softmax(beta * advantages[rows]", "torch.softmax(advantages[rows]", OBJECTIVE + "test_rwr_weighs_by_the_softmax_within_each_prompt"),
        ("len(rows) * torch.softmax", "torch.softmax", OBJECTIVE + "test_rwr_weighs_by_the_softmax_within_each_prompt"),
        ('interpolation="higher"', 'interpolation="lower"', OBJECTIVE + "test_rwr_sparse_keeps_the_best_of_each_prompt"),
        ("if rows and bool(", "if rows or bool(", OBJECTIVE + "test_a_prompt_whose_images_were_all_disliked_is_not_imitated"),
    ),
    *of(
        "ddpo/policy.py",
        (
            "        if condition.guidance == 1.0:",
            "        if condition.guidance == 1.0 or torch.is_grad_enabled():",
            "test_gradient_flows_through_both_branches",
        ),
        ("return unconditional + weight", "return unconditional.detach() + weight", "test_gradient_flows_through_both_branches"),
        ("or condition.guidance == 1.0:", ":", UNGUIDED_BY_HAND),
        ("guided(unconditional, conditional.detach(), ", "guided(unconditional, conditional, ", UNGUIDED_BY_HAND),
        ("*condition.branches(0, 1)", "*condition.branches(1, 0)", "test_the_prediction_is_diffusers_own_guided_one"),
        ("parameter.data = parameter.data.float()", "parameter.data = parameter.data", "test_only_the_adapter_learns_and_it_is_float32"),
        ("self.unet.disable_adapters()", "self.unet.enable_adapters()", "test_a_fresh_adapter_changes_nothing_and_base_is_the_base_model"),
        ("                p.data = trained[name]", "                pass", "test_base_ends_when_its_body_fails"),
        ("self.unet.eval()  #", "self.unet.train()  #", "tests/test_rollout.py::test_dropout_in_the_model_does_not_reach_the_ratio"),
        ("latents / self.vae.config.scaling_factor", "latents * 2 / self.vae.config.scaling_factor", "test_decode_is_the_pipeline_s_own_picture"),
    ),
    *of(
        "ddpo/rollout.py",
        (
            "Trajectory(torch.stack(latents, 1).cpu()",
            "Trajectory(torch.stack(latents, 1).half().float().cpu()",
            "test_rescoring_the_stored_trajectory_gives_its_log_probs",
        ),
        ("gaussian.trained.log_prob(latents[-1]) if", "gaussian.log_prob(latents[-1]) if", UNGUIDED),
        ("[gaussian.trained.mean] if", "[gaussian.mean] if", UNGUIDED),
        ("gaussian.sample(noise[i + 1])", "gaussian.sample(noise[i])", "test_the_rollout_is_the_chain_of_its_own_gaussians"),
        ("if i in actions else", "if True else", "test_a_deterministic_last_step_is_taken_and_not_scored"),
    ),
    *of(
        "ddpo/objective.py",
        ("loss * self.step_weights[moment].to(device)", "loss", GRADIENT),
        ("trajectory.latents[image, moment + 1]", "trajectory.latents[image, moment]", GRADIENT),
        ("if i in config.trained_steps", "if True", GRADIENT),
        (
            "self.quarters[self.steps] = quarters_of",
            "self.quarters[:len(self.steps)] = quarters_of",
            "test_the_ratio_is_told_by_the_trained_steps_quarters",
        ),
        ("argsort(1)[:, : self.moments]", "argsort(1)[:, :1]", "test_a_share_of_the_steps_is_trained_of_each_image"),
        ("config.kl_weight * kl / self.trajectory.dimensions", "config.kl_weight * kl", KL),
        ("kl_weight * ((prediction - base)", "kl_weight * 0.5 * ((prediction - base)", FORWARD_KL),
        ('config.kl_weight > 0 or config.objective == "nft"', "False", "test_images_that_only_hold_the_model_are_learned_from_where_they_do"),
        ("advantage / (2 * certain)", "advantage / certain", "test_nft_keeps_the_sampling_policy_s_predictions"),
        (").clamp(0, 1)", ")", "test_nft_keeps_the_sampling_policy_s_predictions"),
        ("if means is None else means[image, moment].to(device)", "", UNGUIDED),
        ("importance_loss(seen, ", "importance_loss(log_ratio, ", NORMALISED),
        ("scale = scale * schedule.std[self.steps] / self.typical_std", "pass", NORMALISED),
        ("certain / mix * negative", "certain * negative", "test_nft_s_gradient_is_the_advantage_s_whatever_its_settings"),
        ("if self.config.updates_per_round == 1:", "if True:", "test_nft_keeps_the_sampling_policy_s_predictions"),
        ("[list(config.trained_steps)]", "[list(config.trained_steps)[1:]]", "test_nft_draws_the_sampler_s_trained_timesteps_and_rwr_all"),
        ('self.number, "forward"', '0, "forward"', DRAWS),
        ("torch.arange(number * self.moments, (number + 1)", "torch.arange(0, 1", DRAWS),
    ),
    *of(
        "ddpo/engine.py",
        (
            "        self.scaler.scale(torch.zeros((), device=policy.device))",
            "        pass",
            "tests/test_crew.py::test_a_process_without_a_part_in_a_step_makes_it_too_in_half_precision",
        ),
        (
            "self.config.learning_rate_at(number)",
            "self.config.learning_rate",
            "tests/test_trainer.py::test_a_warm_up_raises_the_learning_rate_round_by_round",
        ),
        ('if part.arithmetic not in ("", here)', "if False", ELSEWHERE),
        ("self._as_sampled(items, {0: range(n)})[:: max(1, len(items) // most)] if self.config.reuses_forward else ", "", SELF_CHECK),
        ("(loss.sum() / count)", "loss.mean()", "tests/test_trainer.py::test_microbatches_of_any_size_add_up_to_one_batch"),
        (
            "group = group[torch.isin(group, lesson.images)]",
            "pass",
            "tests/test_trainer.py::test_unrated_images_and_zero_advantages_contribute_exactly_nothing",
        ),
        ("if not len(group):", "if False:", "tests/test_trainer.py::test_a_round_nobody_rated_changes_no_weight"),
        ("        if check:\n", "        if False:\n", "tests/test_trainer.py::test_rounding_latents_after_scoring_is_refused"),
        ("                parameter.data = shadow\n", "                pass\n", AVERAGE),
        ("            self.average.step(self.parameters.values())", "            pass", AVERAGE),
        (
            "self.moments, self.scaler, self.average, self.policy.fingerprint)\n\n    @",
            "self.moments, self.scaler, base=self.policy.fingerprint)\n\n    @",
            AVERAGE,
        ),
        ('"start", prompt)', '"start")', SHARED),
        ("noises_of(self.policy, seeds, self.draw_starts(number, prompts))", "noises_of(self.policy, seeds)", SHARED),
        ("self.draw_prompts(number), self.config.guidance_in_training)", "self.draw_prompts(number))", UNGUIDED_RUN),
        ("self.crew.sum_gradients(self.parameters.values())", "pass", CREW),
        ("self.crew.share(parts)", "parts", CREW),
        (
            "        self.optimiser.zero_grad(set_to_none=True)\n        self.kept.clear()",
            "        self.optimiser.zero_grad(set_to_none=True)",
            KEPT_ENDS,
        ),
        ("        self.kept.clear()\n        return dict(health", "        return dict(health", KEPT_ENDS),
        ("if 2 * len(part.items) < len(part.batch):", "if False:", MOSTLY_UNRATED),
        (" and start < self.config.images_per_update else None", " else None", NO_PASS),
        ("[order.argsort()]", "[order]", FORWARD + "test_the_update_is_the_one_without_kept_passes"),
        ("Gaussian(gaussian.mean[rows], ", "Gaussian(gaussian.mean[: len(rows)], ", MOSTLY_UNRATED),
    ),
    *of(
        "ddpo/forward.py",
        ("(len(self._kept) + 1) * self._bytes > self._budget", "False", QUARTER),
        (" if not self._known or place not in self._first", "", QUARTER),
        ("torch.enable_grad(), ", "", NO_PASS),
        ("return tensor.detach()", "return tensor", FORWARD + "test_what_is_let_go_leaves_nothing_behind"),
        ("if self._bytes <= self._budget:", "if True:", FORWARD + "test_a_pass_that_is_too_large_is_not_kept"),
        ("gaussian.mean.detach(), gaussian.std", "gaussian.mean, gaussian.std", QUARTER),
        ("self._kept[key] = gaussian.trained", "self._kept[key] = gaussian", BITS),
    ),
    *of(
        "ddpo/trainer.py",
        ("if not self.config.shuffle_scores:", "if True:", "test_shuffled_scores_are_the_same_scores_of_other_images"),
        ("number = done[-1].number", "number = done[0].number", RESUME),
        ("if not self.store.has_metric(*key)}", "}", RESUME),
        (
            "Standard.of(self.store.first_values(name))",
            "Standard()",
            CHANGES + "test_a_blend_is_scored_part_by_part_in_the_spread_of_its_first_round",
        ),
        ("advantages, values, self.config.advantage_clip", "advantages, values, 5.0", "test_a_round_says_how_many_advantages_the_clip_has_cut"),
        (
            "images + sum(len(wanted[start]) for start in starts)",
            "self.config.images_per_round",
            "test_images_per_second_are_of_the_time_in_which_they_were_made",
        ),
        ('"held_out_base"): True', '"held_out_base"): False', CHANGES + "test_after_a_change_the_base_model_is_measured_by_the_new_reward"),
        ("self.config, base=base", "self.config, base=False", "test_held_out_measurements_are_paired_and_of_the_right_policy_in_a_run"),
    ),
    *of(
        "ddpo/crew.py",
        ('            self._hear("gate")\n', "", CREW),
        ('if "end" in message:', "if False:", "test_nobody_passes_the_gate_before_all_are_there_and_nobody_after_the_end"),
        ("            thread.join(LONGEST_NAP)", "            thread.join()", "test_the_leader_listens_while_it_waits_in_a_sum"),
    ),
    *of(
        "ddpo/checkpoint.py",
        ('if key not in ("weight", AVERAGE) and', 'if key == "exp_avg" and', RESUME),
        ('(folder / FILE, *folder.glob(MOMENTS.format(rank="*")))', "(folder / FILE,)", CREW),
        ('header.get("base", base) != base', "False", "tests/test_models.py::test_another_optimiser_s_state_survives_its_checkpoint"),
    ),
    *of(
        "ddpo/store.py",
        ("rating.id <= ?2", "rating.id < ?2", "test_closing_a_round_fixes_which_ratings_count"),
        (
            "if row is None or row.closed_rating is None:",
            "if row is None or True:",
            "tests/test_dataset.py::test_every_rating_event_is_there_and_those_that_count_are_marked",
        ),
        (
            " and (each.answered_at or math.inf) >= answered.get(each.about, 0.0)",
            "",
            "tests/test_routes.py::test_what_comes_late_is_kept_and_changes_no_score",
        ),
        ("rating.board = round.number AND ", "", "tests/test_raters.py::test_what_is_said_again_changes_no_score_and_teaches_nothing"),
        ("WHERE number = ? AND closed_at IS NULL", "WHERE number = ?", "test_closing_a_round_fixes_which_ratings_count"),
        (
            '"SELECT 1 FROM rating WHERE client_id = ?"',
            '"SELECT 1 FROM rating WHERE client_id = ? AND 0"',
            "test_a_repeated_client_id_changes_nothing",
        ),
        ("INSERT OR IGNORE INTO sample", "INSERT OR REPLACE INTO sample", "test_samples_that_exist_stay_as_they_are"),
        ("WHERE number = ? AND {mark}_at IS NULL", "WHERE number = ?", "test_marks_are_set_once_and_in_order"),
        ("None if value is None or not math.isfinite(value)", "None if value is None", "test_numbers_that_are_none_become_none"),
    ),
    *of(
        "ddpo/records.py",
        ('if row.kind != "clear":', 'if row.kind != "skip":', STORE + "test_the_latest_of_each_rater_counts_and_clear_takes_it_back"),
    ),
    *of(
        "ddpo/control.py",
        ("self.store.close_round(number)  # before", "pass  # before", "test_apply_is_on_disk_before_it_is_answered"),
        (
            'str(wanted[-1].payload["reward"])',
            'str(wanted[0].payload["reward"])',
            CHANGES + "test_a_change_waits_for_the_next_scoring_and_outlives_its_worker",
        ),
    ),
    *of(
        "app/routes.py",
        ('bool(results) and results[-1]["status"] >= 500', "False", "test_what_is_sent_again_after_a_refused_write_keeps_its_order"),
    ),
    *of("ddpo/lock.py", ("probe, shared=True", "probe, shared=False", "test_many_looks_at_once_never_see_a_worker_that_is_gone")),
    *of(
        "rewards/human.py",
        ("(value - 3) / 2", "value / 5", "tests/test_rewards.py::test_thumbs_and_stars_share_one_scale"),
        ("return Score(None)", "return Score(0.0)", "tests/test_rewards.py::test_skip_and_clear_are_no_opinion_and_not_a_middling_one"),
        (
            "for sample in samples]",
            "for sample in sorted(samples, key=lambda s: s.id)]",
            "tests/test_rewards.py::test_people_s_ratings_go_to_the_images_they_name",
        ),
    ),
    *of(
        "rewards/human.py",
        ("None: -0.5}", "None: 0.0}", "test_the_best_the_good_and_those_passed_over"),
        ("for image in images if image not in skipped}", "for image in images}", "test_the_best_the_good_and_those_passed_over"),
        ("if set(named.values()) == {-1, 1} else set()", "if named else set()", "test_best_worst_counting"),
    ),
    *of(
        "rewards/pairs.py",
        ("slope, bend = -RIDGE * theta", "slope, bend = RIDGE * theta", "tests/test_human.py::test_strengths_are_where_the_posterior_is_largest"),
        ("said / 2 - np.sinh", "said - np.sinh", "tests/test_human.py::test_strengths_are_where_the_posterior_is_largest"),
        ("told = sorted(", "told = list(", "tests/test_human.py::test_a_pair_says_the_same_from_both_sides_and_in_any_order"),
    ),
    *of(
        "rewards/agreement.py",
        ("len(opinions) / (len(opinions) - 1) * ", "", "test_alpha_of_the_published_example"),
        ("prompts[a] == prompts[b] and ", "", "test_orders_are_compared_within_a_prompt"),
    ),
    *of(
        "app/again.py",
        (
            "if is_once_more(each, row)",
            "",
            "tests/test_raters.py::test_a_prompt_of_an_earlier_board_comes_again_unmarked",
        ),
    ),
    *of(
        "ddpo/trainer.py",
        ("contextlib.suppress(OSError)", "contextlib.nullcontext()", "tests/test_monitor.py::test_a_watched_run_says_what_its_reward_pays_for"),
        (' and "human" not in rewards.parts(reward):', ":", "tests/test_monitor.py::test_while_people_rate_the_round_before_is_watched"),
        ("[row for row in rows if row.shown]", "list(rows)", "tests/test_control.py::test_who_was_not_asked_about_was_not_passed_over"),
        (
            "fresh = (behind == 0) & weights.rated",
            "fresh = weights.rated",
            "tests/test_taster.py::test_what_is_made_ahead_to_be_rated_is_not_learned_from_where_guesses_lead",
        ),
        (
            "            self.taster.choose(number)  # before anybody can stop it\n",
            "",
            "tests/test_taster.py::test_a_board_is_there_as_soon_as_its_images_are",
        ),
        ("sampled=self.make,", "sampled=self.sample,", "tests/test_taster.py::test_the_next_board_comes_before_what_is_only_learned_from"),
        (
            "int(fresh.sum()) >= self.config.images_per_prompt",
            "bool(fresh.any())",
            "tests/test_taster.py::test_a_round_is_learned_from_where_few_of_its_images_are_new_or_all_are_on_its_board",
        ),
    ),
    *of(
        "ddpo/fork.py",
        ("for name in (before, *names)", "for name in names", "tests/test_fork.py::test_a_fork_counts_what_the_rounds_before_it_cost"),
    ),
    *of(
        "ddpo/generalisation.py",
        (
            "set(config.prompts) <= set(known[name])",
            "set(config.prompts) == set(known[name])",
            "test_the_groups_are_the_sets_that_are_kept_from_training_or_those_that_are_named",
        ),
    ),
    *of(
        "ddpo/alarms.py",
        ("return self.best or self.began // 2", "return self.best", "tests/test_result.py::test_what_was_said_last_holds_by_people_or_by_the_rule"),
        ('None if values["flatness"] is None else 1 - values["flatness"]', 'values["flatness"]', "test_texture_is_what_is_not_flat"),
    ),
    *of(
        "ddpo/taster.py",
        (
            "if len(plain.get(row.prompt, ())) > 1 else",
            "if row.prompt in plain else",
            "test_guesses_beside_words_that_say_the_same_are_faint_as_well",
        ),
        ("math.sqrt(certain.get(row.id, 1.0))", "1.0", "test_faint_guesses_of_a_prompt_that_nobody_rated_count_as_much_as_they_are_known"),
        (
            "if settled or row.number in late:",
            "if False:",
            "tests/test_raters.py::test_taste_is_of_those_who_count",
        ),
        (
            "len(set(names.values())) < 2",
            "True",
            "tests/test_taster.py::test_two_who_are_not_equally_hard_to_please_are_on_levels_of_their_own",
        ),
        (
            "or len(self.store.board(number)) == self.config.board_images ",
            "",
            "tests/test_taster.py::test_a_board_that_is_chosen_of_what_is_made_ahead_stays_when_the_rest_is_made",
        ),
    ),
    *of(
        "rewards/preference.py",
        ("self.common * np.sqrt(1 - self.agreement**2)", "0 * self.agreement", "test_strangers_who_agree_among_themselves_are_no_friends"),
        ("level + apart * width", "level + apart", "test_other_raters_come_to_ones_own_level_and_spread"),
        ("variances[-1] * self.noise + JITTER", "variances[-1] + JITTER", "test_the_evidence_and_its_derivatives"),
        ("+= noise * self._noises[rows]", "+= noise", "test_the_posterior_is_the_gaussian_process_of_the_library"),
        (
            "for who in {name, OWN} if is_own(name) else {name}",
            "for who in {name}",
            "test_several_whose_taste_is_in_question_are_on_levels_of_their_own",
        ),
        ('and name.partition("/")[0] == source', "", "test_a_file_may_be_on_any_scale"),
        ("most.index(name) if name in most else GROUPS", "0", "test_who_agrees_helps_also_beside_one_who_does_not"),
        ("by_loads[:, 1] * common * own", "by_loads[:, 1] * own", "test_the_evidence_and_its_derivatives"),
        ("taste * alike + variances", "taste + variances", "test_the_evidence_and_its_derivatives"),
        ("own = inside & self.own", "own = inside", "test_ratings_of_others_alone_are_a_beginning_and_no_proof"),
        (" & ~twins", "", "test_to_know_a_picture_again_is_no_taste"),
    ),
    *of(
        "ddpo/earlier.py",
        ("filter(_settled, store.rounds()):", "store.rounds():", "test_a_board_that_is_open_is_not_taken"),
        ("found.setdefault(source.place, source)", "found.setdefault(source.name, source)", "test_two_files_of_one_name_are_two_sources"),
        ("or any(place.iterdir())", "", "test_ratings_that_lie_in_the_folder_of_a_new_run_are_never_replaced"),
        ("if not IMAGE.fullmatch(each.image):", "if False:", "test_names_of_images_in_a_run_of_others_lead_nowhere"),
        ("reader_in(path, samples[id].image)", "(path / samples[id].image).read_bytes", "test_pictures_outside_a_run_of_others_are_not_taken"),
        ("if hash_of(data) != Path(name).stem:", "if False:", "test_what_cannot_be_copied_leaves_nothing_and_says_why"),
        ("write_file(partial / name, _again(source, name, read))", "pass", "test_a_run_stays_whole_when_the_old_one_is_gone_and_gives_it_on"),
        ("found += kept(path)", "pass", "test_a_run_stays_whole_when_the_old_one_is_gone_and_gives_it_on"),
    ),
    *of(
        "ddpo/rating_files.py",
        ("not file.resolve().is_relative_to(folder.resolve())", "False", EARLIER + "test_a_bad_line_is_named_with_what_is_wrong"),
        ('if not _truth(row, "counts", where):', "if False:", EARLIER + "test_taken_away_and_taken_in_again_ratings_and_images_are_the_same"),
        ("float((labels[0] or 0) - (labels[1] or 0))", "float((labels[1] or 0) - (labels[0] or 0))", PAIRS_BACK),
        ("if width * height > LARGEST_PIXELS:", "if False:", EARLIER + "test_an_image_of_too_many_pixels_is_refused_before_it_is_unpacked"),
        ("if images > MOST_COMPARED:", "if False:", EARLIER + "test_more_images_than_can_be_compared_together_are_refused"),
        ("if name not in self.taken:", "if True:", EARLIER + "test_a_zip_is_opened_once_and_each_of_its_images_is_read_once"),
    ),
    *of(
        "ddpo/fork.py",
        ("[str(store.folder)] if learns and", "[] if learns and", "test_a_model_of_taste_keeps_the_ratings_of_the_run_that_it_goes_on_from"),
        (", *named])", "])", "test_a_model_of_taste_keeps_the_ratings_of_the_run_that_it_goes_on_from"),
    ),
    *of(
        "ddpo/beliefs.py",
        (
            "or not leads(store, config, number - 1)",
            "",
            "tests/test_taster.py::test_while_it_is_right_more_often_than_not_the_model_of_taste_scores_alone_between_boards",
        ),
        ("(-std).argsort", "std.argsort", "test_the_worker_writes_down_what_it_believes"),
        ("but=own.get(row.id)", "but=None", "test_the_worker_writes_down_what_it_believes"),
        ("image=row.image, mean=_finite", "image=each['image'], mean=_finite", "test_a_file_of_others_shows_pictures_of_the_run_alone"),
    ),
    *of(
        "rewards/human.py",
        ("[weight for _, weight in values])", "None)", "tests/test_raters.py::test_a_rater_who_is_left_out_does_not_count_in_the_open_round"),
    ),
    *of(
        "rewards/blend.py",
        ("(value - standards[n].mean) / standards[n].std", "(value - standards[n].mean)", BLEND),
        ("if len(terms) == len(weights) else None", "", BLEND),
    ),
    *of(
        "rewards/function.py",
        ("if str(path) not in trusted():", "if False:", "test_a_file_that_nobody_trusted_is_not_run"),
        (
            "        stamp = path.stat()",
            "        stamp = self._stamp = path.stat()",
            "test_a_file_that_was_broken_is_not_scored_by_what_it_was",
        ),
    ),
    *of(
        "rewards/cache.py",
        ("if key not in self._known}", "}", "test_the_same_picture_and_prompt_are_asked_about_once"),
        ("if len(scores) != len(samples):", "if False:", "test_a_failure_says_what_happened_and_is_not_remembered"),
        ("if score.value is not None and not math.isfinite(score.value):", "if False:", "test_a_failure_says_what_happened_and_is_not_remembered"),
    ),
    *of(
        "rewards/jpeg.py",
        ("QUALITY = 95", "QUALITY = 90", "tests/test_rewards.py::test_the_size_is_of_the_jpeg_that_pillow_writes_by_default_at_quality_95"),
    ),
    *of(
        "ddpo/lora.py",
        ("scale = lora.alpha / lora.rank * strength", "scale = strength", EXPORT + "test_a_program_that_overlooks_the_metadata_gets_the_same_lora"),
        ("alpha = lora.alpha * strength", "alpha = lora.rank * strength", EXPORT + "test_a_kohya_file_is_read_by_diffusers_and_applied_by_hand"),
        ("{1 + number}.{inside}", "{number}.{inside}", EXPORT + "test_the_published_xl_s_layers_have_the_names_that_its_original_has"),
        ("int(block) * (depth + 1)", "int(block) * depth", EXPORT + "test_a_kohya_file_is_read_by_diffusers_and_applied_by_hand"),
    ),
    *of(
        "ddpo/export.py",
        ("pipeline.fuse_lora(lora_scale=strength)", "pipeline.fuse_lora()", "test_strength_scales_what_was_trained_alike_in_every_layout"),
        ("was and was != fingerprint(pipeline.unet)", "was and was == ''", "test_a_merge_over_another_base_model_is_refused"),
    ),
    *of(
        "ddpo/dataset.py",
        ("0.5 if better == 0 else float(better > 0)", "float(better >= 0)", "test_pairs_have_pick_a_pic_s_columns_and_each_is_one_person_s"),
        ("uids[int(better < 0)]", "uids[int(better > 0)]", "test_pairs_have_pick_a_pic_s_columns_and_each_is_one_person_s"),
        ("for count in range(1, len(parts))", "for count in range(1, 2)", "test_a_reward_is_named_without_the_folders_that_tell_nothing_apart"),
    ),
    *of(
        "ddpo/figure.py",
        ("(min(known), max(known))", "(min(known),)", CURVES + "test_a_long_run_keeps_its_jumps_its_gaps_and_its_end"),
        ("if value is None][:1]", "if value is None][:0]", CURVES + "test_a_long_run_keeps_its_jumps_its_gaps_and_its_end"),
        (
            "in range(0, len(points), width)",
            "in range(len(points) % width, len(points), width)",
            CURVES + "test_a_line_that_grows_keeps_what_it_has_shown",
        ),
        ("        xmlns=XMLNS,\n", "", ILLUSTRATIONS + "test_the_curves_are_an_svg_that_shows_by_itself"),
        ("        style,\n", "", ILLUSTRATIONS + "test_the_curves_are_an_svg_that_shows_by_itself"),
    ),
    *of(
        "ddpo/illustrations.py",
        ("[pair.before for pair in pairs]", "[pair.after for pair in pairs]", "test_the_sheet_has_twins_the_base_model_s_above"),
        ("if at != number", "if at == number", "test_the_sheet_has_twins_the_base_model_s_above"),
        ("HEAD / 2 + 2), name", "HEAD / 2 + 2), ''", "test_the_sheet_has_twins_the_base_model_s_above"),
        ("each_prompt_once=True", "each_prompt_once=False", "test_the_sheet_has_twins_the_base_model_s_above"),
        ("if strength != 1", "if strength == 1", "test_pictures_are_at_full_strength_and_it_is_said"),
        ("[max(rows, key", "[min(rows, key", "test_a_round_s_own_pictures_stand_in_where_nothing_was_watched"),
        ("point[0] <= number]", "point[0] <= number + 1]", "test_the_curves_are_an_svg_that_shows_by_itself"),
        ("in line.points}) < 2", "in line.points}) < 1", "test_where_there_is_nothing_to_show_the_card_shows_nothing"),
    ),
    *of(
        "ddpo/card.py",
        ("if 0 < n <= number and nats", "if 0 < n and nats", ILLUSTRATIONS + "test_the_distance_is_that_of_the_last_watched_round_up_to_the_card_s"),
        ('row.found.get("kl") is not None', "True", ILLUSTRATIONS + "test_the_distance_is_that_of_the_last_watched_round_up_to_the_card_s"),
        ("            *curves,\n", "", ILLUSTRATIONS + "test_a_card_s_pictures_lie_beside_it_and_open"),
    ),
    *of(
        "ddpo/report.py",
        ("if point[0] <= number]", "if point[0] <= number + 1]", "test_a_report_up_to_a_round_knows_nothing_of_later_ones"),
        ("config, base=True, count=count)", "config, base=False, count=count)", EXPORT + "test_a_report_s_pictures_are_the_run_s_held_out_ones"),
        ("[items[i * len(items) // count] for", "[items[i] for", ILLUSTRATIONS + "test_six_of_many_prompts_are_shown"),
        ("naming(rater), f", "rater, f", "test_raters_are_coded_unless_they_are_named_and_their_agreement_is_told"),
    ),
    *of(
        "ddpo/blind.py",
        (
            "if 0 < max(result.rounds) <= number]",
            "]",
            "tests/test_blind_tests.py::test_what_cannot_be_read_is_left_out_and_later_rounds_are_none_of_an_earlier_one_s",
        ),
        ("total.a, total.b, total.tie", "total.b, total.a, total.tie", "test_a_result_as_a_row_of_the_card"),
    ),
    *of(
        "ddpo/memory.py",
        (" // launcher.local_size()", "", "test_the_least_counts_and_is_shared_by_the_machine_s_processes"),
        ('int((folder / "memory.current").read_text()) + ', 'int((folder / "memory.current").read_text()) - ', SECOND),
    ),
    *of(
        "ddpo/hub.py",
        ("private=private", "private=False", "test_a_model_and_data_are_sent_file_by_file"),
        ("if private and not", "if not private and not", "test_what_everybody_sees_gets_nothing_private"),
    ),
    *of(
        "ddpo/config.py",
        (
            "if as_read(prompt) in trained]",
            "if prompt in self.prompts]",
            "test_held_out_prompts_are_named_as_prompts_are_and_none_of_them_is_trained",
        ),
    ),
    *of(
        "ddpo/tracker.py",
        ("if self._file.exists():", "if not self._file.exists():", "test_every_measure_is_in_tensorboard_whatever_stops_the_run"),
        ("step=number)", "step=0)", "test_every_measure_is_in_tensorboard_whatever_stops_the_run"),
        ("            self._tracker = None\n            with", "            with", "test_a_tracker_that_fails_ends_nothing"),
        (
            "            self._sent |= {(number, name): time.monotonic() for name in values}",
            "            pass",
            "test_a_service_gets_settings_and_each_round_with_its_number",
        ),
        (
            "if all_written or at <= time.monotonic() - WRITTEN_AFTER[self.config.tracker]:",
            "if True:",
            "test_what_a_killed_worker_sent_in_its_last_minute_is_sent_again",
        ),
    ),
    *of(
        "ddpo/generalisation.py",
        ("else _between(list(map(fmean, changes)))", "else _within(changes)", "test_a_gain_is_the_mean_over_prompts_of_their_pictures_changes"),
        ("(1 + CONFIDENCE) / 2", "CONFIDENCE", "test_the_interval_holds_the_truth_as_often_as_it_says"),
        ("own.low <= 0", "own.gain == 0", "test_what_it_says_of_groups_in_words"),
        ("if prompt not in own)", ")", "test_the_groups_are_the_sets_that_are_kept_from_training_or_those_that_are_named"),
        ("if config.held_out_prompts:", "if False:", "test_the_groups_are_the_sets_that_are_kept_from_training_or_those_that_are_named"),
    ),
    *of(
        "ddpo/twins.py",
        (
            "if strength else policy.base()",
            "if not strength else policy.base()",
            GENERALISATION + "test_the_pictures_are_the_models_and_every_value_is_told",
        ),
    ),
    *of(
        "ddpo/strengths.py",
        ("first = max(sound, default=-1) + 1", "first = len(gains) - 1", "test_what_is_kept_at_each_strength_and_what_surely_falls_in_words"),
        ("if whole.low > 0:", "if whole.gain > 0:", "test_a_gain_that_is_not_sure_is_shared_out_to_nobody"),
        ("all_known=len(chosen) == len(own)", "all_known=True", "test_the_pictures_are_the_model_s_at_each_strength"),
        (
            "taste.guess(look, prompts).mean.tolist() for look in seen",
            "taste.guess(seen[-1], prompts).mean.tolist() for look in seen",
            "test_the_taste_of_people_is_asked_about_each_picture",
        ),
        (
            "for side in range(len(sides)))\n    apart",
            "for side in range(len(sides)) if side)\n    apart",
            "test_the_pictures_are_the_model_s_at_each_strength",
        ),
        ("or found.strengths != STRENGTHS", "", "test_what_was_measured_is_read_again_and_a_broken_file_is_none"),
        ("or not is_reward(found.reward)", "", "test_what_was_measured_is_read_again_and_a_broken_file_is_none"),
    ),
    *of("ddpo/taster.py", ("taste is not None and taste.accuracy().least > CHANCE", "taste is not None", "test_the_taste_for_pictures_of_elsewhere")),
    *of(
        "ddpo/markup.py",
        (
            'html.escape(UNPRINTABLE.sub("\\ufffd", value))',
            "html.escape(value)",
            REPORT + "test_odd_prompts_gaps_and_files_that_are_gone_break_nothing",
        ),
        ('MARKDOWN.sub(r"\\\\\\g<0>", " ".join(alt.split()))', "alt", ILLUSTRATIONS + "test_titles_and_words_are_text"),
    ),
    *of(
        "app/curves.py",
        ('name.startswith("seconds_")', 'name == "seconds_sampling"', "test_the_clock_adds_up_images_scored_and_seconds_of_work"),
    ),
    *of(
        "app/widgets/chart/numbers.js",
        ("(dd * v - d * dv) / spread", "v / w", CHART + "test_smoothing_does_not_lag_bend_or_fill_gaps"),
        ("if (low < 0) return 0;", "if (low < 0) return rows[0][at];", CHART + "test_rounds_lie_where_their_cost_says"),
        ("x - sorted[low] <= sorted[high] - x", "x - sorted[low] > sorted[high] - x", CHART + "test_rounds_lie_where_their_cost_says"),
        ("return even ?", "return true ?", CHART + "test_a_lopsided_interval_is_told_from_where_to_where"),
    ),
    Mutation(
        "app/widgets/chart/widget.js",
        "(run.index && near(m))",
        "false",
        (CHART + "test_what_happened_in_another_run_is_drawn_in_its_colour_and_read_by_keyboard",),
    ),
    *of(
        "app/raters.py",
        ("board := event.board or event.round)", "board := event.round)", "test_speed_and_agreement_are_told_by_round"),
        ("if row.closed_rating is not None}", "}", "test_speed_and_agreement_are_told_by_round"),
        ("for rater, found in before.items() if rater not in absent", "for found in before.values()", "test_speed_and_agreement_are_told_by_round"),
    ),
    *of(
        "app/pages/progress.py",
        (
            "band.append((after, gain - error, gain + error))",
            "band.append((after, gain, gain))",
            "tests/test_app_pages.py::test_people_stand_among_the_rewards_where_their_ratings_are_held_out",
        ),
        (
            "of_one = [p for p in both.gold if p.after == after]",
            "of_one = [p for p in both.gold if p.after == after][:1]",
            "tests/test_app_pages.py::test_people_stand_among_the_rewards_where_their_ratings_are_held_out",
        ),
    ),
    *of(
        "ddpo/charts.py",
        (
            "value is not None and abs(value) <= chart.rounding",
            "abs(value or 0) <= chart.rounding",
            "tests/test_app_pages.py::test_what_is_0_so_far_is_marked",
        ),
        (
            'if metric == "ratio_mean" else {}',
            'if metric == "loss" else {}',
            "tests/test_app_pages.py::test_the_ratio_s_quarters_are_drawn_where_it_moves",
        ),
    ),
    *of(
        "app/views.py",
        ("{blind.stamp(store.folder)}/", "", "tests/test_app_pages.py::test_a_blind_test_against_the_base_model_is_a_point_of_a_chart"),
    ),
    *of(
        "ddpo/blind.py",
        (
            "if result.titles[0] == BASE else (total.b, total.a)",
            "if True else (total.b, total.a)",
            "test_tests_of_a_round_against_the_base_model_are_added_up_whichever_side_it_was",
        ),
    ),
    *of(
        "ddpo/monitor.py",
        ("energy[frequency > 0.25]", "energy[frequency < 0.25]", "test_noise_is_the_energy_above_half_of_nyquist"),
        ("apart = 0.5 * torch", "apart = torch", "test_pictures_of_a_prompt_are_apart_by_half_their_squared_distance"),
        ("< TOLD_BY", "< 2", "test_what_a_reward_pays_for_is_a_correlation_within_prompts"),
        ("unit @ unit.T / len(unit)", "unit @ unit.T", "test_the_vendi_score_counts_different_pictures"),
        ("(RewardError, OSError):", "(RewardError):", "test_a_run_that_an_older_version_watched_goes_on_with_a_vendi_score"),
        ("with policy.base() if number == 0 else", "with", "test_a_watched_run_has_its_series_and_its_pictures"),
        (", self.engine.averaged():", ":", "test_the_moving_average_is_what_is_watched"),
        ("            self._complete_base(reward)\n", "", "test_another_reward_is_compared_with_the_base_s_pictures_too"),
        ("    with policy.exact():\n", "    with policy.base():\n", "test_kl_is_the_closed_formula_whatever_the_batch"),
    ),
    *of(
        "ddpo/alarms.py",
        ("fmean(values) / base[prompt]", "fmean(values)", "test_a_prompt_s_diversity_is_a_share_of_its_own_base_s"),
        ("max(spread, LEAST_SPREAD)", "spread", "tests/test_monitor.py::test_metrics_are_means_moves_and_groups"),
        (
            "or -mean < sure(len(moved), 1 if absolute else rounds, PAID_CHANCE if paid else CHANCE) * error",
            "",
            "test_a_fall_within_its_error_is_no_sign",
        ),
        ("CHANCE = 1e-4", "CHANCE = 0.05", "test_chance_alone_seldom_makes_an_alarm"),
        ("student_t(chance / rounds, count - 1)", "student_t(chance, count - 1)", "test_chance_alone_makes_a_sign_in_one_long_run_of_fifty"),
        (
            "            if mean is not None and not own and",
            "            if mean is not None and",
            "test_a_height_that_was_asked_for_is_none_to_fall_from",
        ),
        ("return -1.0 if name in DAMAGE else 1.0", "return 1.0", "test_diversity_is_a_share_of_the_base_s_and_damage_is_beyond_it"),
        ("ALARM = 2.0", "ALARM = 1.5", "test_two_signs_or_one_twice_as_strong_make_an_alarm"),
        ("and not is_on(signs)]", "]", "test_the_best_round_has_the_highest_reward_while_no_alarm_is_on"),
        ("reward, *asked)", "reward)", "test_what_is_optimised_and_what_has_no_merit_is_no_sign"),
    ),
    *of(
        "ddpo/milestones.py",
        (
            "if first <= max(1, number))",
            "if first < max(1, number))",
            "tests/test_report.py::test_a_report_up_to_a_round_knows_nothing_of_later_ones",
        ),
        ("judged(store, up_to)", "judged(store)", "test_alarms_the_best_round_and_changes_of_reward_stand_at_their_rounds"),
        ("best and (alarms or", "best and (True or", "test_where_people_rate_and_all_is_well_no_round_is_called_best"),
    ),
    *of(
        "ddpo/gold.py",
        ("known = distances(watched(store)[0])", "known = distances(watched(store, up_to)[0])", "test_win_rates_lie_at_the_distance_of_their_rounds"),
        ("-d * np.log(d)]", "d * np.log(d)]", "test_a_known_curve_is_found_again"),
        ("math.exp(best - 1)", "math.exp(best)", "test_a_known_curve_is_found_again"),
        (
            "quantile = student_t(0.5 + SURE / 2, curve.points - 2) ** 2",
            "quantile = 0.1",
            "test_errors_and_interval_hold_the_truth_as_often_as_they_say",
        ),
        ("/ (len(known) - 2)", "/ len(known) ** 2", "test_errors_and_interval_hold_the_truth_as_often_as_they_say"),
        ("curve.beta <= 0 or square <= 0", "curve.beta == 0", "test_no_peak_is_told_where_none_is_known"),
        (" and math.isfinite(p.gain)]", "]", "test_no_peak_is_told_where_none_is_known"),
        ("math.sqrt(max(0.0, kl))", "max(0.0, kl)", "test_gains_are_the_pictures_own_in_the_base_s_deviations"),
        ('<= {"thumbs", "stars"}', "", "test_boards_are_gold_where_their_ratings_say_how_good_they_are"),
        ("or len(stretches) > 1", "", "test_a_run_has_both_while_its_reward_stays"),
        ("math.hypot(board.error, first.error)", "board.error", "test_people_s_ratings_are_held_out_by_the_boards_they_are_of"),
        ("reward, *DAMAGE, *NO_MERIT,", "reward, *DAMAGE,", "test_gold_is_what_nobody_optimises"),
        ("        known.pop(0, None)\n", "        pass\n", "test_win_rates_lie_at_the_distance_of_their_rounds"),
        ("[known[at] ** 2 for at in rounds]", "[known[at] for at in rounds]", "test_win_rates_lie_at_the_distance_of_their_rounds"),
    ),
    *of(
        "ddpo/result.py",
        ("by_rule.created_at > by_people.created_at", "False", "test_what_was_said_last_holds_by_people_or_by_the_rule"),
        ("and place.is_dir() else None", "else None", "test_a_checkpoint_that_is_gone_is_none_to_roll_back_to"),
        ("or result > number", "", "test_people_roll_back_and_take_it_back"),
    ),
    Mutation(
        "ddpo/export.py",
        "return number if number in places else max(places, default=None)",
        "return max(places, default=None)",
        ("tests/test_result.py::test_people_roll_back_and_take_it_back",),
    ),
    *[
        Mutation("ddpo/trainer.py", old, new, (f"tests/test_result.py::{test}",))
        for old, new, test in (
            ("            raise StopRun  # nobody", "            pass  # nobody", "test_people_are_not_asked_to_rate_what_is_given_up"),
            ("        if number != last:", "        if False:", "test_a_ruined_run_stops_rolls_back_and_measures_what_is_taken_away"),
            ("number = rolled_back(self.store) or last", "number = last", "test_a_ruined_run_stops_rolls_back_and_measures_what_is_taken_away"),
        )
    ],
    Mutation(
        "ddpo/alarms.py",
        " if alarm.began == alarm.round]",
        "]",
        ("tests/test_milestones.py::test_alarms_the_best_round_and_changes_of_reward_stand_at_their_rounds",),
    ),
    Mutation(
        "ddpo/trainer.py",
        "alarm is not None and alarm.began == number",
        "alarm is not None",
        ("tests/test_alarms.py::test_a_ruined_run_says_so_once_and_goes_on",),
    ),
    Mutation(
        "ddpo/trainer.py",
        'self.crew.together("load", place=PARENT)',
        "pass",
        ("tests/test_fork.py::test_a_fork_begins_with_the_weights_and_the_optimiser_s_state_of_its_round",),
    ),
    Mutation(
        "ddpo/policy.py",
        "parameter.data = parameter.data.to(autocast)",
        "pass",
        ("tests/test_monitor.py::test_kl_in_half_precision_is_that_of_float32_and_leaves_every_bit",),
    ),
    *of(
        "ddpo/policy.py",
        (
            'layer.scaling["default"] = scale * strength',
            'layer.scaling["default"] = strength',
            COMPARE + "test_a_strength_is_that_share_of_what_was_trained",
        ),
        ("torch.lerp(base, trained[name], strength)", "trained[name] * strength", COMPARE + "test_a_strength_is_that_share_of_what_was_trained"),
    ),
    *of(
        "ddpo/compare.py",
        (
            "base=self._policy.fingerprint, averaged=True",
            "base=self._policy.fingerprint",
            "test_with_a_moving_average_a_round_is_what_is_measured_and_taken_away",
        ),
        ("and self._weights != weights:", "and self._weights is None:", "test_new_weights_under_an_old_name_are_seen"),
        (
            "with policy.base() if state.is_base else",
            "with policy.base() if not state.round else",
            "test_a_lora_file_of_either_layout_is_a_state_over_the_run_s_base",
        ),
        ("(self._adapter != adapter and not state.is_base)", "False", "test_another_run_s_round_is_loaded_by_its_own_settings"),
    ),
    *of(
        "ddpo/states.py",
        (
            "self.identity(config), round(self.strength, 4)]",
            "self.identity(config)]",
            COMPARE + "test_a_picture_s_name_changes_with_what_determines_it_and_with_nothing_else",
        ),
        (
            "for name in OF_BASE}, base_files(config)]",
            "for name in OF_BASE}]",
            COMPARE + "test_a_picture_s_name_changes_with_what_determines_it_and_with_nothing_else",
        ),
    ),
    *of(
        "app/comparing.py",
        ("if free or beside]", "]", "test_beside_a_run_at_work_nothing_is_made_unless_somebody_said_so"),
        ("(now, beside)) | {p: w", "(now, beside)) or {p: w", "test_what_was_asked_for_last_is_made_first"),
        ("if error and stops == self._stops:", "if error:", "test_stop_gives_up_what_is_wanted_at_once"),
    ),
    *of(
        "ddpo/blind.py",
        ("(share + z**2 / (2 * n)) / shrink", "share", "test_the_interval_s_ends_are_the_roots_of_the_score_equation"),
        ("z**2 / (4 * n**2)", "z**2 / (4 * n)", "test_the_interval_s_ends_are_the_roots_of_the_score_equation"),
        ("2 * as_far / (1 << n)", "as_far / (1 << n)", "test_known_p_values"),
        ("range(fewer)", "range(fewer - 1)", "test_known_p_values"),
        ("return self.b / self.decided", "return self.b / (self.decided + self.tie)", "test_ties_and_bad_pairs_are_counted_and_left_out_of_the_rate"),
        ("if 2 * bad > len(said)", "if bad", "test_several_people_s_verdicts_are_one_of_each_pair"),
    ),
    *of(
        "app/blind.py",
        ('"ba"["ab".index(self.left)]', "self.left", BLIND + "test_the_pictures_of_a_pair_stand_where_the_verdict_says"),
        (
            'if self.left(rater, pair) == "a" else',
            'if self.left(rater, pair) == "b" else',
            BLIND + "test_the_pictures_of_a_pair_stand_where_the_verdict_says",
        ),
        (
            "if any(each.client_id == client_id",
            "if False and any(each.client_id == client_id",
            BLIND + "test_a_test_goes_on_where_it_stopped_and_an_answer_counts_once",
        ),
        ("if left != plan.shown(", "if False and left != plan.shown(", BLIND + "test_an_answer_to_what_another_rater_was_shown_is_refused"),
        (
            "if at != plan.place(rater, mine) and pair not in mine:",
            "if at > len(mine):",
            BLIND + "test_a_damaged_answer_is_given_once_more",
        ),
        ("first + i)", "first)", BLIND + "test_pairs_are_chosen_ahead_and_their_files_tell_nothing"),
        ("if self._answered(plan):", "if False and self._answered(plan):", BLIND + "test_only_a_test_that_nobody_has_answered_is_deleted"),
        ("if failure := _changed(", "if failure := str() and _changed(", BLIND + "test_pictures_of_weights_that_changed_since_are_not_made"),
        ("if _changed([Picture(", "if str() and _changed([Picture(", BLIND + "test_another_run_of_the_same_name_is_not_told_what_came_out"),
        ("if len(answers) == len(plan.pairs)}", "}", BLIND + "test_the_result_counts_pairs_not_people"),
        ('!= b"\\n":', '== b"":', BLIND + "test_a_line_is_added_after_what_a_crash_left"),
        (
            "titles = list(plan.titles) if done == len(plan.pairs) else None",
            "titles = list(plan.titles)",
            BLIND + "test_what_a_rater_sees_before_the_end_tells_nothing_of_the_sides",
        ),
    ),
    Mutation(
        "ddpo/policy.py", 'copy_(up / layer.scaling["default"])', "copy_(up)", ("tests/test_init_lora.py::test_a_run_begins_where_the_lora_is",)
    ),
)


def run_tests(folder: Path, tests: Sequence[str]) -> int:
    """pytest's exit code in a forked process, so that torch is imported once: 0 all passed, 1 some failed."""
    if (pid := os.fork()) == 0:
        os.chdir(folder)
        sys.path[0] = str(folder)
        sys.dont_write_bytecode = True  # a mutated file may be as long and as old as the one before
        out = os.open("pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--disable-plugin-autoload", "-p", "pytest_timeout", *tests])))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def survives(folder: Path, mutation: Mutation) -> bool:
    """Do the tests stay green with the line broken? That is bad."""
    file = folder / mutation.file
    source = file.read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1, f"{mutation.file}: {mutation.old!r} stands there {source.count(mutation.old)} times, not once"
    file.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        return run_tests(folder, mutation.tests) != 1
    finally:
        file.write_text(source, encoding="utf-8")


def main(words: Sequence[str]) -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    import diffusers  # noqa: F401 - imported here, shared by all forks
    import peft  # noqa: F401
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    chosen = [m for m in MUTATIONS if not words or any(w in m.file + m.old + m.new + m.tests[0] for w in words)]
    if not chosen:
        print(f"No mutation has any of {' '.join(words)} in it.", file=sys.stderr)
        return 2
    alive = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for name in COPIED:
            source = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy / name)
        if run_tests(copy, sorted({test for m in chosen for test in m.tests})) != 0:
            print((copy / "pytest.log").read_text()[-3000:], "\nThe tests fail before anything is broken.", file=sys.stderr)
            return 2
        for mutation in chosen:
            started = time.monotonic()
            bad = survives(copy, mutation)
            alive += [mutation] if bad else []
            verdict = "SURVIVES" if bad else "caught"
            print(f"{verdict:8} {time.monotonic() - started:5.1f} s  {mutation.file}: {mutation.old!r} -> {mutation.new!r}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutations are caught.")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
