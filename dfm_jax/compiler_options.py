"""XLA's options for this program, in one place: training, evaluation, sampling and `--mode=compile` all pass them.

They go to `jax.jit(compiler_options=...)`: an unknown name there is an error, in XLA_FLAGS it ends the process.
"""

Options = dict[str, str | bool | int]

# Every option has a reason that the compiled program shows: figures of configs/model_1_7b.py for h100:8 (jax 0.10.2),
# from `hidden` in compile.json. The latency-hiding scheduler is on by default: asking for it changes nothing.
GPU: Options = {
    # The blocks are a loop: without these, gathering the next block's parameters and reducing the last one's gradient
    # wait for the iteration's end. They hide 30.2 of 31.2 ms of link time behind kernels instead of 16.6.
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
    # A pipelined result is written in one iteration and read in the next. Two copies of the body, used in turn, spare
    # the copying between: 0.3 GB a step instead of 6.4.
    "xla_gpu_enable_while_loop_double_buffering": True,
}


def compiler_options(platform: str) -> Options:
    """Options for programs on `platform` ('cpu', 'gpu', 'cuda', 'tpu'). XLA's CPU and TPU defaults are left alone."""
    return dict(GPU) if platform in ("gpu", "cuda") else {}
