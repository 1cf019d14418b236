"""What tests/reference/test_distributed.py checks on every rank of a group. Every rank runs the same lines."""
from .layers import (
    a_split_mlp_compiles_whole,
    adapters_learn_as_around_the_whole,
    dq_weights_are_expanded_on_request,
    gradients_are_those_of_the_whole,
    half_precision_is_as_near_as_partial_sums_allow,
    layouts_and_moves,
    other_modules_are_refused,
    parts_are_pieces_of_the_whole,
    styles_take_and_give_what_they_are_told,
)
from .loading import loading_reads_only_what_is_kept, loading_refuses_what_does_not_fit, plain_modules_are_loaded
from .models import mixtures_of_experts, transformers_models
from .operators import operators_on_dtensors
from .states import a_whole_state_is_taken_too, distributed_checkpoints_are_loaded_on_any_number_of_ranks, distributed_checkpoints_are_saved

ON_TWO = (
    parts_are_pieces_of_the_whole, layouts_and_moves, styles_take_and_give_what_they_are_told, gradients_are_those_of_the_whole,
    half_precision_is_as_near_as_partial_sums_allow, a_split_mlp_compiles_whole, distributed_checkpoints_are_saved,
    distributed_checkpoints_are_loaded_on_any_number_of_ranks, a_whole_state_is_taken_too, dq_weights_are_expanded_on_request,
    operators_on_dtensors, plain_modules_are_loaded, other_modules_are_refused,
)  # fmt: skip

WITH_PEFT = (adapters_learn_as_around_the_whole,)

WITH_TRANSFORMERS = (transformers_models, mixtures_of_experts, loading_reads_only_what_is_kept, loading_refuses_what_does_not_fit)

ON_FOUR = (styles_take_and_give_what_they_are_told, gradients_are_those_of_the_whole,
           distributed_checkpoints_are_loaded_on_any_number_of_ranks, plain_modules_are_loaded)  # fmt: skip
