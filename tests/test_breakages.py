"""The tests of the losses are worth something only if they fail when a loss is wrong: each breakage here is caught.

Every breakage is one change of the source text, made in a copy of the package; tests that are named beside it, and that
pass on the package as it is, must fail on the copy by an assertion. They are all judged by one process, which imports
distilkit afresh for each, because importing torch takes longer than everything else here.

Some mistakes that come to mind are none, and so are not here: in pairwise DML the pairs are all ordered ones, so that
taking student for teacher in every pair takes the same pairs, and a pair of a student with itself has a KL of zero that
is flat.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import distilkit

pytestmark = pytest.mark.long

PACKAGE = Path(distilkit.__file__).parent
TESTS = Path(__file__).parent


class Breakage(NamedTuple):
    """`old` stands exactly once in `file` and becomes `new`; every one of `tests` must then fail.

    No test of hypothesis is named: one that fails is first shrunk, which takes seconds, and what it draws is chance.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


# Tests that catch most of what is in their reach

BY_HAND = "test_methods_one.py::test_two_students_two_images_two_classes_by_hand"
ON_PAPER = "test_methods_one.py::test_gradients_equal_those_derived_on_paper[2-True-branches-True-True]"
NETWORKS_ON_PAPER = "test_methods_one.py::test_gradients_equal_those_derived_on_paper[2-True-networks-True-True]"
PULL = "test_methods_one.py::test_a_detached_target_pulls_each_student_by_its_distance_from_the_ensemble[True]"
ONE_MAP = "test_methods_one.py::test_each_term_reaches_exactly_the_tensors_in_the_map[{}-True]"
DETACHED_MAP = ONE_MAP.format("branches-True-True")
ATTACHED_MAP = ONE_MAP.format("branches-True-False")
MIXTURE = "test_methods_one.py::test_the_ensemble_is_the_gated_mixture_of_logits[{}]"
GATED_MIXTURE = MIXTURE.format("2-True-branches")
MIXED_WIDE = "test_methods_one.py::test_under_autocast_the_ensemble_is_mixed_in_single_precision"
LAYOUT = "test_methods_one.py::test_the_gate_pools_over_all_but_the_channels_wherever_they_stand[{}]"
SHARES = "test_mixing.py::test_whole_shares_are_labels[0.2]"
NARROW = "test_methods_dml.py::test_logits_in_bfloat16_have_the_losses_of_the_same_numbers_in_float32"
ALONE = "test_methods_one.py::test_baseline_and_independent_are_the_sum_of_cross_entropies[{}-float64]"

DML_BY_HAND = "test_methods_dml.py::test_three_students_two_images_two_classes_by_hand"
DML_ATTACHED = "test_methods_dml.py::test_a_student_whose_targets_are_attached_is_pushed_as_a_target_too[{}]"
DML_ENSEMBLE = "test_methods_dml.py::test_the_ensemble_is_the_mean_of_logits[3]"
DML_SMOOTHED = (
    "test_methods_dml.py::test_losses_and_all_gradients_equal_the_oracle"
    "[S3-B1-C2-branches-pairwise-detached-T3.0-w0.3-s0.1-float64]"
)

CL_ILR_BY_HAND = "test_methods_cl_ilr.py::test_three_students_one_image_two_classes_by_hand"
ONE_PART_IN_S = "test_methods_cl_ilr.py::test_the_trunk_gets_exactly_one_part_in_s_of_what_the_branches_send[3]"
REAL_GROUP = "test_methods_cl_ilr.py::test_in_a_real_group_the_shared_layers_get_one_part_in_s_and_the_branches_all[2]"
DIVIDED_ONCE = "test_methods_cl_ilr.py::test_losses_computed_twice_from_the_same_outputs_divide_only_once"
DIVIDED_FOR_ALL = "test_methods_cl_ilr.py::test_another_loss_on_the_same_logits_is_divided_as_well"
CL_ILR_ATTACHED = "test_methods_cl_ilr.py::test_a_student_is_pushed_as_a_target_only_where_targets_are_attached"
CL_ILR_ENSEMBLE = "test_methods_cl_ilr.py::test_the_ensemble_is_the_mean_of_logits[3]"
CL_ILR_SMOOTHED = (
    "test_methods_cl_ilr.py::test_logits_that_come_from_no_trunk_get_the_oracles_gradient"
    "[S2-B3-C10-attached-l1.0-d1.0-w0.3-T4.5-s0.1-float64]"
)

LOGITS_BY_HAND = "test_methods_okddip.py::test_two_peers_and_a_leader_by_hand[logits]"
PROBABILITIES_BY_HAND = "test_methods_okddip.py::test_two_peers_and_a_leader_by_hand[probabilities]"
GRADIENTS_BY_HAND = "test_methods_okddip.py::test_gradients_of_two_peers_and_a_leader_by_hand"
PENALTY_BY_HAND = "test_methods_okddip.py::test_the_confidence_penalty_by_hand"
OKDDIP_MAP = "test_methods_okddip.py::test_each_term_reaches_exactly_the_tensors_in_the_map[{}-logits-True-branches]"
FULL_MAP = OKDDIP_MAP.format("attention-full")
LEADER_DETACHED_MAP = OKDDIP_MAP.format("attention-leader-detached")
ATTENTION_ONLY_MAP = OKDDIP_MAP.format("attention-attention-only")
ATTENTION_ONLY_PULL = (
    "test_methods_okddip.py::test_attention_only_pulls_each_peer_by_its_distance_from_its_target_and_no_further[{}]"
)
WEIGHTS = "test_methods_okddip.py::test_the_weights_are_attentions_for_each_image[{}-True]"
PROJECTIONS = "test_methods_okddip.py::test_the_projections_have_an_eighth_of_the_features_and_no_bias[16-2]"
WITHOUT_PROJECTIONS = "test_methods_okddip.py::test_the_ablations_have_no_parameters[symmetric]"
APART = "test_methods_okddip.py::test_the_projections_start_at_random_and_apart"
NO_RAMP = "test_methods_okddip.py::test_with_a_ramp_of_zero_only_the_cross_entropy_trains[{}]"
OKDDIP_ENSEMBLE = (
    "test_methods_okddip.py::test_the_ensemble_is_the_mean_of_the_peers_logits_without_the_leader[attention-True]"
)
OKDDIP_WIDE = "test_methods_okddip.py::test_under_autocast_scores_and_mixtures_are_computed_in_single_precision[{}]"
RANDOM_ANEW = "test_methods_okddip.py::test_random_weights_come_from_the_global_stream_and_anew_at_every_call"
RANDOM_PER_IMAGE = "test_methods_okddip.py::test_random_weights_are_drawn_for_every_image"
RANDOM_NORMAL = "test_methods_okddip.py::test_random_weights_are_softmaxes_of_standard_normal_numbers"
OKDDIP_ORACLE = "test_methods_okddip.py::test_losses_and_all_gradients_equal_the_oracle[{}-float64]"
RANDOM_ORACLE = OKDDIP_ORACLE.format("A5-B5-C3-D15-branches-random-logits-full-T3.0-w0.3-s0.1")
MEAN_ORACLE = OKDDIP_ORACLE.format("A4-B5-C3-D15-networks-mean-probabilities-full-T4.5-w1.0-s0.1")

