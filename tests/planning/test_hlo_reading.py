"""Reading compiled programs: a program small enough to count by hand."""

import pathlib

import pytest

from dfm_jax.planning import targets
from dfm_jax.planning.hlo import arithmetic, buffers, categories, collectives
from dfm_jax.planning.hlo import text as hlo

TEXT = (pathlib.Path(__file__).resolve().parent.parent / "fixtures/planning/loop.hlo").read_text()
PRODUCT = 2 * 32 * 16 * 64
ATTENTION = 2 * 2 * 4 * 8 * 8 * 16  # one product of B H L L d


@pytest.fixture(scope="module")
def module():
    return hlo.parse(TEXT)


def test_instructions_and_their_attributes(module):
    assert module.entry == "main"
    assert module.by_name["loop"].trip_count == 12
    assert module.by_name["fwd"].target == "__cudnn$fmhaSoftmax"
    assert module.by_name["dot.1"].dims("lhs_contracting_dims") == (1,)
    assert module.by_name["state"].shapes == (
        hlo.Shape("s32", ()),
        hlo.Shape("bf16", (12, 32, 16)),
        hlo.Shape("bf16", (32, 64)),
        hlo.Shape("bf16", (64, 16)),
    )
    assert module.by_name["product"].op_name == "jit(step)/while/body/dot_general"
    assert module.source(module.by_name["product"]) == "dfm_jax/models/layers.py:42"
    assert module.source(module.by_name["stored"]) == "jax/numpy.py:7"
    assert module.source(module.by_name["loop"]) == ""


def test_a_loop_counts_as_often_as_it_runs(module):
    times = {instruction.name: n for instruction, _, n in module.executed()}
    assert times["product"] == 12 and times["less"] == 12 and times["fwd"] == 1
    assert "dot.1" not in times, "insides of fusions are not executed by themselves"


def test_arithmetic(module):
    counts = arithmetic.read(module, targets.load("h100"))
    assert counts.matrix_flops == 12 * PRODUCT
    assert counts.attention_flops == (2 + 5) * ATTENTION
    assert counts.attention_workspace == 2 * 4 * 8 * (4 * 16 + 4) + 256
    assert counts.custom_calls == {"__cudnn$fmhaSoftmax": 1, "__cudnn$fmhaSoftmaxBackward": 1}
    assert not counts.unknown_loops and counts.float32_flops == 0


def test_traffic_counts_what_a_kernel_touches(module):
    body = module.computations["body"]
    moved = {name: hlo.traffic(module, body[name], body) for name in ("product", "stored", "i")}
    assert moved["product"] == 2 * (32 * 64 + 64 * 16 + 32 * 16)
    # One entry of the stack is written and read, and the index; the other eleven are left alone.
    assert moved["stored"] == 2 * 2 * 32 * 16 + 4
    assert moved["i"] == 0


GATHERED = """HloModule gathered, is_scheduled=true

%computation (p: f32[1024,64], i: s32[8,1], q: f32[64]) -> bf16[8,64] {
  %p = f32[1024,64]{1,0} parameter(0)
  %i = s32[8,1]{1,0} parameter(1)
  %q = f32[64]{0} parameter(2)
  %wide = f32[1024,64]{1,0} broadcast(%q), dimensions={1}
  %sum = f32[1024,64]{1,0} add(%p, %wide)
  %square = f32[1024,64]{1,0} multiply(%sum, %sum)
  %small = bf16[1024,64]{1,0} convert(%square)
  ROOT %rows = bf16[8,64]{1,0} gather(%small, %i), offset_dims={1}, collapsed_slice_dims={0}, slice_sizes={1,64}
}

ENTRY %main (p: f32[1024,64], i: s32[8,1], q: f32[64]) -> bf16[8,64] {
  %p = f32[1024,64]{1,0} parameter(0)
  %i = s32[8,1]{1,0} parameter(1)
  %q = f32[64]{0} parameter(2)
  ROOT %fusion = bf16[8,64]{1,0} fusion(%p, %i, %q), kind=kLoop, calls=%computation
}
"""


def test_what_is_gathered_is_read_where_it_is_needed():
    """Eight rows of float32, though they are changed before they are picked; the indices, the vector, the result."""
    module = hlo.parse(GATHERED)
    main = module.computations["main"]
    assert hlo.traffic(module, main["fusion"], main) == 8 * 64 * 4 + 8 * 4 + 64 * 4 + 8 * 64 * 2


