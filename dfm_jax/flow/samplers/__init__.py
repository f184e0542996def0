"""Samplers: `denoiser` (what a sampler asks of a model), `grid` (times), `step` (the base class of steps), `loop` (the
compiled scan), `solver` (all of these together), `events` (chains without steps). The steps of the mixture path are in
`jumps`, `stochastic` and `correctors`; `names` is their table. The steps of another path are in that path's folder."""