TAUGHT_BY_HAND = "test_methods_teacher.py::test_two_students_two_images_two_classes_by_hand"
TAUGHT_WITHOUT_RAMP = "test_methods_teacher.py::test_weight_one_and_temperature_three_are_the_defaults"
NOT_TAUGHT_BACK = "test_methods_teacher.py::test_the_teachers_logits_get_no_gradient[independent]"
SEVERAL_TEACHERS = "test_methods_teacher.py::test_several_classifiers_teach_the_mean_of_their_logits"
TEACHERS_WIDE = "test_methods_teacher.py::test_under_autocast_several_classifiers_are_averaged_in_single_precision"
FROZEN = "test_methods_teacher.py::test_a_teacher_only_ever_evaluates"
TRAINED_WEIGHT = "test_teacher.py::test_weight_and_ramp_of_the_teacher_are_its_own"
TRAINED_IMAGES = "test_teacher.py::test_the_teacher_sees_what_the_students_see"
TRAINED_TEMPERATURE = "test_teacher.py::test_temperature_of_the_teacher_is_its_own"

# The two terms that all share

LOSSES = "methods/losses.py"

IN_LOSSES = {
    "drops T squared": Breakage(
        LOSSES,
        "temperature**2 * kl_SBC",
        "kl_SBC",
        (PULL, BY_HAND, DML_BY_HAND, CL_ILR_BY_HAND, LOGITS_BY_HAND, PROBABILITIES_BY_HAND, TAUGHT_BY_HAND),
    ),
    "multiplies by T instead of T squared": Breakage(LOSSES, "temperature**2 *", "temperature *", (PULL, BY_HAND)),
    "swaps the KL's arguments": Breakage(
        LOSSES,
        "F.kl_div(log_q_SBC, target.expand_as(log_q_SBC),",
        "F.kl_div(target.expand_as(log_q_SBC), log_q_SBC,",
        (PULL, BY_HAND, DML_BY_HAND, CL_ILR_BY_HAND, LOGITS_BY_HAND, PROBABILITIES_BY_HAND, TAUGHT_BY_HAND),
    ),
    "leaves the target's temperature out": Breakage(LOSSES, "(target) / temperature", "(target)", (PULL, BY_HAND)),
    "leaves the students' temperature out": Breakage(
        LOSSES, "(logits_SBC) / temperature", "(logits_SBC)", (PULL, BY_HAND)
    ),
    "detaches every target": Breakage(
        LOSSES,
        "F.log_softmax(wide(target) / temperature",
        "F.log_softmax(wide(target).detach() / temperature",
        (ATTACHED_MAP, DML_ATTACHED.format("pairwise"), CL_ILR_ATTACHED, FULL_MAP),
    ),
    "pairs labels with other images": Breakage(
        LOSSES, "labels_B.repeat(students)", "labels_B.repeat_interleave(students)", (BY_HAND, ON_PAPER)
    ),
    "pairs the shares of classes with other images": Breakage(
        LOSSES, ".repeat(students, 1)", ".repeat_interleave(students, 0)", (SHARES,)
    ),
    "cross-entropy is a mean over students": Breakage(LOSSES, "return students * mean", "return mean", (BY_HAND,)),
    "cross-entropy is a sum over images": Breakage(
        LOSSES, "return students * mean", "return students * mean * labels_B.shape[0]", (BY_HAND, ON_PAPER)
    ),
    "KL is a mean over students": Breakage(
        LOSSES, "kl_SBC.sum() / logits_SBC.shape[1]", "kl_SBC.sum() / logits_SBC[..., 0].numel()", (PULL, BY_HAND)
    ),
    "KL is a sum over images": Breakage(LOSSES, "kl_SBC.sum() / logits_SBC.shape[1]", "kl_SBC.sum()", (PULL, BY_HAND)),
    "KL is a mean over classes": Breakage(
        LOSSES, "kl_SBC.sum() / logits_SBC.shape[1]", "kl_SBC.mean(-1).sum() / logits_SBC.shape[1]", (PULL, BY_HAND)
    ),
    "the others' mean includes oneself": Breakage(
        LOSSES,
        "(logits_SBC.sum(0, keepdim=True) - logits_SBC) / (students - 1)",
        "logits_SBC.mean(0, keepdim=True).expand_as(logits_SBC)",
        (DML_BY_HAND, CL_ILR_BY_HAND),
    ),
    "the others' mean is divided by S": Breakage(
        LOSSES, "/ (students - 1)", "/ students", (DML_BY_HAND, CL_ILR_BY_HAND)
    ),
    "the others' mean is their sum": Breakage(LOSSES, " / (students - 1)", "", (DML_BY_HAND, CL_ILR_BY_HAND)),
    "computes in bfloat16 what comes in bfloat16": Breakage(
        LOSSES,
        "return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()",
        "return logits",
        (NARROW,),
    ),
}

# ONE, and the students that are on their own

ONE = "methods/one.py"
BASELINE = "methods/baseline.py"
DETACH = "ensemble_BC.detach() if self.detach_target else ensemble_BC"
GATE = "F.softmax(F.relu(self.bn(self.fc(pooled_BD))), dim=-1)"
MIX = "(gate_BS.t().unsqueeze(-1) * outputs.logits_SBC).sum(0)"
GATE_INPUT = "self.gate(_gate_input(outputs, self.trunk_channels, self.widths_differ))"