STARTED = """HloModule started, is_scheduled=true

%update (stored: f32[28,64,32], turn: s32[], row: f32[64,32]) -> f32[28,64,32] {
  %stored = f32[28,64,32]{2,1,0} parameter(0)
  %row = f32[64,32]{1,0} parameter(2)
  %one = f32[1,64,32]{2,1,0} bitcast(%row)
  %turn = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %dus = f32[28,64,32]{2,1,0} dynamic-update-slice(%stored, %one, %turn, %zero, %zero)
}

ENTRY %main (a: f32[28,64,32], b: s32[], c: f32[64,32]) -> f32[28,64,32] {
  %a = f32[28,64,32]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[64,32]{1,0} parameter(2)
  %begun = ((f32[28,64,32]{2,1,0}, s32[], f32[64,32]{1,0}), f32[28,64,32]{2,1,0}, u32[]) fusion-start(%a, %b, %c), \
kind=kLoop, calls=%update, metadata={op_name="jit(f)/update"}
  ROOT %done = f32[28,64,32]{2,1,0} fusion-done(%begun)
}
"""


def test_a_kernel_that_is_started_and_ended_apart_is_counted_once():
    """An update in place: it reads and writes the part that it names, and its end moves nothing."""
    module = hlo.parse(STARTED)
    main = module.computations["main"]
    begun = main["begun"]
    assert (begun.opcode, [str(shape) for shape in begun.shapes]) == ("fusion", ["f32[28,64,32]"])
    # The row, its place, and what is written of the array.
    assert hlo.traffic(module, begun, main) == 2 * 64 * 32 * 4 + 4
    assert hlo.traffic(module, main["done"], main) == 0
    line = "  %c.1 = ((f32[8]{0}, f32[8]{0}), (f32[8]{0}, u8[64]{0}), u32[]) custom-call-start(%a, %b)"
    call = hlo.parse_instruction(line)
    assert call is not None
    assert (call.opcode, [str(shape) for shape in call.shapes]) == ("custom-call", ["f32[8]", "u8[64]"])


def test_a_loop_of_unknown_length_is_said(module):
    unknown = hlo.parse(TEXT.replace(', backend_config={"known_trip_count":{"n":"12"}}', ""))
    counts = arithmetic.read(unknown, targets.load("h100"))
    assert counts.unknown_loops and counts.matrix_flops == PRODUCT
    assert counts.host_waits == 1 and arithmetic.read(hlo.parse(TEXT), targets.load("h100")).host_waits == 0


def test_what_xla_computes_again_is_told_apart():
    """A copy that rematerialization made counts, if the first product or an earlier copy of it is still there."""
    line = next(line for line in TEXT.splitlines(keepends=True) if " %product = " in line)

    def repeated(*names):
        more = "".join(line.replace("%product =", f"%{name} =") for name in names)
        return arithmetic.read(hlo.parse(TEXT.replace(line, more)), targets.load("h100")).repeated_flops / PRODUCT

    assert repeated("product") == repeated("product.remat") == repeated("product", "product.1") == 0
    assert (
        repeated("product", "product.remat") == repeated("product.remat", "product.remat2", "product.remat_fed") == 12
    )
    assert repeated("product", "product.remat", "product.remat3") == 24


def test_what_stands_between_start_and_end_hides_a_collective():
    target = targets.parse("h100:2x4")
    # As the fixture has it, nothing does; with the product moved between, it takes a little.
    assert arithmetic.hidden_seconds(hlo.parse(TEXT), target) == 0.0
    lines = TEXT.splitlines(keepends=True)
    start = next(i for i, line in enumerate(lines) if "%ar-start =" in line)
    lines.insert(start - 1, lines.pop(start))  # before the storing, which takes its time
    module = hlo.parse("".join(lines))
    stored = arithmetic.work_of(module, module.by_name["stored"], module.computations["body"]).seconds(target.chip)
    links = collectives.seconds_of(module.by_name["ar-start"], module, target)
    assert arithmetic.hidden_seconds(module, target) == pytest.approx(12 * min(stored, links))


