"""XLA's options for this program, in one place: training, evaluation, sampling and `--mode=compile` all pass them.

They go to `jax.jit(compiler_options=...)`: an unknown name there is an error, in XLA_FLAGS it ends the process.
"""

Options = dict[str, str | bool | int]

# Every option has a reason that can be checked in the compiled program; none stands here for luck.
GPU: Options = {
    # Starts collectives as early and awaits them as late as data allows, so that links work beside the arithmetic.
    "xla_gpu_enable_latency_hiding_scheduler": True,
    # The blocks are a loop: without these, gathering the next block's parameters and reducing the last one's
    # gradient wait for the iteration's end.
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
    # A pipelined collective's result is read in one iteration and written in the next; two copies of the body,
    # used in turn, spare the copy between them.
    "xla_gpu_enable_while_loop_double_buffering": True,
}


def compiler_options(platform: str) -> Options:
    """Options for programs on `platform` ('cpu', 'gpu', 'cuda', 'tpu'). XLA's CPU and TPU defaults are left alone."""
    return dict(GPU) if platform in ("gpu", "cuda") else {}