IN_ONE = {
    "toggles detach": Breakage(
        ONE, DETACH, "ensemble_BC if self.detach_target else ensemble_BC.detach()", (DETACHED_MAP, ATTACHED_MAP)
    ),
    "never detaches": Breakage(ONE, DETACH, "ensemble_BC", (DETACHED_MAP,)),
    "always detaches": Breakage(ONE, DETACH, "ensemble_BC.detach()", (ATTACHED_MAP,)),
    "ignores the ramp": Breakage(ONE, 'ramp * terms["distillation"]', 'terms["distillation"]', (BY_HAND, ON_PAPER)),
    "ramps the ensemble's cross-entropy too": Breakage(
        ONE,
        'total = total + terms["ensemble_cross_entropy"]',
        'total = total + ramp * terms["ensemble_cross_entropy"]',
        (BY_HAND, ON_PAPER),
    ),
    "drops the ensemble's cross-entropy from the total": Breakage(
        ONE, 'total = total + terms["ensemble_cross_entropy"]', "pass", (BY_HAND, ON_PAPER)
    ),
    "ignores the temperature": Breakage(
        ONE,
        "distillation(target_BC, outputs.logits_SBC, self.temperature)",
        "distillation(target_BC, outputs.logits_SBC, 3.0)",
        (BY_HAND, ON_PAPER),
    ),
    "gate without batch norm": Breakage(ONE, GATE, "F.softmax(F.relu(self.fc(pooled_BD)), dim=-1)", (ON_PAPER,)),
    "gate without ReLU": Breakage(
        ONE, GATE, "F.softmax(self.bn(self.fc(pooled_BD)), dim=-1)", (BY_HAND, GATED_MIXTURE)
    ),
    "gate without softmax": Breakage(ONE, GATE, "F.relu(self.bn(self.fc(pooled_BD)))", (BY_HAND, GATED_MIXTURE)),
    "gate's softmax over images": Breakage(ONE, GATE, GATE.replace("dim=-1", "dim=0"), (BY_HAND, ON_PAPER)),
    "gate sends nothing into the trunk": Breakage(
        ONE,
        GATE_INPUT,
        "self.gate(_gate_input(outputs, self.trunk_channels, self.widths_differ).detach())",
        (DETACHED_MAP, BY_HAND),
    ),
    "gate's input is the largest pixel": Breakage(
        ONE, "trunk.mean(others) if others", "trunk.amax(others) if others", (BY_HAND, GATED_MIXTURE)
    ),
    "gate's input is the sum of pixels": Breakage(
        ONE, "trunk.mean(others) if others", "trunk.sum(others) if others", (BY_HAND, GATED_MIXTURE)
    ),
    "gate takes as many tokens as channels for channels": Breakage(
        ONE, "trunk.dim() == 4 and trunk.shape[1] == channels", "trunk.shape[1] == channels", (LAYOUT.format("tokens"),)
    ),
    "gate of networks reads the first one's features": Breakage(
        ONE,
        "torch.stack(outputs.features).mean(0)",
        "outputs.features[0]",
        (NETWORKS_ON_PAPER, MIXTURE.format("2-True-networks")),
    ),
    "gate of networks reads the sum of features": Breakage(
        ONE,
        "torch.stack(outputs.features).mean(0)",
        "torch.stack(outputs.features).sum(0)",
        (NETWORKS_ON_PAPER, MIXTURE.format("2-True-networks")),
    ),
    "gate of networks sends nothing into them": Breakage(
        ONE,
        "torch.stack(outputs.features).mean(0)",
        "torch.stack(outputs.features).mean(0).detach()",
        (NETWORKS_ON_PAPER, ONE_MAP.format("networks-True-True")),
    ),
    "mixes probabilities instead of logits": Breakage(
        ONE, MIX, "(gate_BS.t().unsqueeze(-1) * outputs.logits_SBC.softmax(-1)).sum(0).log()", (BY_HAND, GATED_MIXTURE)
    ),
    "gives students one another's weights": Breakage(
        ONE, MIX, MIX.replace("gate_BS", "gate_BS.flip(1)"), (BY_HAND, GATED_MIXTURE)
    ),
    "mixes in bfloat16 under autocast": Breakage(
        ONE, MIX, 'torch.einsum("bs,sbc->bc", gate_BS, outputs.logits_SBC)', (MIXED_WIDE,)
    ),
    "ensemble without a gate is the sum of logits": Breakage(
        ONE, "wide(outputs.logits_SBC).mean(0)", "outputs.logits_SBC.sum(0)", (MIXTURE.format("2-False-branches"),)
    ),
    "ignores label smoothing for the ensemble": Breakage(
        ONE,
        "cross_entropy(ensemble_BC[None], labels_B, self.label_smoothing)",
        "cross_entropy(ensemble_BC[None], labels_B)",
        (ON_PAPER,),
    ),
    "ignores label smoothing for the students": Breakage(
        ONE,
        "cross_entropy(outputs.logits_SBC, labels_B, self.label_smoothing)",
        "cross_entropy(outputs.logits_SBC, labels_B)",
        (ON_PAPER,),
    ),
}

IN_BASELINE = {
    "ramps the cross-entropy": Breakage(
        BASELINE,
        "MethodLosses(loss, ",
        "MethodLosses(ramp * loss, ",
        (ALONE.format("independent-2-branches-0.0"), ALONE.format("baseline-1-branches-0.0")),
    ),
    "ignores label smoothing": Breakage(
        BASELINE, "labels_B, self.label_smoothing)", "labels_B)", (ALONE.format("independent-2-branches-0.1"),)
    ),
    "ensemble is the first student": Breakage(
        BASELINE,
        "outputs.logits_SBC.mean(0)",
        "outputs.logits_SBC[0]",
        ("test_methods_one.py::test_the_ensemble_of_independent_students_is_the_mean_of_logits[3-branches]",),
    ),
}

# DML