def test_collectives_inside_and_between_nodes(module):
    found = {c.kind: c for c in collectives.read(module, targets.parse("h100:2x4"))}
    reduced, gathered = found["all-reduce"], found["all-gather"]
    size = 2 * 32 * 16 * 12
    assert (reduced.count, reduced.bytes, reduced.devices, reduced.nodes) == (12, size, 4, 1)
    assert reduced.sent == size * 2 * 3 / 4
    assert reduced.seconds == pytest.approx(size * 2 * 3 / 4 / 450e9)
    # Groups of every second device: two on each node.
    assert (gathered.devices, gathered.nodes, gathered.bytes) == (4, 2, 4 * 2 * 16 * 4)
    assert gathered.seconds == pytest.approx(gathered.bytes / 2 / (2 * 50e9))


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [(0, 2), (1, 3)]),
        ("replica_groups=[1,4]<=[4]", [(0, 1, 2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['data'=2,'fsdp'=2] {'fsdp'}", [(0, 1), (2, 3)]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", [(0, 2), (1, 3)]),
        (
            "replica_groups=mesh['axis_0'=1,'axis_1'=2,'axis_2'=2], device_ids=([2,2]T(1,0)) {'axis_1'}",
            [(0, 1), (2, 3)],
        ),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", [(3, 2), (1, 0)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [(0, 1, 2, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [(0, 1), (2, 3)]),
        ("source_target_pairs={{0,1},{1,0}}", [(0, 1), (1, 0)]),
        ("replica_groups={}", [(0, 1, 2, 3)]),
    ],
)
def test_every_way_of_writing_groups(attributes, groups):
    line = hlo.parse_instruction(f"  %r = f32[4]{{0}} all-reduce(%x), {attributes}, to_apply=%add")
    assert line is not None
    assert collectives.replica_groups(line, 4) == groups


def test_groups_in_an_unknown_form_are_an_error():
    line = hlo.parse_instruction("  %r = f32[4]{0} all-reduce(%x), replica_groups=all_of_them, to_apply=%add")
    assert line is not None
    with pytest.raises(ValueError, match="form that is not known here"):
        collectives.replica_groups(line, 4)


def test_a_buffer_is_named_by_what_made_it(module):
    dump = """\
BufferAssignment:
allocation 0: size 2048, parameter 0, shape |bf16[2,8,4,16]| at ShapeIndex {}:
 value: <1 q @0> (size=2048,offset=0): bf16[2,8,4,16]{3,2,1,0}
allocation 1: size 20000, preallocated-temp:
 value: <2 state{1} @0> (size=12288,offset=128): bf16[12,32,16]{2,1,0}
 value: <3 stored @0> (size=12288,offset=128): bf16[12,32,16]{2,1,0}
 value: <4 product @0> (size=1024,offset=12544): bf16[32,16]{1,0}

Total bytes used: 22048 (21.5KiB)
"""
    found = buffers.parse(dump, module)
    assert [(b.bytes, b.kind) for b in found] == [(12288, "temporary"), (2048, "argument"), (1024, "temporary")]
    # What the loop stores, not the storing.
    assert found[0].operation == "jit(step)/while/body/dot_general"
    assert found[0].source == "dfm_jax/models/layers.py:42"
    assert found[1].operation == "queries"


