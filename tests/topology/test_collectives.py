"""Collectives of programs as compilers for TPU, GPU and CPU write them, with sizes and counts worked out by hand."""

import numpy as np
import pytest

from lmjax.topology.collectives import Collective, _groups, collectives

# A loop over microbatches, whose count is known when it runs, around one over 3 layers; of a TPU.
TPU = """\
HloModule jit_update, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%start (p: bf16[1,8,16]) -> (bf16[1,8,16], bf16[1,32,16]) {
  %p = bf16[1,8,16]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1,32,16]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={1}, frontend_attributes={chain_id="3"}
  ROOT %c = (bf16[1,8,16], bf16[1,32,16]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%middle (p.1: bf16[1,8,16]) -> bf16[1,32,16] {
  %p.1 = bf16[1,8,16]{2,1,0} parameter(0)
  ROOT %all-gather.2 = bf16[1,32,16]{2,1,0} all-gather(%p.1), channel_id=7, \
replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={1}
}

%all-reduce-scatter.5 (p.2: f32[32,16]) -> f32[8,16] {
  %p.2 = f32[32,16]{1,0} parameter(0)
  %all-reduce.9 = f32[40,16]{1,0} all-reduce(%p.2), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[8,16]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={8,16}
}

%layers.condition (s: (s32[], f32[8,16])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %s = (s32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %three), direction=LT
}

%layers (s.1: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %fusion.1 = (bf16[1,8,16]{2,1,0}, bf16[1,32,16]{2,1,0}) fusion(%w), kind=kCustom, calls=%start
  %fusion.2 = bf16[1,32,16]{2,1,0} fusion(%w), kind=kOutput, calls=%middle
  %one = s32[]{:T(128)} constant(1)
  %j = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %ten = s32[]{:T(128)} constant(10)
  %other = s32[]{:T(128)} add(%j, %ten)
  %next = s32[]{:T(128)} add(%j, %one)
  %fusion.3 = f32[8,16]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.5
  ROOT %state = (s32[], f32[8,16]) tuple(%next, /*index=1*/%fusion.3)
}

%microbatches.condition (t: (s32[], s32[])) -> pred[] {
  %t = (s32[], s32[]) parameter(0)
  %k = s32[] get-tuple-element(%t), index=0
  %n = s32[] get-tuple-element(%t), index=1
  ROOT %lt.1 = pred[] compare(%k, %n), direction=LT
}

%microbatches (t.1: (s32[], s32[])) -> (s32[], s32[]) {
  ROOT %while.1 = (s32[], /*index=1*/f32[8,16]{1,0}) while(%x), condition=%layers.condition, body=%layers
}

ENTRY %main (a: f32[8]) -> f32[] {
  %while.2 = (s32[], s32[]) while(%y), condition=%microbatches.condition, body=%microbatches
  ROOT %all-reduce.3 = (f32[], bf16[2]{0}) all-reduce(%v, %u), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""

GPU = """\
HloModule jit_update, is_scheduled=true, num_partitions=16

%body (s: (s32[], f32[4])) -> (s32[], f32[4]) {
  %reduce-scatter-start = ((f32[64,8]{1,0}), f32[8,8]{1,0}) reduce-scatter-start(%g), channel_id=2, \
replica_groups=[2,8]<=[16], dimensions={0}, to_apply=%add, metadata={op_name="jit(update)/mlp/dot_general"}
  %reduce-scatter-done = f32[8,8]{1,0} reduce-scatter-done(%reduce-scatter-start), metadata={}
  %all-reduce-start = f32[8,8]{1,0} all-reduce-start(%reduce-scatter-done), channel_id=3, \
replica_groups=[8,2]<=[2,8]T(1,0), to_apply=%add
  ROOT %all-reduce-done = f32[8,8]{1,0} all-reduce-done(%all-reduce-start)
}

ENTRY %main (a: f32[8]) -> f32[] {
  ROOT %while = (s32[], f32[4]) while(%y), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_loops_count_as_often_as_they_run_and_a_collective_over_several_fusions_once() -> None:
    reduce, scatter, gather = collectives(TPU, dynamic=10)
    assert (gather.kind, gather.size, gather.group, gather.times) == ("all-gather", 2 * 32 * 16, 4, 10 * 3)
    assert (scatter.kind, scatter.size, scatter.group, scatter.times) == ("reduce-scatter", 4 * 8 * 16, 4, 10 * 3)
    assert (reduce.kind, reduce.size, reduce.group, reduce.times) == ("all-reduce", 4 + 2 * 2, 2, 1)


def test_a_loop_that_counts_in_twos_runs_half_as_often() -> None:
    once = TPU.replace("%one = s32[]{:T(128)} constant(1)", "%one = s32[]{:T(128)} constant(2)")
    assert [c.times for c in collectives(once, dynamic=10)] == [1, 10 * 2, 10 * 2]  # 0 and 2, below 3


def test_a_started_collective_counts_where_it_is_done_and_islands_tell_near_from_far() -> None:
    scatter, reduce = collectives(GPU, islands=[0] * 8 + [1] * 8)
    assert scatter == Collective("reduce-scatter", 4 * 64, 8, 5, False, "jit(update)/mlp/dot_general")
    assert reduce == Collective("all-reduce", 4 * 64, 2, 5, True, "")


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 1000 * 3 / 4),
        ("all-reduce", 2 * 1000 * 3 / 4),
        ("reduce-scatter", 1000 * 3),  # of a whole of 4000
        ("all-to-all", 1000 * 3 / 4),
        ("collective-permute", 1000),
    ],
)
def test_what_a_device_sends_in_a_ring_of_four(kind: str, sent: float) -> None:
    assert Collective(kind, 1000, 4, 1, False, "").sent == sent


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x=1", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, use_global_device_ids=true", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_are_read_in_every_form(attributes: str, expected: list[list[int]]) -> None:
    np.testing.assert_array_equal(_groups(attributes, "all-reduce", 4), expected)


def test_between_tpu_slices_a_program_tells_what_it_receives() -> None:
    handler = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.1_0"'
    what = '_xla_megascale_target="{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"'
    line = "%recv = (f32[64,8]{1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true"
    text = f"ENTRY %main (x: f32[4]) -> f32[4] {{\n  {line}, frontend_attributes={{{handler},{what}}}\n}}\n"
    assert collectives(text) == [Collective("all-reduce", 4 * 64 * 8, 2, 1, True, "")]


def test_a_permutation_goes_far_if_one_of_its_pairs_does() -> None:
    line = "  ROOT %p = f32[4]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
    text = f"HloModule m, num_partitions=4\n\nENTRY %main (x: f32[4]) -> f32[4] {{\n{line}\n}}\n"
    (near,), (far,) = collectives(text), collectives(text, islands=[0, 0, 1, 1])
    assert (near.far, far.far) == (False, True)
    assert near.sent == far.sent == 16