DML = "methods/dml.py"
DML_DETACH = "logits_SBC.detach() if self.options.detach_targets else logits_SBC"
PAIRS = "distillation(targets_SBC[list(teachers)], logits_SBC[list(students)], self.options.temperature)"
LEAVE_ONE_OUT = "distillation(leave_one_out_mean(targets_SBC), logits_SBC, self.options.temperature)"

IN_DML = {
    "does not divide by S - 1": Breakage(DML, "pairs / (len(logits_SBC) - 1)", "pairs", (DML_BY_HAND,)),
    "divides by S": Breakage(DML, "pairs / (len(logits_SBC) - 1)", "pairs / len(logits_SBC)", (DML_BY_HAND,)),
    "divides the mean of the others by S - 1 again": Breakage(
        DML, LEAVE_ONE_OUT, f"{LEAVE_ONE_OUT} / (len(logits_SBC) - 1)", (DML_BY_HAND,)
    ),
    "swaps targets and students": Breakage(
        DML,
        PAIRS,
        "distillation(logits_SBC[list(students)], targets_SBC[list(teachers)], self.options.temperature)",
        (DML_BY_HAND,),
    ),
    "swaps students and the mean of the others": Breakage(
        DML,
        LEAVE_ONE_OUT,
        "distillation(logits_SBC, leave_one_out_mean(targets_SBC), self.options.temperature)",
        (DML_BY_HAND,),
    ),
    "takes each pair in one direction only": Breakage(
        DML,
        "permutations(range(len(logits_SBC)), 2)",
        "(pair for pair in permutations(range(len(logits_SBC)), 2) if pair[0] < pair[1])",
        (DML_BY_HAND,),
    ),
    "never detaches": Breakage(DML, DML_DETACH, "logits_SBC", (DML_BY_HAND,)),
    "always detaches": Breakage(
        DML,
        DML_DETACH,
        "logits_SBC.detach()",
        (DML_ATTACHED.format("pairwise"), DML_ATTACHED.format("leave-one-out-mean")),
    ),
    "toggles detach": Breakage(
        DML, DML_DETACH, "logits_SBC if self.options.detach_targets else logits_SBC.detach()", (DML_BY_HAND,)
    ),
    "detaches the students instead of the targets": Breakage(
        DML,
        PAIRS,
        "distillation(logits_SBC[list(teachers)], targets_SBC[list(students)], self.options.temperature)",
        (DML_BY_HAND,),
    ),
    "the mean of the others includes oneself": Breakage(
        DML, "leave_one_out_mean(targets_SBC)", "targets_SBC.mean(0)", (DML_BY_HAND,)
    ),
    "toggles the targets": Breakage(
        DML, 'self.options.target == "pairwise"', 'self.options.target != "pairwise"', (DML_BY_HAND,)
    ),
    "ignores the temperature between pairs": Breakage(
        DML, PAIRS, PAIRS.replace("self.options.temperature", "3.0"), (DML_BY_HAND,)
    ),
    "ignores the temperature of the others' mean": Breakage(
        DML, LEAVE_ONE_OUT, LEAVE_ONE_OUT.replace("self.options.temperature", "3.0"), (DML_BY_HAND,)
    ),
    "ignores the ramp": Breakage(DML, "labels + ramp * mutual", "labels + mutual", (DML_BY_HAND,)),
    "ramps the cross-entropy too": Breakage(DML, "labels + ramp * mutual", "ramp * (labels + mutual)", (DML_BY_HAND,)),
    "ignores label smoothing": Breakage(DML, "labels_B, self.label_smoothing)", "labels_B)", (DML_SMOOTHED,)),
    "ensemble is the first student": Breakage(
        DML, "outputs.logits_SBC.mean(0)", "outputs.logits_SBC[0]", (DML_ENSEMBLE,)
    ),
}

# CL-ILR

CL_ILR = "methods/cl_ilr.py"
RESCALE = "outputs.trunk.register_hook(lambda gradient: gradient / students)"
CL_ILR_TARGET = "leave_one_out_mean(logits_SBC.detach() if self.options.detach_target else logits_SBC)"
CL_ILR_TOTAL = "self.options.label_weight * labels + self.options.distillation_weight * ramp * others"

IN_CL_ILR = {
    "does not divide the trunk's gradient": Breakage(
        CL_ILR,
        RESCALE,
        RESCALE.replace(" / students", ""),
        (CL_ILR_BY_HAND, ONE_PART_IN_S, REAL_GROUP, DIVIDED_FOR_ALL),
    ),
    "divides it by S - 1": Breakage(
        CL_ILR, RESCALE, RESCALE.replace("students", "(students - 1)"), (CL_ILR_BY_HAND, ONE_PART_IN_S, REAL_GROUP)
    ),
    "divides it twice": Breakage(
        CL_ILR, RESCALE, RESCALE.replace("students", "students**2"), (CL_ILR_BY_HAND, ONE_PART_IN_S, REAL_GROUP)
    ),
    "divides it anew for every look at the losses": Breakage(
        CL_ILR, ' and not hasattr(outputs.trunk, "is_rescaled")', "", (DIVIDED_ONCE,)
    ),
    "divides the branches' gradients": Breakage(
        CL_ILR, RESCALE, RESCALE.replace("outputs.trunk", "logits_SBC"), (CL_ILR_BY_HAND, ONE_PART_IN_S, REAL_GROUP)
    ),
    "target includes oneself": Breakage(
        CL_ILR,
        CL_ILR_TARGET,
        "(logits_SBC.detach() if self.options.detach_target else logits_SBC).mean(0)",
        (CL_ILR_BY_HAND,),
    ),
    "swaps targets and students": Breakage(
        CL_ILR, "distillation(target_SBC, logits_SBC,", "distillation(logits_SBC, target_SBC,", (CL_ILR_BY_HAND,)
    ),
    "never detaches": Breakage(CL_ILR, CL_ILR_TARGET, "leave_one_out_mean(logits_SBC)", (CL_ILR_BY_HAND,)),
    "always detaches": Breakage(CL_ILR, CL_ILR_TARGET, "leave_one_out_mean(logits_SBC.detach())", (CL_ILR_ATTACHED,)),
    "toggles detach": Breakage(
        CL_ILR,
        CL_ILR_TARGET,
        "leave_one_out_mean(logits_SBC if self.options.detach_target else logits_SBC.detach())",
        (CL_ILR_BY_HAND,),
    ),
    "swaps the weights": Breakage(
        CL_ILR,
        CL_ILR_TOTAL,
        "self.options.distillation_weight * labels + self.options.label_weight * ramp * others",
        (CL_ILR_BY_HAND,),
    ),
    "ignores the cross-entropy's weight": Breakage(
        CL_ILR, "self.options.label_weight * labels", "labels", (CL_ILR_BY_HAND,)
    ),
    "ignores the distillation's weight": Breakage(
        CL_ILR, "self.options.distillation_weight * ramp", "ramp", (CL_ILR_BY_HAND,)
    ),
    "weighs the terms that it reports": Breakage(
        CL_ILR,
        '"distillation": others}',
        '"distillation": self.options.distillation_weight * others}',
        (CL_ILR_BY_HAND,),
    ),
    "ignores the temperature": Breakage(
        CL_ILR, "logits_SBC, self.options.temperature)", "logits_SBC, 3.0)", (CL_ILR_BY_HAND,)
    ),
    "ignores the ramp": Breakage(CL_ILR, " * ramp * others", " * others", (CL_ILR_BY_HAND,)),
    "ignores label smoothing": Breakage(CL_ILR, "labels_B, self.label_smoothing)", "labels_B)", (CL_ILR_SMOOTHED,)),
    "ensemble is the first student": Breakage(
        CL_ILR, "outputs.logits_SBC.mean(0)", "outputs.logits_SBC[0]", (CL_ILR_ENSEMBLE,)
    ),
}