KERNELS = """\
HloModule jit_step, is_scheduled=true

FileNames
1 "/somewhere/dfm_jax/models/transformer.py"
2 "/somewhere/kernels/vocab_head/blocks.py"
3 "/somewhere/dfm_jax/training/step.py"

FileLocations
1 {file_name_id=1 line=10}
2 {file_name_id=2 line=20}
3 {file_name_id=3 line=30}

StackFrames
1 {file_location_id=1}
2 {file_location_id=2}
3 {file_location_id=3}

%sums (p0: f32[64,128]) -> (f32[64], f32[64,128]) {
  %p0 = f32[64,128]{1,0} parameter(0)
  %zero = f32[] constant(0)
  %twice = f32[64,128]{1,0} multiply(%p0, %p0), metadata={op_name="jit(step)/jvp(residual)/mul" stack_frame_id=1}
  %again = f32[64,128]{1,0} add(%twice, %p0)
  %sum = f32[64]{0} reduce(%twice, %zero), dimensions={1}, metadata={op_name="jit(step)/jvp(norm)/reduce_sum"}
  ROOT %both = (f32[64]{0}, f32[64,128]{1,0}) tuple(%sum, %again)
}

%move (q0: f32[64,128]) -> bf16[128,64] {
  %q0 = f32[64,128]{1,0} parameter(0)
  %narrow = bf16[64,128]{1,0} convert(%q0), metadata={op_name="jit(step)/jvp(norm)/convert" stack_frame_id=1}
  ROOT %turned = bf16[128,64]{1,0} transpose(%narrow), dimensions={1,0}
}

%gemm (r0: bf16[64,128], r1: bf16[128,64]) -> f32[64,64] {
  %r0 = bf16[64,128]{1,0} parameter(0)
  %r1 = bf16[128,64]{1,0} parameter(1)
  ROOT %dot.1 = f32[64,64]{1,0} dot(%r0, %r1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%update (s0: f32[64,64]) -> f32[64,64] {
  %s0 = f32[64,64]{1,0} parameter(0)
  ROOT %new = f32[64,64]{1,0} add(%s0, %s0), metadata={op_name="jit(step)/select_n" stack_frame_id=3}
}

%mix (t0: f32[64,128]) -> f32[64,128] {
  %t0 = f32[64,128]{1,0} parameter(0)
  %scaled = f32[64,128]{1,0} multiply(%t0, %t0), metadata={op_name="jit(step)/transpose(jvp(norm))/mul"}
  ROOT %any = f32[64,128]{1,0} add(%scaled, %t0), metadata={op_name="transpose(jvp())/add_any" stack_frame_id=1}
}

ENTRY %main (x: f32[64,128], w: bf16[128,64], h: bf16[64,128]) -> f32[64,64] {
  %x = f32[64,128]{1,0} parameter(0)
  %w = bf16[128,64]{1,0} parameter(1)
  %h = bf16[64,128]{1,0} parameter(2)
  %unnamed = (f32[64]{0}, f32[64,128]{1,0}) fusion(%x), kind=kInput, calls=%sums
  %moved = bf16[128,64]{1,0} fusion(%x), kind=kLoop, calls=%move, metadata={op_name="jit(step)/jvp(norm)/convert"}
  %grown = f32[64,128]{1,0} fusion(%x), kind=kLoop, calls=%mix
  %logits = f32[64,64]{1,0} fusion(%h, %w), kind=kCustom, calls=%gemm, metadata={op_name="dot" stack_frame_id=2}
  %plain = f32[64,64]{1,0} fusion(%h, %w), kind=kCustom, calls=%gemm, metadata={op_name="dot" stack_frame_id=1}
  %most = f32[64,64]{1,0} exponential(%logits), metadata={op_name="jit(step)/jvp()/exp" stack_frame_id=2}
  %kept = pred[64,64]{1,0} compare(%most, %plain), direction=GE, metadata={op_name="jit(step)/jvp(dropout)/ge"}
  %copy.1 = bf16[64,128]{1,0} copy(%h)
  %lost = f32[64,64]{1,0} negate(%most)
  ROOT %next = f32[64,64]{1,0} fusion(%plain), kind=kLoop, calls=%update
}
"""


def test_every_kernel_has_a_name_a_place_and_a_category():
    module = hlo.parse(KERNELS)
    found = {}
    for instruction, computation, _ in module.executed():
        work = arithmetic.work_of(module, instruction, computation)
        if work.bytes:
            found[instruction.name] = categories.category(module, instruction, multiplies=work.matrix > 0)
    assert found == {
        "unnamed": "residual",  # its largest result, which the compiler made from a product of the residual's
        "moved": "copies",
        "grown": "norms and modulation",  # a sum of gradients, of which one is a norm's
        "logits": "head",
        "plain": "matrix products",
        "most": "head",
        "kept": "dropout",
        "copy.1": "copies",
        "lost": "other",
        "next": "optimizer",
    }
    made = categories.maker(module, module.by_name["unnamed"])
    assert made.op_name == "jit(step)/jvp(residual)/mul"
    assert module.source(made) == "dfm_jax/models/transformer.py:10"


def test_shares_are_all_there_is():
    module, chip = hlo.parse(KERNELS), targets.load("h100")
    counts = arithmetic.read(module, chip)
    shares = {share.category: share for share in counts.shares}
    assert sum(s.bytes for s in counts.shares) == counts.bytes_moved
    assert sum(s.flops for s in counts.shares) == counts.flops == 2 * 2 * 64 * 128 * 64
    assert sum(s.seconds for s in counts.shares) == pytest.approx(counts.kernel_seconds)
    # The second of two kernels is the copy of 64 x 128 numbers, read and written.
    assert shares["copies"].kernels == 2 and shares["copies"].bytes == 64 * 128 * (4 + 2) + 2 * 64 * 128 * 2
    assert {kernel.category for kernel in counts.slowest} == set(shares)
    assert all(kernel.operation for kernel in counts.slowest)


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("not HLO")
