"""Bytes that collectives send, worked out by hand, from programs compiled here."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from tssr_jax.parallel import collectives
from tssr_jax.tools.hlo import collective_traffic, estimated_cycles

BOTH = ("data", "model")
ROWS = PartitionSpec(BOTH)


def compiled_text(body):
    """A body of eight devices, four by two, each with [2, 64] floats: 512 bytes."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), BOTH)
    run = jax.shard_map(body, mesh=mesh, in_specs=ROWS, out_specs=ROWS, check_vma=False)
    return jax.jit(run).lower(jax.ShapeDtypeStruct((16, 64), jnp.float32)).compile().as_text()


def loop(body, turns, x):
    return jax.lax.fori_loop(0, turns, lambda _, x: body(x) * 1.5, x)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (partial(collectives.psum, axis=BOTH), {"all-reduce": (1, 2 * 7 * 512 // 8)}),
        (partial(collectives.psum, axis="model"), {"all-reduce": (1, 512)}),
        (partial(collectives.all_gather, axis=BOTH, dimension=1), {"all-gather": (1, 7 * 512)}),
        (partial(collectives.psum_scatter, axis="model"), {"reduce-scatter": (1, 256)}),
        (partial(collectives.shift, axis=BOTH), {"collective-permute": (1, 512)}),
        (
            partial(loop, partial(collectives.shift, axis=BOTH), 5),
            {"collective-permute": (5, 5 * 512)},
        ),
    ],
)
def test_bytes_by_hand(body, expected):
    assert collective_traffic(compiled_text(body), 8) == expected


@pytest.mark.parametrize(
    ("groups", "bytes_sent"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, ", 512),
        ("replica_groups=[4,2]<=[8], ", 512),
        ("replica_groups=mesh['data'=4,'model'=2] {'model'}, ", 512),
        ("replica_groups=mesh['data'=4,'model'=2] {'data'}, ", 768),
        ("replica_groups=mesh['data'=4,'model'=2] {'data','model'}, ", 896),
        ("replica_groups={}, ", 896),
        ("", 896),
    ],
)
def test_all_ways_to_write_groups(groups, bytes_sent):
    text = f"ENTRY %main (x: f32[]) -> f32[] {{\n  %s = f32[2,64]{{1,0}} all-reduce(%x), {groups}z"
    assert collective_traffic(text, 8) == {"all-reduce": (1, bytes_sent)}


def test_groups_that_are_written_in_an_unknown_way():
    text = "ENTRY %main () -> f32[] {\n  %s = f32[2]{0} all-reduce(%x), replica_groups=all, z=1"
    with pytest.raises(ValueError, match="unknown way"):
        collective_traffic(text, 8)


def test_a_loop_whose_turns_depend_on_data():
    def body(x):
        turns = collectives.pmax((x[0, 0] > 0).astype(jnp.int32), BOTH)
        return loop(partial(collectives.shift, axis=BOTH), turns, x)

    text = compiled_text(body)
    assert collective_traffic(text, 8, unknown_trip_count=9)["collective-permute"] == (9, 9 * 512)


def test_steps_of_one_collective_are_counted_once():
    """As the TPU's compiler writes an all-gather that it has cut up and fused."""
    operation = (
        "  %gather.{} = f32[8,64]{{1,0:T(8,128)}} all-gather(%x), channel_id=1, "
        'replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}'
    )
    text = "\n".join(
        [
            "%step.1 (x: f32[2,64]) -> f32[8,64] {",
            operation.format(1),
            "}",
            "ENTRY %main (x: f32[2,64]) -> f32[8,64] {",
            "  %a = f32[8,64] fusion(%x), kind=kCustom, calls=%step.1",
            operation.format(2),
            "}",
        ]
    )
    assert collective_traffic(text, 4) == {"all-gather": (1, 3 * 8 * 64 * 4 // 4)}


# As the TPU's compiler writes a loop of five turns, in which another depends on data.
OF_A_TPU = """
%inner (p: (s32[], s32[])) -> (s32[], s32[]) {
  %dot.1 = f32[8]{0} fusion(%p), metadata={op_name="jit(f)/dot"}, x={"estimated_cycles":"7"}
}

%inner_condition (p: (s32[], s32[])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(4)
  %bound = s32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%outer (p: (s32[], f32[])) -> (s32[], f32[]) {
  %copy.1 = f32[8]{0} copy(%p), x={"estimated_cycles":"100"}
  %while.2 = (s32[], s32[]) while(%p), condition=%inner_condition, body=%inner
}

%outer_condition (p: (s32[], f32[])) -> pred[] {
  %constant.8 = s32[]{:T(128)} constant(5)
  ROOT %lt.2 = pred[]{:T(512)} compare(%i, %constant.8), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[]) while(%x), condition=%outer_condition, body=%outer
}
"""


def test_cycles_of_operations_in_loops():
    assert estimated_cycles(OF_A_TPU) == [("jit(f)/dot", 5 * 7), ("", 5 * 100)]
    assert estimated_cycles(OF_A_TPU, unknown_trip_count=3)[0][1] == 5 * 3 * 7