# OKDDip

OKDDIP = "methods/okddip.py"
SCORES = "(wide(queries)[:, None] * wide(keys)[None]).sum(-1)"
QUERIES_AND_KEYS = """\
        queries = h_ABD if self.W_L is None else self.W_L(h_ABD)
        keys = h_ABD if self.W_E is None else self.W_E(h_ABD)
"""
PEERS_DISTILLATION = "distillation(self._peer_targets(outputs), peers_ABC, options.temperature)"
LEADERS_DISTILLATION = "distillation(target_BC, leader_1BC, options.temperature)"
LEADERS_TARGET = "self._mixed(peers_ABC, _equal_shares(peers_ABC, 1))[0]"
DETACHED_PEERS = """\
        if self.options.target_gradient == "attention-only":
            peers_ABC = peers_ABC.detach()
"""

IN_OKDDIP = {
    "transposes the attention": Breakage(
        OKDDIP,
        f"{SCORES}.log_softmax(1)",
        f"{SCORES}.log_softmax(1).transpose(0, 1)",
        (GRADIENTS_BY_HAND, WEIGHTS.format("attention")),
    ),
    "swaps W_L and W_E": Breakage(
        OKDDIP,
        QUERIES_AND_KEYS,
        QUERIES_AND_KEYS.replace("W_L", "W_?").replace("W_E", "W_L").replace("W_?", "W_E"),
        (LOGITS_BY_HAND, PROBABILITIES_BY_HAND, GRADIENTS_BY_HAND),
    ),
    "softmax over those who attend": Breakage(
        OKDDIP, f"{SCORES}.log_softmax(1)", f"{SCORES}.log_softmax(0)", (LOGITS_BY_HAND, WEIGHTS.format("attention"))
    ),
    "softmax over images": Breakage(
        OKDDIP, f"{SCORES}.log_softmax(1)", f"{SCORES}.log_softmax(2)", (LOGITS_BY_HAND, WEIGHTS.format("attention"))
    ),
    "scales scores by the root of the projections' width": Breakage(
        OKDDIP,
        f"{SCORES}.log_softmax(1)",
        f"({SCORES} / queries.shape[-1] ** 0.5).log_softmax(1)",
        (WEIGHTS.format("attention"),),
    ),
    "scales scores by the root of the features' width": Breakage(
        OKDDIP,
        f"{SCORES}.log_softmax(1)",
        f"({SCORES} / h_ABD.shape[-1] ** 0.5).log_softmax(1)",
        (LOGITS_BY_HAND, WEIGHTS.format("attention")),
    ),
    "means over the projections' width": Breakage(
        OKDDIP,
        f"{SCORES}.log_softmax(1)",
        f"{SCORES.replace('.sum', '.mean')}.log_softmax(1)",
        (WEIGHTS.format("attention"),),
    ),
    "computes scores in bfloat16 under autocast": Breakage(
        OKDDIP, SCORES, 'torch.einsum("abd,cbd->acb", wide(queries), wide(keys))', (OKDDIP_WIDE.format("logits"),)
    ),
    "mixes in bfloat16 under autocast": Breakage(
        OKDDIP,
        "(log_alpha_NAB.exp()[..., None] * wide(peers_ABC)[None]).sum(1)",
        'torch.einsum("nab,abc->nbc", log_alpha_NAB.exp(), wide(peers_ABC))',
        (OKDDIP_WIDE.format("logits"),),
    ),
    "nobody attends to oneself": Breakage(
        OKDDIP,
        f"{SCORES}.log_softmax(1)",
        f"({SCORES} - 1e9 * torch.eye(len(h_ABD), dtype=h_ABD.dtype)[..., None]).log_softmax(1)",
        (LOGITS_BY_HAND, WEIGHTS.format("attention")),
    ),
    "reports the attention transposed": Breakage(
        OKDDIP, ".exp().permute(2, 0, 1)", ".exp().permute(2, 1, 0)", (WEIGHTS.format("attention"),)
    ),
    "projects with W_L alone": Breakage(
        OKDDIP, "else self.W_E(h_ABD)", "else self.W_L(h_ABD)", (LOGITS_BY_HAND, GRADIENTS_BY_HAND)
    ),
    "shares one projection": Breakage(
        OKDDIP,
        "self.W_E = nn.Linear(width, width // REDUCTION, bias=False)",
        "self.W_E = self.W_L",
        (PROJECTIONS, APART),
    ),
    "starts both projections alike": Breakage(
        OKDDIP,
        "self.W_E = nn.Linear(width, width // REDUCTION, bias=False)",
        "self.W_E = __import__('copy').deepcopy(self.W_L)",
        (APART,),
    ),
    "gives a projection a bias": Breakage(
        OKDDIP,
        "self.W_E = nn.Linear(width, width // REDUCTION, bias=False)",
        "self.W_E = nn.Linear(width, width // REDUCTION)",
        (PROJECTIONS,),
    ),
    "learns the symmetric weights": Breakage(
        OKDDIP,
        'if options.peer_targets == "attention":',
        'if options.peer_targets in ("attention", "symmetric"):',
        (WITHOUT_PROJECTIONS, WEIGHTS.format("symmetric")),
    ),
    "attends to the leader as to a peer": Breakage(
        OKDDIP,
        PEERS_DISTILLATION,
        "distillation(self._peer_targets(outputs._replace(members=('',) * len(outputs.members)))[:count], peers_ABC, "
        "options.temperature)",
        (LOGITS_BY_HAND, FULL_MAP),
    ),
    "the leader learns among the peers": Breakage(
        OKDDIP,
        PEERS_DISTILLATION,
        "distillation(self._peer_targets(outputs._replace(members=('',) * len(outputs.members))), outputs.logits_SBC, "
        "options.temperature)",
        (LOGITS_BY_HAND, FULL_MAP),
    ),
    "the leader learns from the mean of the peers' targets": Breakage(
        OKDDIP, LEADERS_TARGET, "self._peer_targets(outputs).mean(0)", (FULL_MAP, ATTENTION_ONLY_PULL.format("logits"))
    ),
    "the leader learns from the first peer": Breakage(OKDDIP, LEADERS_TARGET, "peers_ABC[0]", (LOGITS_BY_HAND,)),
    "the leader learns from the last mixture": Breakage(
        OKDDIP, LEADERS_TARGET, "self._peer_targets(outputs)[-1]", (LOGITS_BY_HAND,)
    ),
    "the leader learns from the mean of all students": Breakage(
        OKDDIP,
        LEADERS_TARGET,
        LEADERS_TARGET.replace("peers_ABC", "outputs.logits_SBC"),
        (LOGITS_BY_HAND, PROBABILITIES_BY_HAND),
    ),
    "the leader learns from the sum of the peers": Breakage(OKDDIP, "-math.log(count)", "0.0", (LOGITS_BY_HAND,)),
    "the leader always learns from mixed logits": Breakage(
        OKDDIP, LEADERS_TARGET, "peers_ABC.mean(0)", (PROBABILITIES_BY_HAND,)
    ),
    "toggles the mixture": Breakage(
        OKDDIP, 'self.options.mix == "logits"', 'self.options.mix != "logits"', (LOGITS_BY_HAND, PROBABILITIES_BY_HAND)
    ),
    "mixes probabilities at T = 1": Breakage(
        OKDDIP,
        "F.log_softmax(wide(peers_ABC) / temperature, dim=-1)",
        "F.log_softmax(wide(peers_ABC), dim=-1)",
        (PROBABILITIES_BY_HAND,),
    ),
    "softens mixed probabilities again": Breakage(
        OKDDIP, "return temperature * (log_alpha", "return (log_alpha", (PROBABILITIES_BY_HAND,)
    ),
    "mixes log-probabilities": Breakage(
        OKDDIP,
        "(log_alpha_NAB[..., None] + log_q_ABC[None]).logsumexp(1)",
        "(log_alpha_NAB.exp()[..., None] * log_q_ABC[None]).sum(1)",
        (PROBABILITIES_BY_HAND,),
    ),
    "detaches the peers' targets as a whole": Breakage(
        OKDDIP,
        "distillation(self._peer_targets(outputs), ",
        "distillation(self._peer_targets(outputs).detach(), ",
        (FULL_MAP, GRADIENTS_BY_HAND),
    ),
    "attention-only does not detach the features": Breakage(
        OKDDIP,
        'h.detach() if self.options.target_gradient == "attention-only" else h',
        "h",
        (ATTENTION_ONLY_MAP, GRADIENTS_BY_HAND),
    ),
    "attention-only does not detach the logits": Breakage(
        OKDDIP, DETACHED_PEERS, "", (ATTENTION_ONLY_PULL.format("logits"), GRADIENTS_BY_HAND)
    ),
    "attention-only does not detach the leader's target": Breakage(
        OKDDIP,
        'options.target_gradient != "full"',
        'options.target_gradient == "leader-detached"',
        (ATTENTION_ONLY_MAP, GRADIENTS_BY_HAND),
    ),
    "leader-detached does not detach": Breakage(
        OKDDIP,
        'options.target_gradient != "full"',
        'options.target_gradient == "attention-only"',
        (LEADER_DETACHED_MAP, GRADIENTS_BY_HAND),
    ),
    "leader-detached detaches the peers' targets": Breakage(
        OKDDIP, DETACHED_PEERS, DETACHED_PEERS.replace('== "attention-only"', '!= "full"'), (GRADIENTS_BY_HAND,)
    ),
    "leader-detached detaches the features": Breakage(
        OKDDIP,
        'h.detach() if self.options.target_gradient == "attention-only" else h',
        'h.detach() if self.options.target_gradient != "full" else h',
        (LEADER_DETACHED_MAP, GRADIENTS_BY_HAND),
    ),
    "always detaches the leader's target": Breakage(
        OKDDIP, 'options.target_gradient != "full"', "True", (FULL_MAP, GRADIENTS_BY_HAND)
    ),
    "rewards confidence": Breakage(
        OKDDIP, "-(options.temperature**2) * entropy", "options.temperature**2 * entropy", (PENALTY_BY_HAND,)
    ),
    "drops T squared from the confidence penalty": Breakage(
        OKDDIP, "-(options.temperature**2) * entropy", "-entropy", (PENALTY_BY_HAND,)
    ),
    "penalises confidence at T = 1": Breakage(
        OKDDIP,
        "F.log_softmax(wide(peers_ABC) / options.temperature, dim=-1)",
        "F.log_softmax(wide(peers_ABC), dim=-1)",
        (PENALTY_BY_HAND,),
    ),
    "penalises the mean over peers": Breakage(OKDDIP, ".sum(-1).mean(1).sum()", ".sum(-1).mean()", (PENALTY_BY_HAND,)),
    "penalises the leader's confidence": Breakage(
        OKDDIP,
        "F.log_softmax(wide(peers_ABC) / options.temperature, dim=-1)",
        "F.log_softmax(wide(outputs.logits_SBC) / options.temperature, dim=-1)",
        (PENALTY_BY_HAND,),
    ),
    "drops T squared among peers": Breakage(
        OKDDIP,
        PEERS_DISTILLATION,
        f"{PEERS_DISTILLATION} / options.temperature**2",
        (LOGITS_BY_HAND, GRADIENTS_BY_HAND),
    ),
    "drops T squared for the leader": Breakage(
        OKDDIP,
        LEADERS_DISTILLATION,
        f"{LEADERS_DISTILLATION} / options.temperature**2",
        (LOGITS_BY_HAND, GRADIENTS_BY_HAND),
    ),
    "ignores the temperature among peers": Breakage(
        OKDDIP, PEERS_DISTILLATION, PEERS_DISTILLATION.replace("options.temperature", "3.0"), (LOGITS_BY_HAND,)
    ),
    "ignores the temperature for the leader": Breakage(
        OKDDIP, LEADERS_DISTILLATION, LEADERS_DISTILLATION.replace("options.temperature", "3.0"), (LOGITS_BY_HAND,)
    ),
    "has the leader in the ensemble": Breakage(
        OKDDIP,
        "outputs.logits_SBC[: len(self.peers(outputs.members))].mean(0)",
        "outputs.logits_SBC.mean(0)",
        (LOGITS_BY_HAND, OKDDIP_ENSEMBLE),
    ),
    "ignores the ramp": Breakage(
        OKDDIP,
        "+ ramp * distilled",
        "+ distilled",
        (LOGITS_BY_HAND, NO_RAMP.format("attention"), NO_RAMP.format("entropy")),
    ),
    "ignores the ramp for the leader": Breakage(
        OKDDIP,
        "+ ramp * distilled",
        '+ ramp * distilled + (1 - ramp) * terms["leader_distillation"]',
        (LOGITS_BY_HAND, NO_RAMP.format("attention")),
    ),
    "the leader does not learn from labels": Breakage(
        OKDDIP,
        "cross_entropy(outputs.logits_SBC, labels_B,",
        "cross_entropy(peers_ABC, labels_B,",
        (LOGITS_BY_HAND, FULL_MAP),
    ),
    "ignores label smoothing": Breakage(OKDDIP, "labels_B, self.label_smoothing)", "labels_B)", (MEAN_ORACLE,)),
    "random weights do not sum to one for a peer": Breakage(
        OKDDIP,
        "expand(count, count, images)).log_softmax(1)",
        "expand(count, count, images)).log_softmax(0)",
        (RANDOM_ORACLE,),
    ),
    "random weights are uniform numbers": Breakage(
        OKDDIP, "torch.randn_like(", "torch.rand_like(", (RANDOM_NORMAL, RANDOM_ORACLE)
    ),
    "random weights are the same for all images": Breakage(
        OKDDIP,
        "expand(count, count, images)).log_softmax(1)",
        "expand(count, count, images)).log_softmax(1)[..., :1].expand(count, count, images)",
        (RANDOM_PER_IMAGE, RANDOM_NORMAL),
    ),
    "random weights are drawn once and for all": Breakage(
        OKDDIP,
        "torch.randn_like(wide(peers_ABC)[..., 0].expand(count, count, images)).log_softmax(1)",
        "torch.randn(count, count, images, generator=torch.Generator().manual_seed(0)).log_softmax(1)",
        (RANDOM_ANEW,),
    ),
}

