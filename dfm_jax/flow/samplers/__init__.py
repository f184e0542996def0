"""Samplers: `denoiser` (what a model answers), `grid` (times), `step` (what a step is), `loop` (the compiled scan),
`solver` (all of it together), `events` (chains without steps). Steps of the mixture path: `jumps`, `stochastic`,
`correctors`; `names` is their table. Other paths have theirs beside them."""