# A teacher beside any method

LEARNER = "learners/learner.py"
TEACHER = "learners/teacher.py"
TRAINER, UPDATE = "training/trainer.py", "training/update.py"
TAUGHT = "distillation(teacher_logits.detach(), outputs.logits_SBC, teacher_temperature)"

IN_TEACHER = {
    "ramps the teacher's term": Breakage(
        LEARNER, "total + teacher_weight * taught", "total + ramp * teacher_weight * taught", (TAUGHT_WITHOUT_RAMP,)
    ),
    "ignores the teacher's weight": Breakage(
        LEARNER, "total + teacher_weight * taught", "total + taught", (TAUGHT_BY_HAND,)
    ),
    "reports the teacher's term weighted": Breakage(
        LEARNER, '"teacher": taught}', '"teacher": teacher_weight * taught}', (TAUGHT_BY_HAND,)
    ),
    "teaches the first student alone": Breakage(
        LEARNER, TAUGHT, TAUGHT.replace("logits_SBC", "logits_SBC[:1]"), (TAUGHT_BY_HAND, TAUGHT_WITHOUT_RAMP)
    ),
    "teaches the mean of students": Breakage(
        LEARNER, TAUGHT, f"{TAUGHT} / len(outputs.logits_SBC)", (TAUGHT_BY_HAND, TAUGHT_WITHOUT_RAMP)
    ),
    "drops T squared from the teacher's term": Breakage(
        LEARNER, TAUGHT, f"{TAUGHT} / teacher_temperature**2", (TAUGHT_BY_HAND, TAUGHT_WITHOUT_RAMP)
    ),
    "ignores the teacher's temperature": Breakage(
        LEARNER, TAUGHT, TAUGHT.replace("teacher_temperature", "3.0"), (TAUGHT_BY_HAND,)
    ),
    "swaps teacher and students": Breakage(
        LEARNER,
        TAUGHT,
        "distillation(outputs.logits_SBC, teacher_logits.detach().expand_as(outputs.logits_SBC), teacher_temperature)",
        (TAUGHT_BY_HAND, TAUGHT_WITHOUT_RAMP),
    ),
    "sends gradient to the teacher": Breakage(LEARNER, "teacher_logits.detach()", "teacher_logits", (NOT_TAUGHT_BACK,)),
    "leaves the method's own loss out": Breakage(
        LEARNER, "total + teacher_weight", "teacher_weight", (TAUGHT_BY_HAND,)
    ),
    "starts the teacher in train mode": Breakage(TEACHER, "super().train(False)", "super().train(True)", (FROZEN,)),
    "lets train() wake the teacher": Breakage(
        TEACHER, "        return self\n", "        return super().train(mode)\n", (FROZEN,)
    ),
    "lets the teacher's parameters learn": Breakage(TEACHER, "self.requires_grad_(False)", "pass", (FROZEN,)),
    "computes gradients through the teacher": Breakage(TEACHER, "    @torch.no_grad()\n", "", (FROZEN,)),
    "has the first of several teachers teach": Breakage(TEACHER, "]).mean(0)", "])[0]", (SEVERAL_TEACHERS,)),
    "adds several teachers' logits up": Breakage(TEACHER, "]).mean(0)", "]).sum(0)", (SEVERAL_TEACHERS,)),
    "averages several teachers' probabilities": Breakage(
        TEACHER, "]).mean(0)", "]).softmax(-1).mean(0).log()", (SEVERAL_TEACHERS,)
    ),
    "averages several teachers in bfloat16 under autocast": Breakage(
        TEACHER, "classifier(images).float()", "classifier(images)", (TEACHERS_WIDE,)
    ),
    "trains without the teacher's weight": Breakage(
        TRAINER, "return section.weight * schedule.ramp(", "return schedule.ramp(", (TRAINED_WEIGHT,)
    ),
    "ramps the teacher with the method": Breakage(
        TRAINER, "steps_per_epoch, rampup_epochs)", "steps_per_epoch, self.rampup_epochs)", (TRAINED_WEIGHT,)
    ),
    "shows the teacher other images": Breakage(
        UPDATE, "self.teacher(images)", "self.teacher(images.flip(3))", (TRAINED_IMAGES,)
    ),
    "trains at another temperature of the teacher": Breakage(
        UPDATE, '"teacher_temperature": section.temperature', '"teacher_temperature": 3.0', (TRAINED_TEMPERATURE,)
    ),
}

BREAKAGES: dict[str, Breakage] = {
    f"{part}: {name}": breakage
    for part, breakages in {
        "losses": IN_LOSSES,
        "one": IN_ONE,
        "independent": IN_BASELINE,
        "dml": IN_DML,
        "cl-ilr": IN_CL_ILR,
        "okddip": IN_OKDDIP,
        "teacher": IN_TEACHER,
    }.items()
    for name, breakage in breakages.items()
}

JUDGE = """
import contextlib, faulthandler, gc, json, os, sys
from importlib.util import cache_from_source
from pathlib import Path

import hypothesis, pydantic, pytest, torch

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # What pytest prints goes to the log.
folder, tests = map(Path, sys.argv[1:])
ours = {"distilkit", *(file.stem for file in tests.glob("*.py"))}
options = ["-q", "--tb=short", "--noconftest", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestWarning"]
sys.path.insert(0, str(folder))


class Heard:
    def __init__(self):
        self.passed, self.failed = [], {}

    def pytest_runtest_logreport(self, report):
        file, _, test = report.nodeid.partition("::")
        name = f"{Path(file).name}::{test}"
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.failed[name] = crash.message if crash else str(report.longrepr)
        elif report.when == "call":
            self.passed.append(name)


@contextlib.contextmanager
def broken(file, source):
    def put(text):
        file.write_text(text, encoding="utf-8")
        Path(cache_from_source(file)).unlink(missing_ok=True)  # Its time stamp counts seconds.

    sound = file.read_text(encoding="utf-8")
    put(source)
    yield
    put(sound)


for line in sys.stdin:
    faulthandler.dump_traceback_later(300, exit=True)
    selection, file, source = json.loads(line)
    for module in [m for m in sys.modules if m.partition(".")[0] in ours]:
        del sys.modules[module]
    # What stays from before need not be looked through whenever pytest collects garbage, after every session.
    gc.collect()
    gc.freeze()
    heard = Heard()
    with broken(folder / "distilkit" / file, source) if file else contextlib.nullcontext():
        status = pytest.main([*options, *(f"{tests}/{test}" for test in selection)], plugins=[heard])
    package = sys.modules["distilkit"].__file__
    verdict = {"status": int(status), "package": package, "passed": heard.passed, "failed": heard.failed}
    print(json.dumps(verdict), file=answers, flush=True)
    faulthandler.cancel_dump_traceback_later()
"""


class Judge:
    """A process that runs named tests on a copy of the package in `folder`, which may have a breakage in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log.txt"
        shutil.copytree(PACKAGE, folder / "distilkit", ignore=shutil.ignore_patterns("__pycache__"))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", JUDGE, str(folder), str(TESTS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                text=True,
            )

    def verdict(self, tests: Sequence[str], file: str = "", source: str = "") -> dict[str, Any]:
        """`status`, `passed` and `failed` of these tests where `source` stands in `file`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([tests, file, source]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        verdict: dict[str, Any] = json.loads(line)
        assert Path(verdict["package"]) == self.folder / "distilkit" / "__init__.py"
        return verdict


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    """One for every test process, so that several share the work."""
    judge = Judge(tmp_path_factory.mktemp("breakages"))
    with judge.process:
        yield judge


def test_unbroken_losses_pass_every_test_that_is_named_here(judge: Judge) -> None:
    every_test = {test for breakage in BREAKAGES.values() for test in breakage.tests}
    verdict = judge.verdict(sorted(every_test))
    assert verdict["failed"] == {}
    assert verdict["status"] == 0
    assert set(verdict["passed"]) == every_test


def chosen() -> set[str]:
    """A fourth of them, from every part, for every run of the tests: each is a session of pytest that imports anew."""
    parts: dict[str, list[str]] = {}
    for name in BREAKAGES:
        parts.setdefault(name.partition(":")[0], []).append(name)
    return {name for names in parts.values() for name in names[::4]}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in chosen() else pytest.mark.long) for name in BREAKAGES]
)
def test_a_named_test_fails_on_a_loss_that(name: str, judge: Judge) -> None:
    file, old, new, tests = BREAKAGES[name]
    source = (PACKAGE / file).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} must stand exactly once in {file}"
    verdict = judge.verdict(tests, file, source.replace(old, new))
    assert verdict["status"] == 1
    assert set(verdict["failed"]) == set(tests)
    for test, message in verdict["failed"].items():
        assert message.startswith(("AssertionError", "assert ")), f"{test} failed for another reason: {message}"
